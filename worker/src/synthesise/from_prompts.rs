//! Latents that the teacher samples.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use deltaconv_proto::buckets;
use deltaconv_proto::draw::{self, Purpose};
use deltaconv_proto::prompts::Prompts;
use deltaconv_proto::v1;

use super::{Latent, Made, check_planned, empty_prompt};
use crate::stoppable::{Stoppable, expect_passes};
use crate::task::{Context, Error};
use crate::teacher::{Guidance, Original, Steps};

/// Latents that are sampled at a time. A latent has the same bits in any batch.
const BATCH: usize = 4;

/// Samples the latents of `range`: number i from noise of its own, of prompt i modulo the prompts' number, and of size i
/// modulo the sizes' number.
pub(super) fn make(
    context: &Context,
    seed: u64,
    synthesis: &v1::Synthesis,
    range: &v1::SampleRange,
) -> Result<Made, Error> {
    let steps = Steps { solver: synthesis.solver.parse()?, count: synthesis.steps as usize };
    let numbers: Vec<usize> = (range.start as usize..range.end as usize).collect();
    let buckets = buckets::of_job(&context.plan);
    let mut by_bucket = vec![Vec::new(); buckets.len()];
    numbers.iter().for_each(|number| by_bucket[number % buckets.len()].push(*number));
    let batches = by_bucket.iter().map(|numbers| numbers.len().div_ceil(BATCH)).sum::<usize>();
    expect_passes(context, batches * steps.count);

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
    let c = context.plan.latent_channels as usize;
    let mut latents = BTreeMap::new();
    for (bucket, numbers) in by_bucket.iter().enumerate() {
        let (picture, (h, w)) = (buckets[bucket].picture, buckets[bucket].latent);
        let negative = embeddings.rows(&[prompts.len() - 1])?.conditions(picture)?;
        let guidance = Guidance { scale: synthesis.guidance, negative };
        for batch in numbers.chunks(BATCH) {
            let noise = batch.iter().flat_map(|number| {
                let mut rng = draw::generator(seed, Purpose::Synthesise, *number as u64);
                draw::normal(&mut rng, c * h * w)
            });
            let noise = Tensor::from_iter(noise, &Device::Cpu)?.reshape((batch.len(), c, h, w))?;
            // Every prompt of the part is among them.
            let row = |number: &usize| prompts.binary_search(&(number % count)).ok();
            let rows: Vec<usize> = batch.iter().filter_map(row).collect();
            let conditions = embeddings.rows(&rows)?.conditions(picture)?;
            let mut attention = Stoppable { context, attention: &mut Original };
            let denoiser = &teacher.denoiser;
            let sampled = teacher.sampler.sample(denoiser, &noise, &conditions, Some(&guidance), steps, &mut attention);
            context.check_stop()?;
            let sampled = sampled?.flatten_all()?.to_vec1::<f32>()?;
            let of_each = sampled.chunks_exact(c * h * w).map(|numbers| Latent { bucket, numbers: numbers.to_vec() });
            latents.extend(batch.iter().copied().zip(of_each));
        }
    }
    Ok(Made { latents: latents.into_values().collect(), of_latent, prompts, embeddings })
}
