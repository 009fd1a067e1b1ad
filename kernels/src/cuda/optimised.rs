//! A block's weights on a device with its optimiser's state, and copies of both that can be gone back to.

use std::collections::VecDeque;
use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice};

use super::gpu::{Address, Gpu, Grid, On, Source, address, failed, launch};
use super::kept::{self, Kept};
use super::product::Type;
use super::weights::{Arena, Weights, suffix};
use crate::adamw::{self, AdamW, State};
use crate::error::Result;
use crate::parameters::Parameters;
use crate::shape::BlockShape;

/// Blocks that the gradients' norm is summed by.
const NORM_BLOCKS: usize = 264;

/// Mirrors `Factors` of `cuda/common.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Factors {
    keep: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    rate: f32,
    root: f32,
    eps: f32,
    ema: f32,
    ema_rest: f32,
    clip_norm: f32,
    gradient_scale: f32,
}

const _: () = assert!(size_of::<Factors>() == 48, "cuda/common.cuh says the same");

impl Factors {
    /// Of step `step` at learning rate `lr`, on gradients times `gradient_scale`.
    pub(super) fn new(optimiser: &AdamW, lr: f64, step: u64, gradient_scale: f32) -> Self {
        // The device clips by itself, by the norm that it finds.
        let adamw::Factors { keep, beta1, rest1, beta2, rest2, rate, root, eps, ema, ema_rest, .. } =
            optimiser.factors(lr, 0.0, step);
        let clip_norm = optimiser.clip_norm.map_or(f32::INFINITY, |norm| norm as f32);
        Self { keep, beta1, rest1, beta2, rest2, rate, root, eps, ema, ema_rest, clip_norm, gradient_scale }
    }
}

/// Where a step's numbers lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepAt {
    /// [`Factors`] of steps.
    pub(super) factors: Address,
    /// i32: the one behind the step's.
    pub(super) slot: Address,
}

/// Weights, moments and moving average, all f32.
#[derive(Debug)]
pub(super) struct Optimised {
    gpu: Arc<Gpu>,
    pub(super) optimiser: AdamW,
    shape: BlockShape,
    kind: Type,
    pub(super) weights: Weights,
    m: CudaSlice<f32>,
    v: CudaSlice<f32>,
    ema: Option<CudaSlice<f32>>,
    /// Weights of the average, prepared for a forward pass when asked for, and after how many steps that was.
    average: Option<(Weights, u64)>,
    /// At most two, the older one first.
    kept: VecDeque<Kept>,
    gradients: CudaSlice<f32>,
    _norms: CudaSlice<f64>,
    at: Addresses,
    /// Steps taken, those before included.
    pub(super) steps: u64,
}

/// Where the buffers lie; 0 where there is none.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    m: Address,
    v: Address,
    ema: Address,
    gradients: Address,
    norms: Address,
}

