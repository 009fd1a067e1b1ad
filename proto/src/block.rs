//! The tensors of a layer's block, under their published names (arXiv 2504.21292).

use crate::v1::LayerPlan;

/// The gate of UNets, a · b · √(d/2).
pub const SCALED: &str = "scaled";
/// The gate of PixArt, a · sigmoid(b).
pub const SIGMOID: &str = "sigmoid";

/// Where a block's tensors stand in a converted model: behind `<layer>.conv1.`, with which this replaces `<layer>.attn1.`.
pub fn prefix(layer: &str) -> String {
    format!("{layer}.conv1.")
}

/// Where the tensors of the attention that a block replaces stand in the teacher.
pub fn replaced_prefix(layer: &str) -> String {
    format!("{layer}.attn1.")
}

/// Inner width d of a block of `channels` channels.
pub fn inner(channels: u32, inter_ratio: f64) -> usize {
    (f64::from(channels) * inter_ratio) as usize
}

/// Every tensor of the layer's block in the order in which it is stored, without [`prefix`], with its shape. All are f32.
pub fn tensors(layer: &LayerPlan) -> Vec<(String, Vec<usize>)> {
    let channels = layer.channels as usize;
    let inner = inner(layer.channels, layer.inter_ratio);
    let kernel = layer.kernel_size as usize;
    let mut tensors =
        vec![("conv_up.weight".to_owned(), vec![inner, channels]), ("conv_up.bias".to_owned(), vec![inner])];
    for scale in 0..layer.scales.len() {
        tensors.push((format!("gates.{scale}.conv_spatial.weight"), vec![kernel, kernel, inner]));
    }
    tensors.extend([
        ("conv_out.weight".to_owned(), vec![channels, layer.scales.len().saturating_mul(inner) / 2]),
        ("conv_out.bias".to_owned(), vec![channels]),
        ("conv_pool.weight".to_owned(), vec![channels, channels]),
        ("conv_pool.bias".to_owned(), vec![channels]),
    ]);
    tensors
}

/// The number of a block's parameters; what can't be counted stays at the largest number.
pub fn parameters(layer: &LayerPlan) -> u64 {
    let numbers = |shape: &[usize]| shape.iter().fold(1, |all: u64, n| all.saturating_mul(*n as u64));
    tensors(layer).iter().map(|(_, shape)| numbers(shape)).fold(0, u64::saturating_add)
}
