//! A block in training on a device.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::op::BackpropOp;
use candle_core::{Device, Storage, Tensor};
use cudarc::driver::{CudaEvent, CudaGraph, CudaSlice, CudaStream, result};

use super::forward::Passes;
use super::gpu::{Address, Gpu, address, failed};
use super::optimised::{Factors, Optimised, StepAt};
use super::pass::{Given, Pass};
use super::product::Type;
use super::rows::{Piece, Slot};
use super::tensor::{self, Input, View};
use crate::adamw::{AdamW, State};
use crate::error::{Error, Result};
use crate::loss::Loss;
use crate::parameters::Parameters;
use crate::shape::BlockShape;

/// What a step reads: tensors, or pieces of them.
#[derive(Debug)]
pub struct Batch<'a, T: ?Sized> {
    /// The block's input, [B, H, W, C].
    pub x: &'a T,
    /// What its output should be, [B, H, W, C].
    pub target: &'a T,
    /// What the model multiplies each channel of each sample's output by, [B, 1, 1, C], where it does.
    pub gates: Option<&'a T>,
}

impl<T: ?Sized> Clone for Batch<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for Batch<'_, T> {}

/// Losses that wait on the device to be read.
const SLOTS: usize = 1024;
/// Captured steps that are kept of each size, each for its pair of input addresses.
const GRAPHS: usize = 8;
/// Channels below which a block is computed in f32, and positions of a batch.
const NARROW: usize = 48;
const SMALL: usize = 64;
/// In what the activations between the kernels are kept. Weights, sums, gates and the optimiser are f32 in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32 throughout, without the tensor cores' reduced forms.
    F32,
    /// bf16, which has f32's range: nothing overflows that would not in f32. f16 tensors are converted to it. Blocks of
    /// fewer than 48 channels, and batches of fewer than 64 positions, are computed in f32 all the same.
    Bf16,
}

impl Precision {
    /// What a block of this shape is computed in, over batches of so many positions: narrow and small ones in f32
    /// always, since over few values the roundings of bf16 don't average out, and they cost next to nothing.
    pub(super) fn kind(self, shape: &BlockShape, size: [usize; 3]) -> Type {
        match self {
            Self::Bf16 if shape.channels() >= NARROW && size.iter().product::<usize>() >= SMALL => Type::Bf16,
            Self::F32 | Self::Bf16 => Type::F32,
        }
    }
}

/// Trains one block on one device by batches of one size, or of several. A step is captured once for each pair of input
/// addresses and replayed, so that its kernels follow each other without the host.
///
/// Steps are started and not waited for: [`Trainer::losses`] and [`Trainer::download`] wait, and report what failed.
/// A step's tensors are kept alive until the next step has been started, so that neither stream waits for the other
/// between two steps.
pub struct Trainer {
    gpu: Arc<Gpu>,
    trained: Optimised,
    loss: Loss,
    /// At least one, all of one type.
    sizes: Vec<OfSize>,
    /// That of the last step.
    current: usize,
    /// For [`Trainer::forward`].
    forward: Passes,
    losses: CudaSlice<f64>,
    _factors: CudaSlice<u8>,
    _slot: CudaSlice<u8>,
    at: Addresses,
    /// That of the step that is started.
    batch: Given,
    /// Where batches in pieces are collected.
    feed: Arc<CudaStream>,
    last: Option<Held>,
    /// Steps whose losses lie on the device, which counts them too.
    waiting: usize,
    losses_read: Vec<f64>,
}

/// What steps on batches of one size need for themselves.
struct OfSize {
    pass: Pass,
    input: Input,
    target: Input,
    gates: Input,
    /// For batches in pieces, by turns.
    slots: [Slot; 2],
    graphs: HashMap<Given, CudaGraph>,
}

/// A step's tensors, and when it ended.
struct Held {
    x: Tensor,
    _others: [Option<Tensor>; 2],
    ended: CudaEvent,
}

/// Where the trainer's own buffers lie; 0 where there is none.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    /// [`SLOTS`] of each.
    losses: Address,
    factors: Address,
    /// How many of them were used.
    slot: Address,
}

impl Addresses {
    fn step(self) -> StepAt {
        StepAt { factors: self.factors, slot: self.slot }
    }
}

// SAFETY: a graph may be used from any thread, by one at a time, which `&mut` is for; the rest is Send by itself.
unsafe impl Send for Trainer {}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer").field("pass", self.pass()).field("steps", &self.steps()).finish_non_exhaustive()
    }
}

