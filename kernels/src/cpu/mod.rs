//! The block on the CPU: forward, and the mean squared error with its gradients.
//!
//! Maps are f32 slices `[B, H, W, C]`, channels last, without gaps. One thread takes one sample
//! through the whole block and back while its maps are still in the cache; rayon's current pool runs
//! as many samples at a time as it has threads. Which samples share a partial sum of the weights'
//! gradients depends on the shapes alone, and the partial sums are added in their order, so results
//! are the same bits for any number of threads. The instruction set (AVX-512, AVX2 with FMA, or what
//! every processor has) is chosen at run time; results are the same bits only within one of them.

mod block;
mod cholesky;
mod correlate;
mod depthwise;
mod gate;
mod grouped;
pub(crate) mod instruction_set;
pub(crate) mod lanes;
mod linear;
mod pool;
mod product;
mod resize;
mod ridge;
mod sample;
mod sums;
mod weights;
mod workspace;

pub use block::{Target, features, forward, gradient, loss_and_gradient};
pub use ridge::{Aim, Ridge};
pub use workspace::Workspace;
