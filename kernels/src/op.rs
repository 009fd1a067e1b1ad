//! The block as an operation of a candle model.

#[cfg(feature = "cuda")]
use std::collections::HashMap;
#[cfg(feature = "cuda")]
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
#[cfg(feature = "cuda")]
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Error, Layout, Result, Shape};

use crate::cpu::{self, Workspace};
#[cfg(feature = "cuda")]
use crate::cuda::{Forward, Gpu};
use crate::parameters::Parameters;

/// The block's forward pass on a contiguous tensor `[B, H, W, C]`; the output has the same shape and dtype. On the CPU
/// tensors are f32; on a CUDA device they may be f32, bf16 or f16, and the block is computed in f32 for the first and in
/// bf16 for the others. Clones share the parameters and the workspace. It has no backward pass: blocks are trained by
/// [`cpu::loss_and_gradient`] and by `cuda::Trainer`.
#[derive(Debug, Clone)]
pub struct BlockOp {
    parameters: Arc<Parameters>,
    workspace: Arc<Mutex<Workspace>>,
    /// The block on the devices that it was called on, by their number and the tensors' dtype.
    #[cfg(feature = "cuda")]
    devices: Arc<Mutex<HashMap<(usize, DType), Forward>>>,
}

impl BlockOp {
    /// The operation of a block with these weights.
    pub fn new(parameters: Arc<Parameters>) -> Self {
        Self {
            parameters,
            workspace: Arc::default(),
            #[cfg(feature = "cuda")]
            devices: Arc::default(),
        }
    }

    /// The block's weights.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

impl CustomOp1 for BlockOp {
    fn name(&self) -> &'static str {
        "delta-conv-block"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let CpuStorage::F32(values) = storage else {
            return Err(Error::UnsupportedDTypeForOp(storage_dtype(storage), self.name()));
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(Error::RequiresContiguous { op: self.name() });
        };
        let (batch, height, width, channels) = layout.shape().dims4()?;
        let shape = self.parameters.shape();
        if channels != shape.channels() {
            candle_core::bail!("{}: {channels} channels given to a block of {}", self.name(), shape.channels());
        }
        let mut output = vec![0.0; end - start];
        // A panic elsewhere leaves stale values only, and every pass writes what it reads.
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        cpu::forward(shape, &self.parameters, &values[start..end], [batch, height, width], &mut output, &mut workspace)
            .map_err(Error::wrap)?;
        Ok((CpuStorage::F32(output), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let ordinal = storage.device().cuda_stream().context().ordinal();
        let dtype = storage.dtype();
        // A panic elsewhere leaves a block that was not added.
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let forward = match devices.entry((ordinal, dtype)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let forward = Gpu::open(ordinal).and_then(|gpu| Forward::new(&gpu, &self.parameters, dtype));
                entry.insert(forward.map_err(Error::wrap)?)
            }
        };
        let output = forward.run(storage, layout).map_err(Error::wrap)?;
        Ok((output, layout.shape().clone()))
    }
}

fn storage_dtype(storage: &CpuStorage) -> DType {
    candle_core::backend::BackendStorage::dtype(storage)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::{BlockShape, Gate};

    #[test]
    fn a_tensor_goes_through_the_block() {
        let shape = BlockShape::new(8, 0.5, 3, vec![1.0, 0.5], Gate::Scaled).unwrap();
        let mut parameters = Parameters::zeros(&shape);
        for (index, value) in parameters.values_mut().iter_mut().enumerate() {
            *value = (index as f32 * 0.37).sin();
        }
        let op = BlockOp::new(Arc::new(parameters));
        let x: Vec<f32> = (0..2 * 5 * 4 * 8).map(|i| (i as f32 * 0.11).cos()).collect();
        let tensor = Tensor::from_slice(&x, (2, 5, 4, 8), &Device::Cpu).unwrap();
        let y = tensor.apply_op1_no_bwd(&op).unwrap();
        let mut expected = vec![0.0; x.len()];
        let mut workspace = Workspace::default();
        cpu::forward(&shape, op.parameters(), &x, [2, 5, 4], &mut expected, &mut workspace).unwrap();
        assert_eq!(y.dims(), [2, 5, 4, 8]);
        assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);

        let second = tensor.narrow(0, 1, 1).unwrap().apply_op1_no_bwd(&op).unwrap();
        assert_eq!(second.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected[160..]);
        assert!(tensor.transpose(1, 2).unwrap().apply_op1_no_bwd(&op).is_err());
        assert!(tensor.to_dtype(DType::F64).unwrap().apply_op1_no_bwd(&op).is_err());
        assert!(tensor.reshape((2, 5, 2, 16)).unwrap().apply_op1_no_bwd(&op).is_err());
    }
}
