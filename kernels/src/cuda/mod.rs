//! The block and its training on NVIDIA GPUs; `kernels/README.md` says how the kernels work.

pub mod check;
mod forward;
mod fused;
mod gpu;
mod kept;
mod layout;
mod middle;
mod optimised;
mod pass;
mod product;
mod rows;
pub mod teacher;
mod tensor;
mod timing;
mod trainer;
mod weights;
mod within;

pub(crate) use forward::Forward;
pub use gpu::Gpu;
pub use rows::{DeviceMemory, HostMemory, Memory, Piece};
pub use timing::{StepTimes, Times, measure, measure_samples};
pub use trainer::{Batch, Precision, Trainer};
pub use within::Within;
