//! The block as an operation of a candle model.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, DType, Error, Layout, Result, Shape};

use crate::cpu::{self, Workspace};
use crate::parameters::Parameters;

/// The block's forward pass on a contiguous f32 tensor `[B, H, W, C]`; the output has the same
/// shape. Clones share the parameters and the workspace. It has no backward pass: blocks are trained
/// by [`cpu::loss_and_gradient`].
#[derive(Debug, Clone)]
pub struct BlockOp {
    parameters: Arc<Parameters>,
    workspace: Arc<Mutex<Workspace>>,
}

impl BlockOp {
    /// The operation of a block with these weights.
    pub fn new(parameters: Arc<Parameters>) -> Self {
        Self { parameters, workspace: Arc::default() }
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
