//! The block's forward pass alone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout};

use super::gpu::Gpu;
use super::pass::Pass;
use super::product::Type;
use super::tensor::{self, Input, View};
use super::trainer::Precision;
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::parameters::Parameters;
use crate::shape::BlockShape;

/// Passes for the sizes that were asked for, each with its buffers.
#[derive(Debug)]
pub(super) struct Passes {
    gpu: Arc<Gpu>,
    shape: BlockShape,
    kind: Type,
    by_size: HashMap<[usize; 3], Pass>,
}

impl Passes {
    pub(super) fn new(gpu: &Arc<Gpu>, shape: &BlockShape, kind: Type) -> Self {
        Self { gpu: gpu.clone(), shape: shape.clone(), kind, by_size: HashMap::new() }
    }

    /// The block's output for a tensor [B, H, W, C], in its dtype.
    pub(super) fn run(&mut self, weights: &Weights, storage: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
        let Self { gpu, shape, kind, by_size } = self;
        let x = View::of_storage(storage, layout, "x")?;
        let size = x.size(shape.channels())?;
        let pass = match by_size.entry(size) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Pass::new(gpu, shape, size, *kind, false)?),
        };
        // What a step of the same size would have converted is in another buffer: a graph may still read it.
        let mut input = Input::default();
        let output = tensor::empty_storage(layout.shape().elem_count(), *kind, storage.device())?;
        let whole = Layout::contiguous(layout.shape());
        let y = View::of_storage(&output, &whole, "y")?;
        // After the allocation too: the new tensor's memory may be in use by what was freed on its stream.
        x.wait(gpu)?;
        input.take(gpu, &x, *kind)?;
        // SAFETY: both tensors have the pass' size.
        unsafe { pass.forward(weights, input.at, y.address(*kind)?)? };
        x.release(gpu)?;
        if storage.dtype() == output.dtype() {
            return Ok(output);
        }
        let bytes = layout.shape().elem_count() * storage.dtype().size_in_bytes();
        let converted = output.to_dtype(&whole, storage.dtype());
        converted.map_err(|error| Error::of_candle("converting the output", bytes, &error))
    }
}

/// A block's weights on a device with what its forward pass needs there.
#[derive(Debug)]
pub(crate) struct Forward {
    weights: Weights,
    passes: Passes,
}

impl Forward {
    /// A block for tensors of this dtype.
    pub(crate) fn new(gpu: &Arc<Gpu>, parameters: &Parameters, dtype: DType) -> Result<Self> {
        let precision = if dtype == DType::F32 { Precision::F32 } else { Precision::Bf16 };
        let shape = parameters.shape();
        // One set of weights for all sizes: outputs, unlike gradients, are sums over channels alone.
        let kind = precision.kind(shape, [usize::MAX, 1, 1]);
        Ok(Self { weights: Weights::new(gpu, parameters, kind)?, passes: Passes::new(gpu, shape, kind) })
    }

    /// The block's output for a tensor [B, H, W, C], in its dtype.
    pub(crate) fn run(&mut self, storage: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
        self.passes.run(&self.weights, storage, layout)
    }
}
