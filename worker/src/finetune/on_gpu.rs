//! Blocks in training on a GPU, where their teacher is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Result as CandleResult, Tensor};
use deltaconv_kernels::{AdamW, Parameters, adamw, cuda};

use super::on_processor::{Kept, Optimisers};
use super::student::{Blocks, Pass, Within, back};
use crate::accelerator::Cuda;
use crate::task::Error;

/// Blocks and what trains them: weights in f32, passes in the teacher's precision.
pub(super) struct OnGpu {
    cuda: Arc<Cuda>,
    features: f64,
    blocks: BTreeMap<String, Arc<One>>,
    /// Of the step that is to be taken, on the device.
    error: Option<Tensor>,
    /// Of the steps since they were asked for, on the device.
    errors: Vec<Tensor>,
}

/// One block.
struct One(Mutex<cuda::Within>);

impl One {
    fn with<T>(&self, work: impl FnOnce(&mut cuda::Within) -> Result<T, deltaconv_kernels::Error>) -> CandleResult<T> {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)).map_err(candle_core::Error::wrap)
    }
}

impl Within for One {
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        self.with(|block| block.forward(x))
    }

    fn backward(&self, x: &Tensor, gradient: &Tensor) -> CandleResult<Tensor> {
        self.with(|block| block.backward(x, gradient))
    }
}

impl OnGpu {
    /// `dtype` is the teacher's; `features` what the residual stream counts.
    pub(super) fn new(
        cuda: &Arc<Cuda>,
        dtype: DType,
        blocks: &Blocks,
        optimisers: &Optimisers,
        optimiser: AdamW,
        features: f64,
    ) -> Result<Self, Error> {
        let mut found = BTreeMap::new();
        for (layer, block) in blocks {
            let state = optimisers.get(layer).ok_or(Error::Incomplete("optimiser"))?;
            let within = cuda::Within::new(&cuda.gpu, block, optimiser, state, dtype);
            let within = within.inspect_err(|error| cuda.note(error))?;
            found.insert(layer.clone(), Arc::new(One(Mutex::new(within))));
        }
        Ok(Self { cuda: cuda.clone(), features, blocks: found, error: None, errors: Vec::new() })
    }

    /// Does one thing with every block.
    fn each<T>(
        &self,
        mut work: impl FnMut(&mut cuda::Within) -> Result<T, deltaconv_kernels::Error>,
    ) -> Result<BTreeMap<String, T>, Error> {
        let one = |(layer, block): (&String, &Arc<One>)| {
            let mut block = block.0.lock().unwrap_or_else(PoisonError::into_inner);
            let done = work(&mut block).inspect_err(|error| self.cuda.note(error))?;
            Ok((layer.clone(), done))
        };
        self.blocks.iter().map(one).collect()
    }

    /// Adds a pass' gradients to those of the step.
    pub(super) fn add(&mut self, pass: Pass<'_>) -> Result<(), Error> {
        let within = self.blocks.iter().map(|(layer, one)| (layer.clone(), one.clone() as Arc<dyn Within>)).collect();
        let error = back(&within, self.features, pass)?;
        self.error = Some(match self.error.take() {
            Some(others) => others.add(&error)?,
            None => error,
        });
        self.each(cuda::Within::collect).map(drop)
    }

    /// Starts a step.
    pub(super) fn step(&mut self, rate: f64) -> Result<(), Error> {
        self.errors.extend(self.error.take());
        self.each(|block| block.update(rate)).map(drop)
    }

    /// The gradients of the step that is to be taken.
    pub(super) fn gradients(&self) -> Result<BTreeMap<String, Parameters>, Error> {
        self.each(|block| block.gradients())
    }

    /// The steps' errors since the last call. Waits for the steps.
    pub(super) fn errors(&mut self) -> Result<Vec<f64>, Error> {
        let errors = std::mem::take(&mut self.errors);
        errors.iter().map(|error| Ok(f64::from(error.to_scalar::<f32>()?))).collect()
    }

    /// What becomes the blocks: the weights' moving averages, where they are kept.
    pub(super) fn averaged(&self) -> Result<Blocks, Error> {
        Ok(self.each(|block| block.block())?.into_iter().map(|(layer, block)| (layer, Arc::new(block))).collect())
    }

    /// Keeps the state as it is, beside the one that was kept last.
    pub(super) fn keep(&mut self) -> Result<(), Error> {
        self.each(cuda::Within::keep).map(drop)
    }

    /// Takes up the older state that is kept, which is the only one then. Steps count on.
    pub(super) fn go_back(&mut self) -> Result<(), Error> {
        self.each(cuda::Within::go_back).map(drop)
    }

    /// The blocks and the optimisers' states.
    pub(super) fn state(&self) -> Result<Kept, Error> {
        Ok(apart(self.each(|block| block.download())?))
    }

    /// The states that are kept, the older one first.
    pub(super) fn kept(&self) -> Result<Vec<Kept>, Error> {
        let mut by_layer = self.each(|block| Ok(VecDeque::from(block.kept()?)))?;
        let mut kept = Vec::new();
        while by_layer.values().any(|of_layer| !of_layer.is_empty()) {
            let next = by_layer.iter_mut().filter_map(|(layer, kept)| Some((layer.clone(), kept.pop_front()?)));
            kept.push(apart(next.collect()));
        }
        Ok(kept)
    }

    /// Keeps these, of a training that this one goes on with, instead of any.
    pub(super) fn keep_again(&mut self, kept: &[Kept]) -> Result<(), Error> {
        for (layer, block) in &self.blocks {
            let of_layer = |(blocks, optimisers): &Kept| {
                let (block, state) = blocks.get(layer).zip(optimisers.get(layer)).ok_or(Error::Incomplete("state"))?;
                Ok((Parameters::clone(block), state.clone()))
            };
            let kept = kept.iter().map(of_layer).collect::<Result<Vec<_>, Error>>()?;
            let mut block = block.0.lock().unwrap_or_else(PoisonError::into_inner);
            block.keep_again(&kept).inspect_err(|error| self.cuda.note(error))?;
        }
        Ok(())
    }
}

/// Blocks and optimisers' states each by themselves.
fn apart(states: BTreeMap<String, (Parameters, adamw::State)>) -> Kept {
    let each = states.into_iter().map(|(layer, (block, state))| ((layer.clone(), Arc::new(block)), (layer, state)));
    each.unzip()
}
