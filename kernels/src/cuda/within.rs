//! A block in training within a model: gradients come from what follows it, and go on to what is before it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use cudarc::driver::{CudaSlice, result};

use super::gpu::{Gpu, address, failed};
use super::optimised::{Factors, Optimised, StepAt};
use super::pass::Pass;
use super::product::Type;
use super::tensor::{self, Input, View};
use super::trainer::Precision;
use crate::adamw::{AdamW, State};
use crate::error::{Error, Result};
use crate::parameters::Parameters;

/// A block on a device whose forward pass, way back and optimiser's step are taken one by one, each behind what was started
/// on the tensors' stream before. In f32 for f32 tensors, else with activations in bf16 and f32 sums and weights, as
/// [`Precision`] says.
#[derive(Debug)]
pub struct Within {
    gpu: Arc<Gpu>,
    trained: Optimised,
    kind: Type,
    sizes: HashMap<[usize; 3], OfSize>,
    /// That of the last forward pass.
    current: [usize; 3],
    /// Whether a backward pass left gradients that were not collected, and whether there are some that were.
    came_back: bool,
    collected: bool,
    at: StepAt,
    _factors: CudaSlice<u8>,
    _slot: CudaSlice<u8>,
}

#[derive(Debug)]
struct OfSize {
    pass: Pass,
    input: Input,
    gradient: Input,
}

impl Within {
    /// Puts a block with its optimiser's state on a device, for tensors of this dtype.
    ///
    /// # Errors
    /// A state of another shape; too little memory.
    pub fn new(gpu: &Arc<Gpu>, weights: &Parameters, optimiser: AdamW, state: &State, dtype: DType) -> Result<Self> {
        let precision = if dtype == DType::F32 { Precision::F32 } else { Precision::Bf16 };
        // One set of weights for all sizes.
        let kind = precision.kind(weights.shape(), [usize::MAX, 1, 1]);
        let factors = gpu.alloc(size_of::<Factors>())?;
        let slot = gpu.zeros(size_of::<i32>())?;
        let at = StepAt { factors: address(&factors, &gpu.stream), slot: address(&slot, &gpu.stream) };
        // SAFETY: the slot has that size, and pageable memory is copied before the call returns.
        unsafe { result::memcpy_htod_async(at.slot, &[1_i32], gpu.stream.cu_stream()) }
            .map_err(failed("setting a step's numbers"))?;
        let within = Self {
            trained: Optimised::new(gpu, weights, optimiser, state, kind)?,
            gpu: gpu.clone(),
            kind,
            sizes: HashMap::new(),
            current: [0; 3],
            came_back: false,
            collected: false,
            at,
            _factors: factors,
            _slot: slot,
        };
        // Gradients that are collected before the first step are scaled, too.
        within.set_step(0.0)?;
        Ok(within)
    }

