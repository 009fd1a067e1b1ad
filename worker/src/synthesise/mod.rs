//! Makes a job's latents, where they don't come ready: the teacher samples them from prompts, or its VAE encodes images.
//!
//! The result is a safetensors object: `latents` [n, c, h, w] f16, `prompt` [n] i64, the number of each one's prompt; and
//! for the prompts of this part and the empty one: `prompts` [p] i64, their numbers, `embeddings` [p, T, D] f16, and where
//! the model takes them `attention_mask` [p, T] and `pooled` [p, P] f16.

mod from_images;
mod from_prompts;
mod picture;

use std::collections::BTreeMap;

use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::{keys, v1};
use half::f16;

use crate::task::{Context, Error};
use crate::teacher::text::Embeddings;

/// Makes the task's range of latents and writes them.
pub(crate) fn run(context: &Context, task: &v1::SynthesiseTask) -> Result<v1::Done, Error> {
    let range = task.range.ok_or(Error::Incomplete("range"))?;
    let data = context.job.data.as_ref().ok_or(Error::Incomplete("data"))?;
    let made = match (&data.synthesis, &data.images) {
        (Some(synthesis), _) => from_prompts::make(context, data.seed, synthesis, &range)?,
        (None, Some(images)) => from_images::make(context, images, &range)?,
        (None, None) => return Err(Error::Incomplete("way to make latents")),
    };
    context.check_stop()?;
    let samples = made.of_latent.len();
    let bytes = made.encode(context, &range)?;
    let object = context.wait(context.objects.put(&keys::latents(&range, &context.attempt), bytes))?;
    Ok(v1::Done {
        busy_seconds: 0.0,
        samples: samples as u64,
        output: Some(v1::done::Output::Synthesise(v1::SynthesiseOutput { latents: Some(object) })),
    })
}

/// Latents with their prompts.
struct Made {
    /// [n, c, h, w], flat.
    latents: Vec<f32>,
    /// The number of each one's prompt.
    of_latent: Vec<usize>,
    /// Numbers of the prompts that were embedded, rising; the last one is the empty prompt's.
    prompts: Vec<usize>,
    /// A row for each of them.
    embeddings: Embeddings,
}

/// [c, h, w] of a latent.
fn latent_shape(plan: &v1::JobPlan) -> [usize; 3] {
    [plan.latent_channels, plan.latent_height, plan.latent_width].map(|n| n as usize)
}

/// The number of the empty prompt.
fn empty_prompt(plan: &v1::JobPlan) -> usize {
    plan.prompts.saturating_sub(1) as usize
}

/// Whether what the job was planned with is still there: `found` is the digest of what lies at `url` now.
fn check_planned(context: &Context, url: &str, found: &str) -> Result<(), Error> {
    let planned = &context.plan.prompts_digest;
    if found == planned {
        return Ok(());
    }
    let reason =
        format!("its digest is {found}, and the job was planned with {planned}; put it back, or submit a new job");
    Err(Error::Unexpected { what: url.to_owned(), reason })
}

impl Made {
    fn encode(&self, context: &Context, range: &v1::SampleRange) -> Result<Vec<u8>, Error> {
        let [c, h, w] = latent_shape(&context.plan);
        let latents: Vec<f16> = self.latents.iter().map(|number| f16::from_f32(*number)).collect();
        if let Some(position) = latents.iter().position(|number| !number.is_finite()) {
            let what = format!("latent {}", range.start as usize + position / (c * h * w));
            let reason = format!("it holds {}; check the teacher, or lower the guidance", self.latents[position]);
            return Err(Error::Unexpected { what, reason });
        }
        let mut tensors: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        let ids = |ids: &[usize]| ids.iter().flat_map(|id| (*id as i64).to_le_bytes()).collect::<Vec<u8>>();
        tensors.push(("prompt", Dtype::I64, vec![self.of_latent.len()], ids(&self.of_latent)));
        tensors.push(("prompts", Dtype::I64, vec![self.prompts.len()], ids(&self.prompts)));
        let halves = |values: &[f16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        tensors.push(("latents", Dtype::F16, vec![self.of_latent.len(), c, h, w], halves(&latents)));
        let further = [("attention_mask", &self.embeddings.mask), ("pooled", &self.embeddings.pooled)];
        let further = further.into_iter().filter_map(|(name, tensor)| Some((name, tensor.as_ref()?)));
        for (name, tensor) in [("embeddings", &self.embeddings.states)].into_iter().chain(further) {
            let values = tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f16::from_f32).collect::<Vec<_>>();
            tensors.push((name, Dtype::F16, tensor.dims().to_vec(), halves(&values)));
        }
        let entries = tensors.iter().map(|(name, dtype, shape, _)| (*name, *dtype, shape.as_slice()));
        let mut bytes = serialize_header(entries, &BTreeMap::new())?;
        bytes.extend(tensors.iter().flat_map(|(_, _, _, bytes)| bytes));
        Ok(bytes)
    }
}
