//! Makes a job's latents, where they don't come ready: the teacher samples them from prompts, or its VAE encodes images.
//!
//! The result is a safetensors object: `latents` [n, c, h, w] f16, `prompt` [n] i64, the number of each one's prompt. Of a
//! job with buckets: `bucket` [n] i64, each one's, and for every bucket b that occurs its latents as `latents.b`. And
//! for the prompts of this part and the empty one: `prompts` [p] i64, their numbers, `embeddings` [p, T, D] f16, and where
//! the model takes them `attention_mask` [p, T] and `pooled` [p, P] f16.

mod from_images;
mod from_prompts;
mod image_file;
mod picture;

use std::collections::BTreeMap;

use deltaconv_proto::code::Code;
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::{buckets, keys, v1};
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
    latents: Vec<Latent>,
    /// The number of each one's prompt.
    of_latent: Vec<usize>,
    /// Numbers of the prompts that were embedded, rising; the last one is the empty prompt's.
    prompts: Vec<usize>,
    /// A row for each of them.
    embeddings: Embeddings,
}

/// A latent of a bucket.
struct Latent {
    bucket: usize,
    /// [c, h, w], flat.
    numbers: Vec<f32>,
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
    Err(Error::Unexpected { what: url.to_owned(), reason, code: Code::InputsChanged })
}

impl Made {
    fn encode(&self, context: &Context, range: &v1::SampleRange) -> Result<Vec<u8>, Error> {
        let buckets = buckets::of_job(&context.plan);
        let mut of_bucket: Vec<Vec<f16>> = vec![Vec::new(); buckets.len()];
        for (latent, number) in self.latents.iter().zip(range.start..) {
            let halves = latent.numbers.iter().map(|number| f16::from_f32(*number));
            let start = of_bucket[latent.bucket].len();
            of_bucket[latent.bucket].extend(halves);
            if let Some(position) = of_bucket[latent.bucket][start..].iter().position(|half| !half.is_finite()) {
                let reason = format!("it holds {}; check the teacher, or lower the guidance", latent.numbers[position]);
                let what = format!("latent {number}");
                return Err(Error::Unexpected { what, reason, code: Code::NotFinite });
            }
        }
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        let ids = |ids: &[usize]| ids.iter().flat_map(|id| (*id as i64).to_le_bytes()).collect::<Vec<u8>>();
        tensors.push(("prompt".to_owned(), Dtype::I64, vec![self.of_latent.len()], ids(&self.of_latent)));
        tensors.push(("prompts".to_owned(), Dtype::I64, vec![self.prompts.len()], ids(&self.prompts)));
        if buckets.len() > 1 {
            let of_latent: Vec<usize> = self.latents.iter().map(|latent| latent.bucket).collect();
            tensors.push(("bucket".to_owned(), Dtype::I64, vec![of_latent.len()], ids(&of_latent)));
        }
        let halves = |values: &[f16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        for (index, (bucket, latents)) in buckets.iter().zip(&of_bucket).enumerate() {
            let (c, (h, w)) = (context.plan.latent_channels as usize, bucket.latent);
            let rows = latents.len() / (c * h * w).max(1);
            if rows > 0 {
                let name = buckets::tensor("latents", index, buckets.len());
                tensors.push((name, Dtype::F16, vec![rows, c, h, w], halves(latents)));
            }
        }
        let further = [("attention_mask", &self.embeddings.mask), ("pooled", &self.embeddings.pooled)];
        let further = further.into_iter().filter_map(|(name, tensor)| Some((name, tensor.as_ref()?)));
        for (name, tensor) in [("embeddings", &self.embeddings.states)].into_iter().chain(further) {
            let values = tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f16::from_f32).collect::<Vec<_>>();
            tensors.push((name.to_owned(), Dtype::F16, tensor.dims().to_vec(), halves(&values)));
        }
        let entries = tensors.iter().map(|(name, dtype, shape, _)| (name.as_str(), *dtype, shape.as_slice()));
        let mut bytes = serialize_header(entries, &BTreeMap::new())?;
        bytes.extend(tensors.iter().flat_map(|(_, _, _, bytes)| bytes));
        Ok(bytes)
    }
}
