//! Has the teacher sample latents from prompts, for jobs that have no data set.
//!
//! The result is a safetensors object: `latents` [n, c, h, w] f16, `prompt` [n] i64, the number of each one's prompt; and
//! for the prompts of this part and the empty one: `prompts` [p] i64, their numbers, `embeddings` [p, T, D] f16, and where
//! the model takes them `attention_mask` [p, T] and `pooled` [p, P] f16.

use std::collections::BTreeMap;

use candle_core::Tensor;
use deltaconv_proto::draw::{self, Purpose};
use deltaconv_proto::prompts::Prompts;
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::{keys, v1};
use half::f16;

use crate::data::picture_size;
use crate::stoppable::{Stoppable, expect_passes};
use crate::task::{Context, Error};
use crate::teacher::text::Embeddings;
use crate::teacher::{Guidance, Original, Steps};

/// Latents that are sampled at a time. A latent has the same bits in any batch.
const BATCH: usize = 4;

/// Samples the task's range of latents and writes them.
pub(crate) fn run(context: &Context, task: &v1::SynthesiseTask) -> Result<v1::Done, Error> {
    let range = task.range.ok_or(Error::Incomplete("range"))?;
    let data = context.job.data.as_ref().ok_or(Error::Incomplete("data"))?;
    let synthesis = data.synthesis.as_ref().ok_or(Error::Incomplete("synthesis"))?;
    let steps = Steps { solver: synthesis.solver.parse()?, count: synthesis.steps as usize };
    let numbers: Vec<usize> = (range.start as usize..range.end as usize).collect();
    expect_passes(context, numbers.len().div_ceil(BATCH) * steps.count);

    let texts = read_prompts(context, &synthesis.prompts_url)?;
    // The last number is the empty prompt's.
    let count = (context.plan.prompts as usize).saturating_sub(1).clamp(1, texts.len());
    let mut prompts: Vec<usize> = numbers.iter().map(|number| number % count).collect();
    let of_latent = prompts.clone();
    prompts.sort_unstable();
    prompts.dedup();
    let chosen: Vec<String> = prompts.iter().map(|prompt| texts[*prompt].clone()).collect();
    let embeddings = context.models.text(context)?.embed(&chosen)?;
    prompts.push(context.plan.prompts.saturating_sub(1) as usize);
    context.check_stop()?;

    let teacher = context.models.teacher(context)?;
    let picture = picture_size(&context.plan);
    let negative = embeddings.rows(&[prompts.len() - 1])?.conditions(picture)?;
    let guidance = Guidance { scale: synthesis.guidance, negative };
    let latent = [context.plan.latent_channels, context.plan.latent_height, context.plan.latent_width];
    let [c, h, w] = latent.map(|n| n as usize);
    let mut latents: Vec<f16> = Vec::with_capacity(numbers.len() * c * h * w);
    for (batch, of_batch) in numbers.chunks(BATCH).zip(of_latent.chunks(BATCH)) {
        let noise = batch.iter().flat_map(|number| {
            let mut rng = draw::generator(data.seed, Purpose::Synthesise, *number as u64);
            draw::normal(&mut rng, c * h * w)
        });
        let noise = Tensor::from_iter(noise, &candle_core::Device::Cpu)?.reshape((batch.len(), c, h, w))?;
        // Every prompt of the part is among them.
        let rows: Vec<usize> = of_batch.iter().filter_map(|prompt| prompts.binary_search(prompt).ok()).collect();
        let conditions = embeddings.rows(&rows)?.conditions(picture)?;
        let mut attention = Stoppable { context, attention: &mut Original };
        let sampler = &teacher.sampler;
        let sampled = sampler.sample(&teacher.denoiser, &noise, &conditions, Some(&guidance), steps, &mut attention);
        context.check_stop()?;
        latents.extend(sampled?.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f16::from_f32));
    }
    if let Some(position) = latents.iter().position(|number| !number.is_finite()) {
        let number = range.start as usize + position / (c * h * w);
        let what = format!("latent {number} that the teacher sampled");
        let reason = "it has numbers that are not finite; check the teacher, or lower the guidance".to_owned();
        return Err(Error::Unexpected { what, reason });
    }
    let bytes = encode(&latents, [numbers.len(), c, h, w], &of_latent, &prompts, &embeddings)?;
    let object = context.wait(context.objects.put(&keys::latents(&range), bytes))?;
    Ok(v1::Done {
        busy_seconds: 0.0,
        samples: numbers.len() as u64,
        output: Some(v1::done::Output::Synthesise(v1::SynthesiseOutput { latents: Some(object) })),
    })
}

/// The prompts, if they are those that were planned with.
fn read_prompts(context: &Context, url: &str) -> Result<Vec<String>, Error> {
    let Prompts { texts, digest } = context.wait(Prompts::read(url))?;
    if digest != context.plan.prompts_digest {
        let reason = format!("its digest is {digest}, and it was planned with {}", context.plan.prompts_digest);
        return Err(Error::Unexpected { what: url.to_owned(), reason });
    }
    Ok(texts)
}

fn encode(
    latents: &[f16],
    shape: [usize; 4],
    of_latent: &[usize],
    prompts: &[usize],
    embeddings: &Embeddings,
) -> Result<Vec<u8>, Error> {
    let mut tensors: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let ids = |ids: &[usize]| ids.iter().flat_map(|id| (*id as i64).to_le_bytes()).collect::<Vec<u8>>();
    tensors.push(("prompt", Dtype::I64, vec![of_latent.len()], ids(of_latent)));
    tensors.push(("prompts", Dtype::I64, vec![prompts.len()], ids(prompts)));
    let halves = |values: &[f16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    tensors.push(("latents", Dtype::F16, shape.to_vec(), halves(latents)));
    let further = [("attention_mask", &embeddings.mask), ("pooled", &embeddings.pooled)];
    let further = further.into_iter().filter_map(|(name, tensor)| Some((name, tensor.as_ref()?)));
    for (name, tensor) in [("embeddings", &embeddings.states)].into_iter().chain(further) {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f16::from_f32).collect::<Vec<_>>();
        tensors.push((name, Dtype::F16, tensor.dims().to_vec(), halves(&values)));
    }
    let entries = tensors.iter().map(|(name, dtype, shape, _)| (*name, *dtype, shape.as_slice()));
    let mut bytes = serialize_header(entries, &BTreeMap::new())?;
    bytes.extend(tensors.iter().flat_map(|(_, _, _, bytes)| bytes));
    Ok(bytes)
}
