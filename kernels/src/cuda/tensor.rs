//! candle tensors in and out.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Layout, Storage, Tensor};
use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr};
use half::{bf16, f16};

use super::gpu::{self, Address, Gpu, Grid, On, Source, failed, launch};
use super::product::Type;
use crate::error::{Error, Result};

/// A contiguous tensor on a device, as the kernels see it. It keeps nothing alive.
#[derive(Debug)]
pub(super) struct View {
    what: &'static str,
    pub(super) at: Address,
    pub(super) dtype: DType,
    pub(super) dims: Vec<usize>,
    /// candle's, on which the tensor is made and freed.
    stream: Arc<CudaStream>,
}

impl View {
    /// `what` names the tensor in errors.
    pub(super) fn new(tensor: &Tensor, what: &'static str) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            return Err(Error::Tensor { what, found: "not on a CUDA device".into(), expected: "there".into() });
        };
        Self::of_storage(storage, layout, what)
    }

    pub(super) fn of_storage(storage: &CudaStorage, layout: &Layout, what: &'static str) -> Result<Self> {
        let refuse = |found: String, expected: &str| Error::Tensor { what, found, expected: expected.to_owned() };
        if !layout.is_contiguous() {
            return Err(refuse("not contiguous".into(), "a contiguous tensor"));
        }
        let dtype = storage.dtype();
        let stream = storage.device().cuda_stream();
        let start = match dtype {
            DType::F32 => start::<f32>(storage, &stream),
            DType::BF16 => start::<bf16>(storage, &stream),
            DType::F16 => start::<f16>(storage, &stream),
            other => return Err(refuse(format!("{other:?}"), "F32, BF16 or F16")),
        };
        let start = start.ok_or_else(|| refuse("of another dtype than it says".into(), "a plain tensor"))?;
        let at = start + (layout.start_offset() * dtype.size_in_bytes()) as u64;
        // The kernels load 16 bytes at once.
        if !at.is_multiple_of(16) {
            return Err(refuse(format!("at the address {at:#x}"), "aligned to 16 bytes"));
        }
        Ok(Self { what, at, dtype, dims: layout.dims().to_vec(), stream })
    }

    /// [B, H, W] of a tensor [B, H, W, `channels`].
    pub(super) fn size(&self, channels: usize) -> Result<[usize; 3]> {
        match *self.dims {
            [batch, height, width, found] if found == channels => Ok([batch, height, width]),
            ref dims => {
                let (found, expected) = (format!("{dims:?}"), format!("[B, H, W, {channels}]"));
                Err(Error::Tensor { what: self.what, found, expected })
            }
        }
    }

    /// Where the values begin, which must be of that type.
    pub(super) fn address(&self, kind: Type) -> Result<Address> {
        if self.dtype == dtype(kind) {
            return Ok(self.at);
        }
        let (found, expected) = (format!("{:?}", self.dtype), format!("{:?}", dtype(kind)));
        Err(Error::Tensor { what: self.what, found, expected })
    }

    fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Lets the block's stream wait for what was started on the tensor's.
    pub(super) fn wait(&self, gpu: &Gpu) -> Result<()> {
        gpu.stream.join(&self.stream).map_err(failed("waiting for a tensor"))
    }

    /// Lets the tensor's stream wait for what was started on the block's, so that its memory can be used again.
    pub(super) fn release(&self, gpu: &Gpu) -> Result<()> {
        self.stream.join(&gpu.stream).map_err(failed("releasing a tensor"))
    }
}

fn start<T: CudaDType + DeviceRepr>(storage: &CudaStorage, stream: &CudaStream) -> Option<Address> {
    storage.as_cuda_slice::<T>().ok().map(|slice| gpu::address(slice, stream))
}

/// A tensor that a step reads: as it is, or converted into a buffer of this value's own.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// What the step reads.
    pub(super) at: Address,
    converted: Option<CudaSlice<u8>>,
}

impl Input {
    /// Takes a tensor. Its address, or that of the converted values, stays the same for the same tensor.
    pub(super) fn take(&mut self, gpu: &Gpu, view: &View, kind: Type) -> Result<()> {
        let kernel = match (view.dtype, kind) {
            (DType::F16, Type::Bf16) => "f16_to_bf16",
            (DType::F16, Type::F32) => "f16_to_f32",
            (DType::BF16, Type::F32) => "bf16_to_f32",
            _ => {
                self.at = view.address(kind)?;
                return Ok(());
            }
        };
        let length = view.len();
        let bytes = length * kind.bytes();
        if self.converted.as_ref().is_none_or(|buffer| buffer.len() != bytes) {
            self.converted = Some(gpu.alloc(bytes)?);
        }
        let Some(buffer) = &self.converted else { return Ok(()) };
        self.at = gpu::address(buffer, &gpu.stream);
        // The buffer is what a captured step reads, so that one capture serves all tensors.
        let function = gpu.function(Source::Step, kernel)?;
        let (source, target, count) = (view.at, self.at, length as i64);
        // SAFETY: the buffer was made for that many values.
        unsafe { launch!(gpu, On::Main, function, Grid::over(length), [source, target, count]) }
    }

    /// Bytes of the buffer.
    pub(super) fn bytes(&self) -> usize {
        self.converted.as_ref().map_or(0, CudaSlice::len)
    }
}

/// A tensor with whatever its memory held.
pub(super) fn empty(dims: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    let bytes = dims.iter().product::<usize>() * dtype.size_in_bytes();
    // SAFETY: the pass that it is made for writes all of it.
    unsafe { Tensor::empty(dims, dtype, device) }
        .map_err(|error| Error::of_candle("allocating a tensor", bytes, &error))
}

/// As [`empty`], without a tensor around it.
pub(super) fn empty_storage(length: usize, kind: Type, device: &CudaDevice) -> Result<CudaStorage> {
    // SAFETY: the pass that it is made for writes all of it.
    let storage = unsafe {
        match kind {
            Type::F32 => device.alloc::<f32>(length).map(|slice| CudaStorage::wrap_cuda_slice(slice, device.clone())),
            Type::Bf16 => device.alloc::<bf16>(length).map(|slice| CudaStorage::wrap_cuda_slice(slice, device.clone())),
            Type::F16 => device.alloc::<f16>(length).map(|slice| CudaStorage::wrap_cuda_slice(slice, device.clone())),
        }
    };
    storage.map_err(|error| Error::of_candle("allocating a tensor", length * kind.bytes(), &error))
}

pub(super) fn dtype(kind: Type) -> DType {
    match kind {
        Type::F32 => DType::F32,
        Type::Bf16 => DType::BF16,
        Type::F16 => DType::F16,
    }
}