impl Trainer {
    /// Puts a block with its optimiser's state on a device, for batches of these sizes `[B, H, W]`, at least one.
    pub fn new(
        gpu: &Arc<Gpu>,
        weights: &Parameters,
        optimiser: AdamW,
        state: &State,
        sizes: &[[usize; 3]],
        precision: Precision,
    ) -> Result<Self> {
        let shape = weights.shape();
        let smallest = sizes.iter().min_by_key(|size| size.iter().product::<usize>()).ok_or(Error::EmptyBatch)?;
        let kind = precision.kind(shape, *smallest);
        let of_size = |size: &[usize; 3]| -> Result<OfSize> {
            let pass = Pass::new(gpu, shape, *size, kind, true)?;
            let (input, target, gates) = Default::default();
            Ok(OfSize { pass, input, target, gates, slots: Default::default(), graphs: HashMap::new() })
        };
        let sizes = sizes.iter().map(of_size).collect::<Result<_>>()?;
        let zeros = |length: usize| gpu.stream.alloc_zeros::<f64>(length).map_err(failed("allocating memory"));
        let (losses, factors) = (zeros(SLOTS)?, gpu.alloc(SLOTS * size_of::<Factors>())?);
        let slot = gpu.zeros(size_of::<i32>())?;
        let stream = &gpu.stream;
        let at = Addresses {
            losses: address(&losses, stream),
            factors: address(&factors, stream),
            slot: address(&slot, stream),
        };
        Ok(Self {
            trained: Optimised::new(gpu, weights, optimiser, state, kind)?,
            loss: Loss::default(),
            forward: Passes::new(gpu, shape, kind),
            losses,
            _factors: factors,
            _slot: slot,
            at,
            batch: Given::default(),
            feed: gpu.context.new_stream().map_err(failed("opening a stream"))?,
            last: None,
            waiting: 0,
            losses_read: Vec::new(),
            gpu: gpu.clone(),
            sizes,
            current: 0,
        })
    }

    /// With steps that lessen this loss, before the first step.
    pub fn with_loss(mut self, loss: Loss) -> Self {
        self.loss = loss;
        self
    }

    /// The block's shape.
    pub fn shape(&self) -> &BlockShape {
        &self.pass().shape
    }

    fn of_size(&self) -> &OfSize {
        &self.sizes[self.current]
    }

    fn pass(&self) -> &Pass {
        &self.of_size().pass
    }

    /// Steps taken, those before this trainer included.
    pub fn steps(&self) -> u64 {
        self.trained.steps
    }

    /// Bytes of device memory that steps of all sizes need besides their inputs and the weights, their moments and one
    /// gradient.
    pub fn activation_bytes(&self) -> usize {
        let of_size = |OfSize { pass, input, target, gates, slots, .. }: &OfSize| {
            let inputs = input.bytes() + target.bytes() + gates.bytes() + slots.iter().map(Slot::bytes).sum::<usize>();
            pass.bytes - pass.gradient_bytes + inputs
        };
        self.sizes.iter().map(of_size).sum()
    }

    /// Starts one step with learning rate `lr` on `scale` times the loss, by default the mean squared error, of the block's
    /// output for `batch.x` against `batch.target`, each difference times its gate where there are any. All contiguous on the device:
    /// f32 in f32 precision, else bf16 or f16, the gates f32 or f16.
    pub fn step(&mut self, batch: Batch<'_, Tensor>, scale: f64, lr: f64) -> Result<()> {
        self.begin(batch, scale, lr, self.steps() + 1)?;
        self.replay()?;
        let ended = self.gpu.stream.record_event(None).map_err(failed("recording an event"))?;
        let others = [Some(batch.target.clone()), batch.gates.cloned()];
        let held = Held { x: batch.x.clone(), _others: others, ended };
        match self.last.replace(held) {
            Some(before) => before.release(),
            None => Ok(()),
        }
    }

    /// As [`Self::step`] on a batch of `size` `[B, H, W]` that lies in pieces. They are collected while earlier steps run; the
    /// call waits for the step before the last one to have begun.
    pub fn step_on_pieces(&mut self, size: [usize; 3], batch: Batch<'_, [Piece]>, scale: f64, lr: f64) -> Result<()> {
        self.current = self.find(size)?;
        let channels = self.shape().channels();
        let values = size.iter().product::<usize>() * channels;
        let (gpu, kind, turn) = (self.gpu.clone(), self.pass().kind, (self.steps() % 2) as usize);
        if self.waiting == SLOTS {
            self.read_losses()?;
        }
        let slot = &mut self.sizes[self.current].slots[turn];
        slot.collect(&gpu, &self.feed, kind, batch, [values, size[0] * channels])?;
        self.batch = slot.at;
        self.set_factors(scale, lr, self.steps() + 1, values)?;
        self.replay()?;
        self.sizes[self.current].slots[turn].is_read(&gpu)
    }

