//! AdamW (arXiv 1711.05101) over the whole arena of a block in one pass.

use rayon::prelude::*;

use crate::cpu::instruction_set::multiversion;
use crate::error::Result;
use crate::parameters::Parameters;

/// Values that one thread updates at a time; fixed, because the norm is summed by these pieces.
const PIECE: usize = 4096;

/// The optimiser's settings. Defaults are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// β₁: decay of the gradients' average.
    pub beta1: f64,
    /// β₂: decay of the squared gradients' average.
    pub beta2: f64,
    /// ε, added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay λ of all tensors: a step first multiplies them by 1 − lr·λ.
    pub weight_decay: f64,
    /// Gradients whose norm over the whole block is larger are scaled down to it.
    pub clip_norm: Option<f64>,
    /// Decay of the weights' average; used where the state has one.
    pub ema_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, clip_norm: None, ema_decay: 0.999 }
    }
}

/// What the optimiser remembers between steps: plain data, and with the weights all that a
/// checkpoint needs to go on exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// First moments.
    pub m: Parameters,
    /// Second moments.
    pub v: Parameters,
    /// The exponential moving average of the weights, where one is kept.
    pub ema: Option<Parameters>,
    /// Steps taken.
    pub step: u64,
}

impl State {
    /// The state before the first step; with `ema`, the average starts at the weights.
    pub fn new(weights: &Parameters, ema: bool) -> Self {
        Self { m: weights.zeros_like(), v: weights.zeros_like(), ema: ema.then(|| weights.clone()), step: 0 }
    }
}

/// The factors of one step, in the precision of the arenas.
#[derive(Clone, Copy)]
pub(crate) struct Factors {
    pub(crate) clip: f32,
    pub(crate) keep: f32,
    pub(crate) beta1: f32,
    pub(crate) rest1: f32,
    pub(crate) beta2: f32,
    pub(crate) rest2: f32,
    pub(crate) rate: f32,
    pub(crate) root: f32,
    pub(crate) eps: f32,
    pub(crate) ema: f32,
    pub(crate) ema_rest: f32,
}

/// One piece of every arena.
struct Piece<'a> {
    weights: &'a mut [f32],
    gradients: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    ema: &'a mut [f32],
}

impl AdamW {
    /// Takes one step with learning rate `lr`. Returns the gradients' norm before clipping, or 0
    /// where nothing asks for it. The bits do not depend on the number of threads.
    pub fn step(&self, lr: f64, weights: &mut Parameters, gradients: &Parameters, state: &mut State) -> Result<f64> {
        let shape = weights.shape();
        gradients.check_shape("gradients", shape)?;
        state.m.check_shape("first moments", shape)?;
        state.v.check_shape("second moments", shape)?;
        if let Some(ema) = &state.ema {
            ema.check_shape("moving average", shape)?;
        }
        let norm = self.clip_norm.map_or(0.0, |_| norm(gradients.values()));
        state.step += 1;
        let factors = self.factors(lr, norm, state.step);

        let ema = state.ema.as_mut().map_or(&mut [][..], Parameters::values_mut);
        let averages = ema.par_chunks_mut(PIECE).map(Some);
        // Without an average the pieces get empty slices in its place.
        let missing = weights.values().len().div_ceil(PIECE) - averages.len();
        let averages = averages.chain(rayon::iter::repeat_n((), missing).map(|()| None));
        let arenas = weights.values_mut().par_chunks_mut(PIECE);
        let arenas = arenas.zip(gradients.values().par_chunks(PIECE));
        let moments = state.m.values_mut().par_chunks_mut(PIECE);
        let moments = moments.zip(state.v.values_mut().par_chunks_mut(PIECE));
        let pieces = arenas.zip(moments).zip(averages);
        pieces.for_each(|(((weights, gradients), (m, v)), ema)| {
            let ema = ema.unwrap_or_default();
            update(factors, Piece { weights, gradients, m, v, ema });
        });
        Ok(norm)
    }

    /// The factors of the step with that number, the first being 1, for gradients of that norm.
    pub(crate) fn factors(&self, lr: f64, norm: f64, step: u64) -> Factors {
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let clip = match self.clip_norm {
            Some(limit) if norm > limit => limit / norm,
            _ => 1.0,
        };
        Factors {
            clip: clip as f32,
            keep: (1.0 - lr * self.weight_decay) as f32,
            beta1: self.beta1 as f32,
            rest1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            rest2: (1.0 - self.beta2) as f32,
            rate: (lr / correction(self.beta1)) as f32,
            root: (1.0 / correction(self.beta2).sqrt()) as f32,
            eps: self.eps as f32,
            ema: self.ema_decay as f32,
            ema_rest: (1.0 - self.ema_decay) as f32,
        }
    }
}

/// The Euclidean norm, summed in f64 piece by piece.
fn norm(values: &[f32]) -> f64 {
    let square = |piece: &[f32]| piece.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    let pieces: Vec<f64> = values.par_chunks(PIECE).map(square).collect();
    pieces.iter().sum::<f64>().sqrt()
}

multiversion! {
    /// Takes the step for one piece; `ema` is empty where no average is kept.
    fn update<V>(factors: Factors, piece: Piece<'_>) {
        let Piece { weights, gradients, m, v, ema } = piece;
        let f = factors;
        let moments = m.iter_mut().zip(v.iter_mut());
        for ((weight, gradient), (m, v)) in weights.iter_mut().zip(gradients).zip(moments) {
            let gradient = gradient * f.clip;
            *m = f.beta1 * *m + f.rest1 * gradient;
            *v = f.beta2 * *v + f.rest2 * gradient * gradient;
            *weight = *weight * f.keep - f.rate * *m / (v.sqrt() * f.root + f.eps);
        }
        for (average, weight) in ema.iter_mut().zip(weights) {
            *average = f.ema * *average + f.ema_rest * *weight;
        }
    }
}