    /// The block's output for x [B, H, W, C] of any batch and map, in x's dtype.
    ///
    /// # Errors
    /// A tensor of other channels, not contiguous, or not on the device; too little memory.
    pub fn forward(&mut self, x: &Tensor) -> Result<Tensor> {
        let gpu = self.gpu.clone();
        let view = View::new(x, "x")?;
        let size = view.size(self.trained.shape().channels())?;
        let OfSize { pass, input, .. } = match self.sizes.entry(size) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let pass = Pass::new(&gpu, self.trained.shape(), size, self.kind, true)?;
                entry.insert(OfSize { pass, input: Input::default(), gradient: Input::default() })
            }
        };
        self.current = size;
        let y = tensor::empty(x.dims(), tensor::dtype(self.kind), x.device())?;
        let y_at = View::new(&y, "y")?.address(self.kind)?;
        // After the allocation too: the new tensor's memory may be in use by what was freed on its stream.
        view.wait(&gpu)?;
        input.take(&gpu, &view, self.kind)?;
        // SAFETY: both tensors have the pass' size.
        unsafe { pass.forward(&self.trained.weights, input.at, y_at)? };
        view.release(&gpu)?;
        as_dtype(y, x.dtype())
    }

    /// The gradient of `x`, which must be what the last forward pass was given, from that of its output, both [B, H, W, C] in
    /// x's dtype. The weights' gradients stay on the device for [`Self::collect`].
    ///
    /// # Errors
    /// Tensors of another size; too little memory.
    pub fn backward(&mut self, x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let gpu = self.gpu.clone();
        let (view, of_y) = (View::new(x, "x")?, View::new(gradient, "gradient")?);
        let channels = self.trained.shape().channels();
        for (view, what) in [(&view, "x"), (&of_y, "gradient")] {
            let size = view.size(channels)?;
            if size != self.current {
                let (found, expected) = (format!("{size:?}"), format!("{:?}", self.current));
                return Err(Error::Tensor { what, found, expected });
            }
        }
        let Some(OfSize { pass, input, gradient: taken }) = self.sizes.get_mut(&self.current) else {
            return Err(Error::TooEarly("the way back of a pass"));
        };
        let found = tensor::empty(x.dims(), tensor::dtype(self.kind), x.device())?;
        let found_at = View::new(&found, "x_gradient")?.address(self.kind)?;
        view.wait(&gpu)?;
        taken.take(&gpu, &of_y, self.kind)?;
        // SAFETY: all tensors have the pass' size, and x is still where the forward pass, or a conversion before it, had it.
        unsafe {
            pass.take_gradient(taken.at)?;
            pass.backward(&self.trained.weights, input.at)?;
            pass.input_gradient(&self.trained.weights, 1.0, found_at)?;
        }
        view.release(&gpu)?;
        self.came_back = true;
        as_dtype(found, x.dtype())
    }

    /// Adds the weights' gradients that [`Self::backward`] left to those of the step so far.
    ///
    /// # Errors
    /// A failure of the device; no backward pass since the last call.
    pub fn collect(&mut self) -> Result<()> {
        let Some(OfSize { pass, .. }) = self.sizes.get(&self.current).filter(|_| self.came_back) else {
            return Err(Error::TooEarly("a pass' gradient"));
        };
        self.trained.collect(pass.arena(&self.trained.weights), self.at, self.collected)?;
        (self.came_back, self.collected) = (false, true);
        Ok(())
    }

    /// The optimiser's step with learning rate `lr` on the gradients that were collected since the last one.
    ///
    /// # Errors
    /// A failure of the device; no gradients.
    pub fn update(&mut self, lr: f64) -> Result<()> {
        if !self.collected {
            return Err(Error::TooEarly("a step's gradient"));
        }
        self.set_step(lr)?;
        self.trained.apply(self.trained.weights.arena, self.at, true)?;
        self.trained.steps += 1;
        self.collected = false;
        Ok(())
    }

    /// The weights' gradients that were collected since the last step. Waits for them.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn gradients(&self) -> Result<Parameters> {
        self.trained.gradients()
    }

    /// Sets the numbers of the next step.
    fn set_step(&self, lr: f64) -> Result<()> {
        let factors = Factors::new(&self.trained.optimiser, lr, self.trained.steps + 1, 1.0);
        self.gpu.context.bind_to_thread().map_err(failed("setting a step's numbers"))?;
        // SAFETY: the buffer has the struct's size, and pageable memory is copied before the call returns.
        unsafe {
            result::memcpy_htod_async(self.at.factors, std::slice::from_ref(&factors), self.gpu.stream.cu_stream())
        }
        .map_err(failed("setting a step's numbers"))
    }

    /// What becomes the block: the weights' moving average where one is kept, else the weights. Waits for the steps.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn block(&self) -> Result<Parameters> {
        self.trained.block()
    }

    /// Keeps a copy of the weights and the optimiser's state on the device, beside the one that was kept last.
    ///
    /// # Errors
    /// Too little memory.
    pub fn keep(&mut self) -> Result<()> {
        self.trained.keep()
    }

    /// Takes the weights and the optimiser's state of the older copy that is kept; steps count on, and that copy is the only
    /// one then. Without any, nothing changes.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn go_back(&mut self) -> Result<()> {
        self.trained.go_back()
    }

    /// The weights and the optimiser's state. Waits for the steps.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn download(&self) -> Result<(Parameters, State)> {
        self.trained.download()
    }

    /// The weights and the optimiser's state of the copies that are kept, the older one first, with the steps that were taken
    /// then. Waits for the steps.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn kept(&self) -> Result<Vec<(Parameters, State)>> {
        self.trained.kept()
    }

    /// Keeps copies that [`Self::kept`] gave, of a block that this one goes on for, instead of any.
    ///
    /// # Errors
    /// Arenas of another shape, or too little memory.
    pub fn keep_again(&mut self, kept: &[(Parameters, State)]) -> Result<()> {
        self.trained.keep_again(kept)
    }
}

fn as_dtype(tensor: Tensor, dtype: DType) -> Result<Tensor> {
    if tensor.dtype() == dtype {
        return Ok(tensor);
    }
    let bytes = tensor.elem_count() * dtype.size_in_bytes();
    tensor.to_dtype(dtype).map_err(|error| Error::of_candle("converting a tensor", bytes, &error))
}
