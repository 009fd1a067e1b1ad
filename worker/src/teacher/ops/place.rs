use candle_core::{DType, Device, Tensor};

use super::super::Error;

/// Where a model is held and computed, and in what.
#[derive(Debug, Clone)]
pub struct Place {
    device: Device,
    dtype: DType,
}

impl Default for Place {
    fn default() -> Self {
        Self { device: Device::Cpu, dtype: DType::F32 }
    }
}

impl Place {
    /// On a CUDA device, in f32, bf16 or f16.
    #[cfg(feature = "cuda")]
    pub fn cuda(device: &Device, dtype: DType) -> Self {
        Self { device: device.clone(), dtype }
    }

    /// The dtype of the model's maps.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device of the model's maps.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A tensor as an operation here takes it: contiguous, of the dtype.
    pub(crate) fn take(&self, tensor: &Tensor) -> Result<Tensor, Error> {
        #[cfg(feature = "cuda")]
        if let Some(queue) = self.queue()?
            && tensor.device().is_cpu()
        {
            return Ok(queue.send(&tensor.to_dtype(DType::F32)?.contiguous()?, self.dtype)?);
        }
        Ok(tensor.to_device(&self.device)?.to_dtype(self.dtype)?.contiguous()?)
    }

    /// A tensor of numbers that stay f32 whatever the dtype.
    pub(in super::super) fn f32(&self, values: Vec<f32>, dims: &[usize]) -> Result<Tensor, Error> {
        Ok(Tensor::from_vec(values, dims, &self.device)?)
    }

    /// None on the processor.
    #[cfg(feature = "cuda")]
    pub(super) fn queue(&self) -> Result<Option<std::sync::Arc<super::cuda::Queue>>, Error> {
        match self.device {
            Device::Cuda(_) => Ok(Some(super::cuda::Queue::of(&self.device)?)),
            _ => Ok(None),
        }
    }
}
