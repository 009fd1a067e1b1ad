//! From candle tensors to slices and back.

use candle_core::{CpuStorage, Device, Result, Storage, Tensor, bail};

/// Calls `f` with the elements of each tensor, which must be f32, contiguous and in host memory.
pub(super) fn with_slices<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> Result<R>,
) -> Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut slices = [&[][..]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let Storage::Cpu(CpuStorage::F32(elements)) = &**storage else {
            bail!("the teacher's operations take f32 tensors in host memory");
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("the teacher's operations take contiguous tensors, not strides {:?}", layout.stride());
        };
        *slice = &elements[start..end];
    }
    f(slices)
}

/// A tensor in host memory.
pub(super) fn tensor(elements: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(elements, shape, &Device::Cpu)
}
