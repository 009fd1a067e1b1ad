//! Blocks in training on the processor.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result as CandleResult, Tensor};
use deltaconv_kernels::cpu::{self, Workspace};
use deltaconv_kernels::{AdamW, BlockOp, Parameters, adamw};

use super::student::{Blocks, Pass, Within, back};
use crate::task::Error;

/// The optimisers' states by layer.
pub(super) type Optimisers = BTreeMap<String, adamw::State>;

/// Blocks and their optimisers' states at the end of a stretch that went well.
pub(super) type Kept = (Blocks, Optimisers);

/// Blocks and what trains them, all of it in host memory.
pub(super) struct OnProcessor {
    optimiser: AdamW,
    features: f64,
    blocks: Blocks,
    optimisers: Optimisers,
    /// At most two, the older one first.
    kept: VecDeque<Kept>,
    /// Of the step that is to be taken.
    gradients: BTreeMap<String, Parameters>,
    error: f64,
    /// Of the steps since they were asked for.
    errors: Vec<f64>,
}

/// One block within a pass that is tracked.
struct One {
    parameters: Arc<Parameters>,
    /// Filled on the way back.
    gradients: Mutex<Option<Parameters>>,
}

impl Within for One {
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        x.apply_op1_no_bwd(&BlockOp::new(self.parameters.clone()))
    }

    fn backward(&self, x: &Tensor, gradient: &Tensor) -> CandleResult<Tensor> {
        let (batch, height, width, _) = x.dims4()?;
        let [x_values, y_gradient] = [x, gradient].map(|of| of.flatten_all().and_then(|of| of.to_vec1::<f32>()));
        let (x_values, mut x_gradient) = (x_values?, vec![0.0; x.elem_count()]);
        let mut found = self.parameters.zeros_like();
        cpu::gradient(
            self.parameters.shape(),
            &self.parameters,
            &x_values,
            &y_gradient?,
            [batch, height, width],
            &mut found,
            Some(&mut x_gradient),
            &mut Workspace::default(),
        )
        .map_err(candle_core::Error::wrap)?;
        *self.gradients.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        Tensor::from_vec(x_gradient, x.shape(), x.device())
    }
}

/// The predicted noise's error in a pass, and the loss' gradients of all blocks.
pub(super) fn gradients(
    blocks: &Blocks,
    features: f64,
    pass: Pass<'_>,
) -> Result<(f64, BTreeMap<String, Parameters>), Error> {
    let one = |(layer, parameters): (&String, &Arc<Parameters>)| {
        (layer.clone(), Arc::new(One { parameters: parameters.clone(), gradients: Mutex::default() }))
    };
    let within: BTreeMap<String, Arc<One>> = blocks.iter().map(one).collect();
    let tracked = within.iter().map(|(layer, one)| (layer.clone(), one.clone() as Arc<dyn Within>)).collect();
    let error = back(&tracked, features, pass)?;
    let found = |(layer, one): (String, Arc<One>)| {
        let gradients = one.gradients.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok((layer, gradients.ok_or(Error::Incomplete("gradient"))?))
    };
    Ok((f64::from(error.to_scalar::<f32>()?), within.into_iter().map(found).collect::<Result<_, Error>>()?))
}

impl OnProcessor {
    /// `features`: what the residual stream counts.
    pub(super) fn new(blocks: Blocks, optimisers: Optimisers, optimiser: AdamW, features: f64) -> Self {
        let (kept, gradients, error, errors) = Default::default();
        Self { optimiser, features, blocks, optimisers, kept, gradients, error, errors }
    }

    /// Adds a pass' gradients to those of the step.
    pub(super) fn add(&mut self, pass: Pass<'_>) -> Result<(), Error> {
        let (error, gradients) = gradients(&self.blocks, self.features, pass)?;
        self.error += error;
        for (layer, found) in gradients {
            match self.gradients.get_mut(&layer) {
                Some(sum) => sum.values_mut().iter_mut().zip(found.values()).for_each(|(sum, found)| *sum += found),
                None => drop(self.gradients.insert(layer, found)),
            }
        }
        Ok(())
    }

    /// Takes a step.
    pub(super) fn step(&mut self, rate: f64) -> Result<(), Error> {
        self.errors.push(std::mem::take(&mut self.error));
        for (layer, block) in &mut self.blocks {
            let (Some(gradients), Some(state)) = (self.gradients.remove(layer), self.optimisers.get_mut(layer)) else {
                return Err(Error::Incomplete("gradient"));
            };
            self.optimiser.step(rate, Arc::make_mut(block), &gradients, state)?;
        }
        Ok(())
    }

    /// The steps' errors since the last call.
    pub(super) fn errors(&mut self) -> Vec<f64> {
        std::mem::take(&mut self.errors)
    }

    /// What becomes the blocks: the weights' moving averages, where they are kept.
    pub(super) fn averaged(&self) -> Blocks {
        let average = |(layer, block): (&String, &Arc<Parameters>)| {
            let average = self.optimisers.get(layer).and_then(|of| of.ema.clone());
            (layer.clone(), average.map_or_else(|| block.clone(), Arc::new))
        };
        self.blocks.iter().map(average).collect()
    }

    /// Keeps the state as it is, beside the one that was kept last.
    pub(super) fn keep(&mut self) {
        if self.kept.len() > 1 {
            self.kept.pop_front();
        }
        self.kept.push_back((self.blocks.clone(), self.optimisers.clone()));
    }

    /// Takes up the older state that is kept, which is the only one then. Steps count on.
    pub(super) fn go_back(&mut self, step: u64) {
        self.kept.truncate(1);
        let Some((blocks, optimisers)) = self.kept.front_mut() else { return };
        optimisers.values_mut().for_each(|optimiser| optimiser.step = step);
        (self.blocks, self.optimisers) = (blocks.clone(), optimisers.clone());
    }

    /// The blocks and the optimisers' states.
    pub(super) fn state(&self) -> Kept {
        (self.blocks.clone(), self.optimisers.clone())
    }

    /// The states that are kept, the older one first.
    pub(super) fn kept(&self) -> Vec<Kept> {
        self.kept.iter().cloned().collect()
    }

    /// Keeps these, of a training that this one goes on with, instead of any.
    pub(super) fn keep_again(&mut self, kept: Vec<Kept>) {
        self.kept = kept.into();
    }
}