impl Optimised {
    /// Puts weights, prepared for passes of that type, and the optimiser's state on the device.
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        weights: &Parameters,
        optimiser: AdamW,
        state: &State,
        kind: Type,
    ) -> Result<Self> {
        let shape = weights.shape();
        state.m.check_shape("first moments", shape)?;
        state.v.check_shape("second moments", shape)?;
        if let Some(ema) = &state.ema {
            ema.check_shape("moving average", shape)?;
        }
        let (m, v) = (gpu.upload(state.m.values())?, gpu.upload(state.v.values())?);
        let ema = state.ema.as_ref().map(|ema| gpu.upload(ema.values())).transpose()?;
        let gradients = gpu.upload(&vec![0.0; weights.values().len()])?;
        let norms = gpu.stream.alloc_zeros::<f64>(NORM_BLOCKS).map_err(failed("allocating memory"))?;
        let stream = &gpu.stream;
        let at = Addresses {
            m: address(&m, stream),
            v: address(&v, stream),
            ema: ema.as_ref().map_or(0, |ema| address(ema, stream)),
            gradients: address(&gradients, stream),
            norms: address(&norms, stream),
        };
        Ok(Self {
            weights: Weights::new(gpu, weights, kind)?,
            shape: shape.clone(),
            gpu: gpu.clone(),
            optimiser,
            kind,
            m,
            v,
            ema,
            average: None,
            kept: VecDeque::new(),
            gradients,
            _norms: norms,
            at,
            steps: state.step,
        })
    }

    /// The block's.
    pub(super) fn shape(&self) -> &BlockShape {
        &self.shape
    }

    /// Adds up the gradients that a pass left in parts, times the step's scale, and their norm; with `add` to those that were
    /// collected before.
    pub(super) fn collect(&self, arena: Arena, StepAt { factors, slot }: StepAt, add: bool) -> Result<()> {
        let gpu = &self.gpu;
        let function = self.function("collect_gradient")?;
        let grid = Grid { blocks: (NORM_BLOCKS as u32, 1, 1), threads: 256, shared: 0 };
        let (Addresses { gradients, norms, .. }, add) = (self.at, i32::from(add));
        // SAFETY: the buffers have the arena's length.
        unsafe { launch!(gpu, On::Main, function, grid, [arena, factors, slot, gradients, norms, add]) }
    }

    /// The optimiser's step on the gradients that a pass left in parts.
    pub(super) fn update(&self, arena: Arena, step: StepAt) -> Result<()> {
        let clips = self.optimiser.clip_norm.is_some();
        if clips {
            self.collect(arena, step, false)?;
        }
        self.apply(arena, step, clips)
    }

    /// The optimiser's step, on the gradients that were collected or on those that a pass left in parts.
    pub(super) fn apply(&self, arena: Arena, step: StepAt, collected: bool) -> Result<()> {
        let gpu = &self.gpu;
        let function = self.function(&format!("adamw_{}", suffix(self.kind)))?;
        let Addresses { m, v, ema, gradients, norms } = self.at;
        let (norms, count) = (if collected { norms } else { 0 }, NORM_BLOCKS as i32);
        let (weights, prepared) = (self.weights.at, self.weights.prepared);
        let StepAt { factors, slot } = step;
        let grid = Grid::over(arena.len() / arena.lanes());
        // SAFETY: the buffers have the arena's length.
        unsafe {
            launch!(
                gpu,
                On::Main,
                function,
                grid,
                [arena, factors, slot, gradients, norms, count, weights, m, v, ema, prepared]
            )
        }
    }

    /// Loads what [`Self::update`] starts.
    pub(super) fn load(&self) -> Result<()> {
        self.function(&format!("adamw_{}", suffix(self.kind)))?;
        self.function("collect_gradient")?;
        Ok(())
    }

    /// The kernel for as many neighbours as the weights' layout allows.
    fn function(&self, name: &str) -> Result<CudaFunction> {
        let ending = if self.weights.arena.lanes() == 1 { "_single" } else { "" };
        self.gpu.function(Source::Optimiser, &format!("{name}{ending}"))
    }

    /// The gradients that were collected last. Waits for them.
    pub(super) fn gradients(&self) -> Result<Parameters> {
        let gradients = self.read(&self.gradients)?;
        self.gpu.synchronize()?;
        Ok(gradients)
    }

    /// The weights' moving average as passes read it, where one is kept, else the weights.
    pub(super) fn averaged(&mut self) -> Result<&Weights> {
        let Some(ema) = &self.ema else { return Ok(&self.weights) };
        let (average, at) = match &mut self.average {
            Some(average) => average,
            none => none.insert((Weights::new(&self.gpu, &Parameters::zeros(&self.shape), self.kind)?, u64::MAX)),
        };
        if *at != self.steps {
            average.set(&self.gpu, ema, self.kind)?;
            *at = self.steps;
        }
        Ok(average)
    }

    /// The weights and the optimiser's state. Waits for the steps.
    pub(super) fn download(&self) -> Result<(Parameters, State)> {
        let weights = self.read(self.weights.values())?;
        let ema = self.ema.as_ref().map(|ema| self.read(ema)).transpose()?;
        let state = State { m: self.read(&self.m)?, v: self.read(&self.v)?, ema, step: self.steps };
        self.gpu.synchronize()?;
        Ok((weights, state))
    }

    /// The weights' moving average where one is kept, else the weights. Waits for the steps.
    pub(super) fn block(&self) -> Result<Parameters> {
        let block = self.read(self.ema.as_ref().unwrap_or_else(|| self.weights.values()))?;
        self.gpu.synchronize()?;
        Ok(block)
    }

    /// Keeps a copy of the weights and the optimiser's state on the device, beside the one that was kept last.
    pub(super) fn keep(&mut self) -> Result<()> {
        let gpu = &self.gpu;
        let copy = match self.kept.len() {
            2.. => self.kept.pop_front(),
            _ => None,
        };
        let Some(mut copy) = copy else {
            let ema = self.ema.as_ref().map(|ema| kept::copied(gpu, ema)).transpose()?;
            let (m, v) = (kept::copied(gpu, &self.m)?, kept::copied(gpu, &self.v)?);
            let weights = kept::copied(gpu, self.weights.values())?;
            self.kept.push_back(Kept { weights, m, v, ema, steps: self.steps });
            return Ok(());
        };
        let arenas = [(self.weights.values(), &mut copy.weights), (&self.m, &mut copy.m), (&self.v, &mut copy.v)];
        for (from, to) in arenas {
            kept::copy(gpu, from, to)?;
        }
        if let (Some(from), Some(to)) = (&self.ema, &mut copy.ema) {
            kept::copy(gpu, from, to)?;
        }
        copy.steps = self.steps;
        self.kept.push_back(copy);
        Ok(())
    }

    /// Takes the weights and the optimiser's state of the older copy that is kept; steps count on, and that copy is the only
    /// one then. Without any, nothing changes.
    pub(super) fn go_back(&mut self) -> Result<()> {
        let gpu = self.gpu.clone();
        self.kept.truncate(1);
        let Some(Kept { weights, m, v, ema, steps }) = self.kept.front_mut() else { return Ok(()) };
        self.weights.set(&gpu, weights, self.kind)?;
        kept::copy(&gpu, m, &mut self.m)?;
        kept::copy(&gpu, v, &mut self.v)?;
        if let (Some(from), Some(to)) = (ema, &mut self.ema) {
            kept::copy(&gpu, from, to)?;
        }
        *steps = self.steps;
        self.average = None;
        Ok(())
    }

    /// The copies that are kept, the older one first, with the steps that were taken then. Waits for the steps.
    pub(super) fn kept(&self) -> Result<Vec<(Parameters, State)>> {
        let one = |Kept { weights, m, v, ema, steps }: &Kept| {
            let (weights, m, v) = (self.read(weights)?, self.read(m)?, self.read(v)?);
            let ema = ema.as_ref().map(|ema| self.read(ema)).transpose()?;
            Ok((weights, State { m, v, ema, step: *steps }))
        };
        let kept = self.kept.iter().map(one).collect();
        self.gpu.synchronize()?;
        kept
    }

    /// Keeps copies that were read before, instead of any.
    pub(super) fn keep_again(&mut self, kept: &[(Parameters, State)]) -> Result<()> {
        let one = |(weights, State { m, v, ema, step }): &(Parameters, State)| {
            for (name, arena) in [("weights", weights), ("first moments", m), ("second moments", v)] {
                arena.check_shape(name, &self.shape)?;
            }
            let average = |like: &CudaSlice<f32>| match ema {
                Some(ema) => {
                    ema.check_shape("moving average", &self.shape).and_then(|()| self.gpu.upload(ema.values()))
                }
                None => kept::copied(&self.gpu, like),
            };
            let ema = self.ema.as_ref().map(average).transpose()?;
            let [weights, m, v] = [weights, m, v].map(|arena| self.gpu.upload(arena.values()));
            Ok(Kept { weights: weights?, m: m?, v: v?, ema, steps: *step })
        };
        self.kept = kept.iter().map(one).collect::<Result<_>>()?;
        Ok(())
    }

    /// An arena's values, once the main stream has come so far.
    fn read(&self, arena: &CudaSlice<f32>) -> Result<Parameters> {
        let mut values = Parameters::zeros(&self.shape);
        self.gpu.stream.memcpy_dtoh(arena, values.values_mut()).map_err(failed("reading weights"))?;
        Ok(values)
    }
}
