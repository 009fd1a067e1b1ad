//! candle tensors in and out.

use std::sync::Arc;

use candle_core::{DType, Device, Storage, Tensor, WithDType};
use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use half::{bf16, f16};

use super::gpu::{self, Address, Gpu, Grid, On, Source, failed, launch};
use super::pass::Pass;
use super::product::Type;
use super::weights::Weights;
use crate::error::{Error, Result};

/// A tensor that a step reads: as it is, or converted into a buffer of this value's own.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// What the step reads.
    pub(super) at: Address,
    converted: Option<CudaSlice<u8>>,
}

impl Input {
    /// Takes a checked tensor. Its address, or that of the converted values, stays the same for the same tensor.
    pub(super) fn take(&mut self, gpu: &Gpu, tensor: &Tensor, what: &'static str, kind: Type) -> Result<()> {
        let (kernel, source) = match (tensor.dtype(), kind) {
            (DType::F16, Type::Bf16) => ("f16_to_bf16", raw::<f16>(tensor, what)?),
            (DType::F16, Type::F32) => ("f16_to_f32", raw::<f16>(tensor, what)?),
            (DType::BF16, Type::F32) => ("bf16_to_f32", raw::<bf16>(tensor, what)?),
            _ => {
                self.at = address(tensor, what, kind)?;
                return Ok(());
            }
        };
        let length = tensor.elem_count();
        let bytes = length * kind.bytes();
        if self.converted.as_ref().is_none_or(|buffer| buffer.len() != bytes) {
            self.converted = Some(gpu.alloc(bytes)?);
        }
        let Some(buffer) = &self.converted else { return Ok(()) };
        self.at = gpu::address(buffer, &gpu.stream);
        // The buffer is what a captured step reads, so that one capture serves all tensors.
        let function = gpu.function(Source::Step, kernel)?;
        let (target, count) = (self.at, length as i64);
        // SAFETY: the buffer was made for that many values.
        unsafe { launch!(gpu, On::Main, function, Grid::over(length), [source, target, count]) }
    }

    /// Bytes of the buffer.
    pub(super) fn bytes(&self) -> usize {
        self.converted.as_ref().map_or(0, CudaSlice::len)
    }
}

/// The sizes [B, H, W] of a contiguous tensor [B, H, W, channels].
pub(super) fn size(tensor: &Tensor, what: &'static str, channels: usize) -> Result<[usize; 3]> {
    let refuse = |found: String, expected: &str| Err(Error::Tensor { what, found, expected: expected.to_owned() });
    if !tensor.is_contiguous() {
        return refuse("not contiguous".into(), "a contiguous tensor");
    }
    match *tensor.dims() {
        [batch, height, width, found] if found == channels => Ok([batch, height, width]),
        ref dims => refuse(format!("{dims:?}"), &format!("[B, H, W, {channels}]")),
    }
}

/// Where a tensor of the pass' type begins.
pub(super) fn address(tensor: &Tensor, what: &'static str, kind: Type) -> Result<Address> {
    match kind {
        Type::F32 => raw::<f32>(tensor, what),
        Type::Bf16 => raw::<bf16>(tensor, what),
    }
}

fn raw<T: candle_core::cuda_backend::CudaDType + DeviceRepr + WithDType>(
    tensor: &Tensor,
    what: &'static str,
) -> Result<Address> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(cuda) = &*storage else {
        return Err(Error::Tensor { what, found: "not on a CUDA device".into(), expected: "there".into() });
    };
    let slice = cuda.as_cuda_slice::<T>().map_err(|_| Error::Tensor {
        what,
        found: format!("{:?}", tensor.dtype()),
        expected: format!("{:?}", T::DTYPE),
    })?;
    let stream = cuda.device.cuda_stream();
    let (start, _sync) = slice.device_ptr(&stream);
    let start = start + (layout.start_offset() * size_of::<T>()) as u64;
    // The kernels load 16 bytes at once.
    if !start.is_multiple_of(16) {
        let found = format!("at the address {start:#x}");
        return Err(Error::Tensor { what, found, expected: "aligned to 16 bytes".into() });
    }
    Ok(start)
}

fn cuda_stream(tensor: &Tensor) -> Result<Arc<cudarc::driver::CudaStream>> {
    match tensor.device() {
        Device::Cuda(device) => Ok(device.cuda_stream()),
        other => Err(Error::Tensor { what: "x", found: format!("on {other:?}"), expected: "on a CUDA device".into() }),
    }
}

/// Lets the block's stream wait for what was started on the tensor's.
pub(super) fn wait_for(gpu: &Gpu, tensor: &Tensor) -> Result<()> {
    gpu.stream.join(&*cuda_stream(tensor)?).map_err(failed("waiting for a tensor"))
}

/// Lets the tensor's stream wait for what was started on the block's, so that its memory can be used again.
pub(super) fn release(gpu: &Gpu, tensor: &Tensor) -> Result<()> {
    cuda_stream(tensor)?.join(&gpu.stream).map_err(failed("releasing a tensor"))
}

/// A tensor with whatever its memory held.
pub(super) fn empty(dims: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    // SAFETY: the pass that it is made for writes all of it.
    unsafe { Tensor::empty(dims, dtype, device) }.map_err(|error| Error::of_candle("allocating a tensor", &error))
}

pub(super) fn dtype(kind: Type) -> DType {
    match kind {
        Type::F32 => DType::F32,
        Type::Bf16 => DType::BF16,
    }
}

/// The block's output for a checked tensor, in its dtype.
pub(super) fn through(gpu: &Gpu, pass: &mut Pass, weights: &Weights, x: &Tensor) -> Result<Tensor> {
    wait_for(gpu, x)?;
    let mut input = Input::default();
    input.take(gpu, x, "x", pass.kind)?;
    let y = empty(x.dims(), dtype(pass.kind), x.device())?;
    // The new tensor's memory may still be in use by what was freed on its stream.
    wait_for(gpu, &y)?;
    // SAFETY: both tensors have the pass' size.
    unsafe { pass.forward(weights, input.at, address(&y, "y", pass.kind)?)? };
    release(gpu, x)?;
    if x.dtype() == y.dtype() {
        return Ok(y);
    }
    y.to_dtype(x.dtype()).map_err(|error| Error::of_candle("converting the output", &error))
}
