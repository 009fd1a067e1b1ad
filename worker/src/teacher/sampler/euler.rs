//! Euler's method on dx/dσ = ε (arXiv 2206.00364, equation 1 with σ(t) = t). Source: diffusers
//! `schedulers/scheduling_euler_discrete.py`.

use candle_core::Tensor;
use deltaconv_proto::teacher::{PredictionType, TimestepSpacing};

use super::sigmas::{alpha, sigmas};
use super::solver::Descent;
use super::timesteps::spacing;
use super::{Error, Sampler, Solver, mix};

/// x is x₀ + σ ε; the model takes it scaled by α.
pub(super) struct Euler {
    prediction_type: PredictionType,
    /// Of each step, and 0.
    sigmas: Vec<f64>,
    /// The deviation of the first x.
    first: f64,
}

impl Euler {
    pub(super) fn new(sampler: &Sampler, timesteps: &[f64]) -> Result<Self, Error> {
        let sigmas = sigmas(sampler, timesteps)?;
        let largest = sigmas.iter().copied().fold(0.0, f64::max);
        let first = match spacing(&sampler.scheduler, Solver::Euler) {
            // As if there were a sample of unit variance under the noise.
            TimestepSpacing::Leading => 1.0 / alpha(largest),
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => largest,
        };
        Ok(Self { prediction_type: sampler.prediction_type(), sigmas, first })
    }
}

impl Descent for Euler {
    fn start(&self, noise: &Tensor) -> Result<Tensor, Error> {
        Ok(noise.affine(self.first, 0.0)?)
    }

    fn input(&self, step: usize, x: &Tensor) -> Result<Tensor, Error> {
        Ok(x.affine(alpha(self.sigmas[step]), 0.0)?)
    }

    /// x' = x + (σ' − σ) ε, with ε = (x − x₀)/σ of an x₀-prediction and ε = α v + α²σ x of a v-prediction. One factor for
    /// x: near pure noise, x and what is taken from it are much larger than what is left.
    fn step(&mut self, step: usize, x: &Tensor, prediction: &Tensor) -> Result<Tensor, Error> {
        let (sigma, next) = (self.sigmas[step], self.sigmas[step + 1]);
        Ok(match self.prediction_type {
            PredictionType::Epsilon => mix(1.0, x, next - sigma, prediction)?,
            PredictionType::Sample => mix(next / sigma, x, 1.0 - next / sigma, prediction)?,
            PredictionType::VPrediction => {
                let alpha = alpha(sigma);
                mix(alpha * alpha * (1.0 + sigma * next), x, alpha * (next - sigma), prediction)?
            }
        })
    }
}
