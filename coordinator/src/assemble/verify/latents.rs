//! The latents of a synthesise task, by their size and header: whoever reads them checks the digest and the numbers.

use deltaconv_proto::objects::Objects;
use deltaconv_proto::safetensors::Dtype;
use deltaconv_proto::v1::{JobPlan, SynthesiseOutput, SynthesiseTask};
use deltaconv_proto::{buckets, header, keys};

use super::{Error, Expectation, check_ref};
use crate::assemble::tensors::{self, Expected, exactly};

const MAX_HEADER_BYTES: u64 = 64 << 10;

pub(super) async fn check(
    objects: &Objects,
    output: &SynthesiseOutput,
    task: &SynthesiseTask,
    expectation: &Expectation<'_>,
) -> Result<(), Error> {
    let range = task.range.as_ref().ok_or(Error::Task("range"))?;
    let key = keys::latents(range, expectation.attempt);
    let object = output.latents.as_ref().ok_or_else(|| Error::NoObject { expected: key.clone() })?;
    let plan = expectation.plan;
    let samples = range.end.saturating_sub(range.start) as usize;
    let area = |bucket: &buckets::Bucket| bucket.latent.0 * bucket.latent.1;
    let smallest = buckets::of_job(plan).iter().map(area).min().unwrap_or(0);
    // How many tokens the prompts have isn't known here; planning found the most bytes that all latents take.
    let least = tensors::bytes(&[
        Expected::new("latents", Dtype::F16, [samples, plan.latent_channels as usize, smallest]),
        Expected::new("prompt", Dtype::I64, [samples]),
    ]);
    check_ref(object, &key, least, plan.synthesise_bytes.saturating_add(MAX_HEADER_BYTES))?;
    let file = header::read(objects, &key, MAX_HEADER_BYTES).await?;
    if file.file_len != object.size {
        return Err(Error::OtherSize { key, expected: object.size, found: file.file_len });
    }
    let shape = |name: &str| file.header.tensors.get(name).map(|info| info.shape.clone()).unwrap_or_default();
    let [prompts, tokens] = match shape("embeddings")[..] {
        [prompts, tokens, _] if (2..=samples + 1).contains(&prompts) => [prompts, tokens],
        // Of no shape that could be right; the check below says so.
        _ => [samples + 1, 1],
    };
    let channels = shape("embeddings").get(2).copied().unwrap_or(1);
    let mut expected = latents(plan, samples, |name| shape(name).first().copied().unwrap_or(0));
    expected.push(Expected::new("embeddings", Dtype::F16, [prompts, tokens, channels]));
    expected.push(Expected::new("prompts", Dtype::I64, [prompts]));
    if file.header.tensors.contains_key("attention_mask") {
        expected.push(Expected::new("attention_mask", Dtype::F16, [prompts, tokens]));
    }
    if let [_, width] = shape("pooled")[..] {
        expected.push(Expected::new("pooled", Dtype::F16, [prompts, width]));
    }
    exactly(&file.header, &expected).map_err(|source| Error::Tensors { key, source })
}

/// The latents with their prompts and, in a job with buckets, with each one's bucket; `rows` says how many a tensor of
/// latents has. Which bucket each is in is checked by whoever reads them.
fn latents(plan: &JobPlan, samples: usize, rows: impl Fn(&str) -> usize) -> Vec<Expected> {
    let buckets = buckets::of_job(plan);
    let mut expected = vec![Expected::new("prompt", Dtype::I64, [samples])];
    let mut left = samples;
    for (index, bucket) in buckets.iter().enumerate() {
        let name = buckets::tensor("latents", index, buckets.len());
        let (last, found) = (index + 1 == buckets.len(), rows(&name).min(left));
        // The last bucket has what is left.
        let rows = if last { left } else { found };
        left -= rows;
        if rows > 0 {
            let (height, width) = bucket.latent;
            expected.push(Expected::new(name, Dtype::F16, [rows, plan.latent_channels as usize, height, width]));
        }
    }
    if buckets.len() > 1 {
        expected.push(Expected::new("bucket", Dtype::I64, [samples]));
    }
    expected
}