    /// Starts the step on the batch that was set, and counts it.
    fn replay(&mut self) -> Result<()> {
        let key = self.batch;
        if let Some(graph) = self.of_size().graphs.get(&key) {
            graph.launch().map_err(failed("starting a step"))?;
        } else {
            if self.of_size().graphs.len() >= GRAPHS {
                self.gpu.synchronize()?;
                self.sizes[self.current].graphs.clear();
            }
            let graph = self.capture()?;
            graph.launch().map_err(failed("starting a step"))?;
            self.sizes[self.current].graphs.insert(key, graph);
        }
        self.trained.steps += 1;
        Ok(())
    }

    fn find(&self, size: [usize; 3]) -> Result<usize> {
        self.sizes.iter().position(|of_size| of_size.pass.size == size).ok_or_else(|| {
            let known: Vec<_> = self.sizes.iter().map(|of_size| of_size.pass.size).collect();
            let expected = format!("[B, H, W] = one of {known:?}");
            Error::Tensor { what: "x", found: format!("{size:?}"), expected }
        })
    }

    /// The mean squared error, and the gradients of `scale` times the loss: of the weights, and of `x` where wanted.
    pub fn gradients(
        &mut self,
        batch: Batch<'_, Tensor>,
        scale: f64,
        of_x: bool,
    ) -> Result<(f64, Parameters, Option<Tensor>)> {
        let x = batch.x;
        self.begin(batch, scale, 0.0, self.steps() + 1)?;
        self.passes()?;
        self.trained.collect(self.pass().arena(&self.trained.weights), self.at.step(), false)?;
        let x_gradient = match of_x {
            true => {
                let scale = (2.0 * scale / x.elem_count() as f64) as f32;
                let kind = self.pass().kind;
                let dtype = tensor::dtype(kind);
                let gradient = tensor::empty(x.dims(), dtype, x.device())?;
                let target = View::new(&gradient, "x_gradient")?.address(kind)?;
                // SAFETY: the tensor was made in x's shape.
                unsafe { self.sizes[self.current].pass.input_gradient(&self.trained.weights, scale, target)? };
                Some(gradient)
            }
            false => None,
        };
        View::new(x, "x")?.release(&self.gpu)?;
        let gradients = self.trained.gradients()?;
        let mut losses = self.losses()?;
        let loss = losses.pop().unwrap_or(f64::NAN);
        self.losses_read = losses;
        Ok((loss, gradients, x_gradient))
    }

    /// The mean squared errors of the steps since the last call, without their scale. Waits for the steps.
    pub fn losses(&mut self) -> Result<Vec<f64>> {
        self.read_losses()?;
        Ok(std::mem::take(&mut self.losses_read))
    }

