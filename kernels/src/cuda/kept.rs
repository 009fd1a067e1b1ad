//! A training's state, put aside on the device.

use cudarc::driver::CudaSlice;

use super::gpu::{Gpu, failed};
use crate::error::Result;

/// Copies of weights, moments and average, of as many values each as those have.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) weights: CudaSlice<f32>,
    pub(super) m: CudaSlice<f32>,
    pub(super) v: CudaSlice<f32>,
    pub(super) ema: Option<CudaSlice<f32>>,
    /// Steps that were taken then.
    pub(super) steps: u64,
}

/// Copies on the main stream: after what runs there, and before what comes.
pub(super) fn copy(gpu: &Gpu, from: &CudaSlice<f32>, to: &mut CudaSlice<f32>) -> Result<()> {
    gpu.stream.memcpy_dtod(from, to).map_err(failed("copying on the device"))
}

/// A copy in memory of its own.
pub(super) fn copied(gpu: &Gpu, from: &CudaSlice<f32>) -> Result<CudaSlice<f32>> {
    gpu.stream.clone_dtod(from).map_err(failed("copying on the device"))
}
