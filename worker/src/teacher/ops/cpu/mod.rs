//! The operations on a processor, f32.
//!
//! candle's own are single-threaded or many times slower here (its conv2d and softmax above all). Every result is one
//! chain of fused multiply-adds in a fixed order, whatever the number of threads, the batch it is computed in, or the
//! vector width of the machine: two workers that capture the same sample write the same bytes.

mod activation;
mod attention;
mod attention_map;
mod conv;
mod embedding;
mod feed_forward;
mod group_norm;
mod join;
mod layer_norm;
mod linear;
mod product;
mod simd;
mod slices;

pub(super) use activation::{activate, activate_gelu_tanh};
pub(super) use attention::attention;
pub(in super::super) use attention::{Heads, Projected};
pub(crate) use attention_map::AttentionMap;
pub(in super::super) use attention_map::attention_maps;
pub(in super::super) use conv::Padding;
pub(super) use conv::{Added, Conv};
pub(super) use embedding::sinusoids;
pub(in super::super) use feed_forward::FeedForwardActivation;
pub(super) use feed_forward::{feed_forward, feed_forward_gradient};
pub(super) use group_norm::GroupNorm;
pub(super) use join::join_channels;
pub(super) use layer_norm::{LayerNorm, add_gated, modulated_norm, modulated_norm_gradient};
pub(super) use linear::Linear;
