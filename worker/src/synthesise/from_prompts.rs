//! Latents that the teacher samples.

use candle_core::{Device, Tensor};
use deltaconv_proto::draw::{self, Purpose};
use deltaconv_proto::prompts::Prompts;
use deltaconv_proto::v1;

use super::{Made, check_planned, empty_prompt, latent_shape};
use crate::data::picture_size;
use crate::stoppable::{Stoppable, expect_passes};
use crate::task::{Context, Error};
use crate::teacher::{Guidance, Original, Steps};

/// Latents that are sampled at a time. A latent has the same bits in any batch.
const BATCH: usize = 4;

/// Samples the latents of `range`: number i from noise of its own, of prompt i modulo the prompts' number.
pub(super) fn make(
    context: &Context,
    seed: u64,
    synthesis: &v1::Synthesis,
    range: &v1::SampleRange,
) -> Result<Made, Error> {
    let steps = Steps { solver: synthesis.solver.parse()?, count: synthesis.steps as usize };
    let numbers: Vec<usize> = (range.start as usize..range.end as usize).collect();
    expect_passes(context, numbers.len().div_ceil(BATCH) * steps.count);

    let Prompts { texts, digest } = context.wait(Prompts::read(&synthesis.prompts_url))?;
    check_planned(context, &synthesis.prompts_url, &digest)?;
    let count = empty_prompt(&context.plan).clamp(1, texts.len());
    let of_latent: Vec<usize> = numbers.iter().map(|number| number % count).collect();
    let mut prompts = of_latent.clone();
    prompts.sort_unstable();
    prompts.dedup();
    let chosen: Vec<String> = prompts.iter().map(|prompt| texts[*prompt].clone()).collect();
    let embeddings = context.models.text(context)?.embed(&chosen)?;
    prompts.push(empty_prompt(&context.plan));
    context.check_stop()?;

    let teacher = context.models.teacher(context)?;
    let picture = picture_size(&context.plan);
    let negative = embeddings.rows(&[prompts.len() - 1])?.conditions(picture)?;
    let guidance = Guidance { scale: synthesis.guidance, negative };
    let [c, h, w] = latent_shape(&context.plan);
    let mut latents = Vec::with_capacity(numbers.len() * c * h * w);
    for (batch, of_batch) in numbers.chunks(BATCH).zip(of_latent.chunks(BATCH)) {
        let noise = batch.iter().flat_map(|number| {
            let mut rng = draw::generator(seed, Purpose::Synthesise, *number as u64);
            draw::normal(&mut rng, c * h * w)
        });
        let noise = Tensor::from_iter(noise, &Device::Cpu)?.reshape((batch.len(), c, h, w))?;
        // Every prompt of the part is among them.
        let rows: Vec<usize> = of_batch.iter().filter_map(|prompt| prompts.binary_search(prompt).ok()).collect();
        let conditions = embeddings.rows(&rows)?.conditions(picture)?;
        let mut attention = Stoppable { context, attention: &mut Original };
        let sampler = &teacher.sampler;
        let sampled = sampler.sample(&teacher.denoiser, &noise, &conditions, Some(&guidance), steps, &mut attention);
        context.check_stop()?;
        latents.extend(sampled?.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(Made { latents, of_latent, prompts, embeddings })
}
