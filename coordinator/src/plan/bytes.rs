//! How many bytes a job will write, estimated before it starts.

use deltaconv_proto::block;
use deltaconv_proto::v1::{JobSpec, LayerPlan};
use deltaconv_proto::weights::Files;

use super::{capture_ranges, layers};

/// Header of a shard or a block.
const HEADER_BYTES: u64 = 512;
/// Weights, their moving average, and AdamW's two moments.
const CHECKPOINT_COPIES: u64 = 4;

/// Bytes of all shards: input and output of every layer and sample.
pub(super) fn capture(spec: &JobSpec, layers: &[LayerPlan]) -> u64 {
    let ranges = capture_ranges(spec);
    let samples: u64 = ranges.iter().map(|range| u64::from(range.end - range.start)).sum();
    let of_layer = |layer| samples.saturating_mul(layers::sample_bytes(layer)) + ranges.len() as u64 * HEADER_BYTES;
    layers.iter().map(of_layer).fold(0, u64::saturating_add)
}

/// Bytes of one checkpoint of every layer: what stands while all of them train.
pub(super) fn checkpoint(layers: &[LayerPlan]) -> u64 {
    layers.iter().map(|layer| CHECKPOINT_COPIES * blocks(std::slice::from_ref(layer))).sum()
}

/// Bytes of the converted model's denoiser and of the blocks alone.
pub(super) fn output(teacher: &Files, layers: &[LayerPlan]) -> u64 {
    let replaced: Vec<String> = layers.iter().map(|layer| block::replaced_prefix(&layer.name)).collect();
    let frozen = teacher.tensors().filter(|(name, _)| !replaced.iter().any(|prefix| name.starts_with(prefix)));
    let frozen: u64 = frozen.map(|(_, tensor)| tensor.end - tensor.start).sum();
    let headers: u64 = teacher.files.iter().map(|file| file.header.header_len).sum();
    headers + frozen + 2 * blocks(layers)
}

fn blocks(layers: &[LayerPlan]) -> u64 {
    layers.iter().map(|layer| layer.parameters * 4 + HEADER_BYTES).sum()
}