    /// The block's output for `x`, [B, H, W, C] of any batch and map, in x's dtype; with the weights' moving average
    /// where one is kept and wanted.
    pub fn forward(&mut self, x: &Tensor, average: bool) -> Result<Tensor> {
        let weights = if average { self.trained.averaged()? } else { &self.trained.weights };
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            let (found, expected) = ("not on a CUDA device".into(), "there".into());
            return Err(Error::Tensor { what: "x", found, expected });
        };
        let y = self.forward.run(weights, storage, layout)?;
        Ok(Tensor::from_storage(Storage::Cuda(y), x.dims(), BackpropOp::none(), false))
    }

    /// The weights and the optimiser's state. Waits for the steps.
    pub fn download(&mut self) -> Result<(Parameters, State)> {
        self.trained.download()
    }

    /// The weights' moving average where one is kept, else the weights. Waits for the steps.
    pub fn block(&self) -> Result<Parameters> {
        self.trained.block()
    }

    /// Keeps a copy of the weights and the optimiser's state on the device, beside the one that was kept last.
    pub fn keep(&mut self) -> Result<()> {
        self.trained.keep()
    }

    /// Takes the weights and the optimiser's state of the older copy that is kept; steps count on, and that copy is the only
    /// one then. Without any, nothing changes.
    pub fn go_back(&mut self) -> Result<()> {
        self.trained.go_back()
    }

    /// The weights and the optimiser's state of the copies that are kept, the older one first, with the steps that were taken
    /// then. Waits for the steps.
    pub fn kept(&self) -> Result<Vec<(Parameters, State)>> {
        self.trained.kept()
    }

    /// Keeps copies that [`Self::kept`] gave, of a trainer that this one goes on for, instead of any.
    pub fn keep_again(&mut self, kept: &[(Parameters, State)]) -> Result<()> {
        self.trained.keep_again(kept)
    }

    /// Fills all buffers with bytes that read as NaN, so that what a step doesn't write shows.
    pub(super) fn poison(&mut self) -> Result<()> {
        self.sizes.iter_mut().try_for_each(|of_size| of_size.pass.poison())
    }

    /// Checks the tensors, lets this trainer's stream wait for theirs, and sets the step's numbers.
    fn begin(&mut self, batch: Batch<'_, Tensor>, scale: f64, lr: f64, step: u64) -> Result<()> {
        let Batch { x, target, gates } = batch;
        let channels = self.shape().channels();
        let (x_view, target_view) = (View::new(x, "x")?, View::new(target, "target")?);
        let gates_view = gates.map(|gates| View::new(gates, "gates")).transpose()?;
        let size = x_view.size(channels)?;
        if let Some(view) = &gates_view
            && view.size(channels)? != [size[0], 1, 1]
        {
            let (found, expected) = (format!("{:?}", view.dims), format!("[{}, 1, 1, {channels}]", size[0]));
            return Err(Error::Tensor { what: "gates", found, expected });
        }
        let current = self.find(size)?;
        let of_target = target_view.size(channels)?;
        if of_target != size {
            let (found, expected) = (format!("{of_target:?}"), format!("[B, H, W] = {size:?}"));
            return Err(Error::Tensor { what: "target", found, expected });
        }
        self.current = current;
        if self.waiting == SLOTS {
            self.read_losses()?;
        }
        let gpu = self.gpu.clone();
        x_view.wait(&gpu)?;
        let OfSize { pass, input, target: of_target, gates: of_gates, .. } = &mut self.sizes[current];
        input.take(&gpu, &x_view, pass.kind)?;
        of_target.take(&gpu, &target_view, pass.kind)?;
        self.batch = Given { x: input.at, target: of_target.at, gates: 0 };
        if let Some(view) = &gates_view {
            of_gates.take(&gpu, view, Type::F32)?;
            self.batch.gates = of_gates.at;
        }
        self.set_factors(scale, lr, step, x.elem_count())
    }

    /// Sets the numbers of step `step` on a batch of `values`.
    fn set_factors(&mut self, scale: f64, lr: f64, step: u64, values: usize) -> Result<()> {
        let gpu = self.gpu.clone();
        let factors = Factors::new(&self.trained.optimiser, lr, step, (2.0 * scale / values as f64) as f32);
        let slot = self.at.factors + (self.waiting * size_of::<Factors>()) as u64;
        // Beside the main stream, where the step before may still run: no step reads another's slot.
        // SAFETY: the slot has the struct's size, and pageable memory is copied before the call returns.
        unsafe { result::memcpy_htod_async(slot, std::slice::from_ref(&factors), gpu.side.cu_stream()) }
            .map_err(failed("setting a step's numbers"))?;
        gpu.join()?;
        self.waiting += 1;
        Ok(())
    }

    fn capture(&mut self) -> Result<CudaGraph> {
        // Modules are loaded and addresses taken before: neither may happen while a stream is captured.
        self.load()?;
        let gpu = self.gpu.clone();
        gpu.capture(|| {
            self.passes()?;
            self.trained.update(self.pass().arena(&self.trained.weights), self.at.step())
        })
    }

    /// Loads what a step starts, by taking its passes once without the update.
    fn load(&mut self) -> Result<()> {
        self.trained.load()?;
        self.passes()?;
        self.set_slot(self.waiting - 1)?;
        self.gpu.synchronize()
    }

    /// Sets the slot that the next step on the device takes.
    fn set_slot(&self, slot: usize) -> Result<()> {
        let slot = slot as i32;
        // SAFETY: the slot's memory has that size, and pageable memory is copied before the call returns.
        unsafe { result::memcpy_htod_async(self.at.slot, std::slice::from_ref(&slot), self.gpu.stream.cu_stream()) }
            .map_err(failed("setting a step's numbers"))
    }

    /// Forward and backward, up to the parts of the gradients.
    fn passes(&mut self) -> Result<()> {
        let Addresses { losses, slot, .. } = self.at;
        let given = self.batch;
        let pass = &mut self.sizes[self.current].pass;
        // SAFETY: the inputs were checked and hold the pass' type.
        unsafe {
            pass.residual(&self.trained.weights, given, self.loss, losses, slot)?;
            pass.backward(&self.trained.weights, given.x)
        }
    }

    fn read_losses(&mut self) -> Result<()> {
        let mut all = vec![0.0; SLOTS];
        self.gpu.stream.memcpy_dtoh(&self.losses, &mut all).map_err(failed("reading losses"))?;
        self.gpu.synchronize()?;
        self.losses_read.extend_from_slice(&all[..self.waiting]);
        self.waiting = 0;
        // Nothing runs any more that reads them.
        self.last = None;
        self.set_slot(0)
    }
}

impl Held {
    /// Lets the tensors' stream wait for the step before it frees them.
    fn release(self) -> Result<()> {
        if let Device::Cuda(device) = self.x.device() {
            device.cuda_stream().wait(&self.ended).map_err(failed("releasing a tensor"))?;
        }
        Ok(())
    }
}

impl Drop for Trainer {
    fn drop(&mut self) {
        // A device that failed keeps nobody waiting; an error has nobody to go to.
        let _ = self.last.take().map(Held::release);
    }
}
