//! A teacher's forward pass on a device: norms, convolutions, attention and activations over maps that are channels last,
//! in f32, bf16 or f16 (sums and statistics are f32), the way back to what went in, and what copies activations to the host
//! meanwhile.
//!
//! candle's own run a convolution through an NCHW copy of its map, hold the scores of attention in memory, and take an
//! operation for each step of a norm. `kernels/README.md` says how these work.

mod attention;
mod conv;
mod difference;
mod download;
mod linear;
mod norm;
mod pointwise;
mod queue;

pub use attention::{Heads, Projected, attention, query_gradient};
pub use conv::{Added, Conv, ConvShape};
pub use difference::{mean_square, relative_error, relative_error_gradient};
pub use download::Download;
pub use linear::Linear;
pub use norm::{GroupNorm, LayerNorm, Row, add_gated, gated, modulated_norm, modulated_norm_gradient};
pub use pointwise::{Activation, activate, activation_gradient, add, geglu, geglu_gradient, join_channels};
pub use queue::Queue;
