//! The ΔConvBlock and its operations, forward and backward, and the optimiser that trains it.
//!
//! The block (arXiv 2504.21292) replaces one self-attention layer. For `x` `[B, H, W, C]`, channels
//! last, `d = C · inter_ratio`, scales `s` of which the first is 1, and an odd kernel size K:
//!
//! ```text
//! h   = conv_up(x)                              linear C → d
//! h_s = h, or adaptive average pooling to (⌊H·s⌋, ⌊W·s⌋)
//! g_s = depthwise_s(h_s)                        K×K, zero padding
//! a,b = the halves of g_s's channels
//! p_s = a · b · √(d/2)   or   a · sigmoid(b)
//! p_s = bilinear(p_s, H×W)
//! y   = conv_out(concat p_s) + conv_pool(mean over H,W of x)
//! ```
//!
//! Everything is f32. [`cpu`] computes the block and the gradients of a loss on
//! plain slices, [`AdamW`] takes the step, and [`BlockOp`] makes the forward pass an operation of a
//! candle model. Results are the same bits for any number of threads.

pub mod adamw;
pub mod bench;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
mod loss;
mod op;
mod parameters;
mod shape;

pub use adamw::AdamW;
pub use error::{Error, Result};
pub use loss::Loss;
pub use op::BlockOp;
pub use parameters::Parameters;
pub use shape::{BlockShape, Gate, TensorShape};
