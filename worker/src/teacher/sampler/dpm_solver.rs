//! DPM-Solver++(2M): second order, multistep, midpoint (arXiv 2211.01095, algorithm 2). Source: diffusers
//! `schedulers/scheduling_dpmsolver_multistep.py`.

use candle_core::Tensor;
use deltaconv_proto::teacher::PredictionType;

use super::sigmas::{alpha, sigmas};
use super::solver::Descent;
use super::{Error, Sampler, mix};

/// x is α x₀ + ασ ε, as the model takes it.
pub(super) struct DpmSolver {
    prediction_type: PredictionType,
    /// Of each step, and 0.
    sigmas: Vec<f64>,
    /// σ of the step before, and the x₀ that was predicted there.
    before: Option<(f64, Tensor)>,
}

impl DpmSolver {
    pub(super) fn new(sampler: &Sampler, timesteps: &[f64]) -> Result<Self, Error> {
        let sigmas = sigmas(sampler, timesteps)?;
        // The second order divides by the way that the step before went.
        if let Some(i) = sigmas.windows(2).position(|pair| pair[0] <= pair[1]) {
            let [t, next] = [i, i + 1].map(|i| timesteps.get(i).copied().unwrap_or_default());
            let problem = format!(
                "{} go from timestep {t} to {next}, where there is no less noise; take fewer, or sample with ddim",
                timesteps.len()
            );
            return Err(Error::Argument { argument: "steps", problem });
        }
        Ok(Self { prediction_type: sampler.prediction_type(), sigmas, before: None })
    }

    /// x₀ as predicted at x.
    fn original(&self, x: &Tensor, prediction: &Tensor, sigma: f64) -> Result<Tensor, Error> {
        let alpha = alpha(sigma);
        Ok(match self.prediction_type {
            PredictionType::Epsilon => mix(1.0 / alpha, x, -sigma, prediction)?,
            PredictionType::Sample => prediction.clone(),
            PredictionType::VPrediction => mix(alpha, x, -alpha * sigma, prediction)?,
        })
    }
}

impl Descent for DpmSolver {
    fn start(&self, noise: &Tensor) -> Result<Tensor, Error> {
        Ok(noise.clone())
    }

    fn input(&self, _step: usize, x: &Tensor) -> Result<Tensor, Error> {
        Ok(x.clone())
    }

    /// With λ = −ln σ, h = λ' − λ and r = h₋₁/h: x' = (α'σ'/ασ) x − α'(e^−h − 1) ((1 + 1/2r) x₀ − 1/2r x₀₋₁). The first
    /// step and the last, whose h is infinite, are of first order: without what comes with 1/2r.
    fn step(&mut self, step: usize, x: &Tensor, prediction: &Tensor) -> Result<Tensor, Error> {
        let (sigma, next) = (self.sigmas[step], self.sigmas[step + 1]);
        let original = self.original(x, prediction, sigma)?;
        let direction = match &self.before {
            Some((sigma_before, before)) if next > 0.0 => {
                let half = 0.5 * (sigma / next).ln() / (sigma_before / sigma).ln();
                mix(1.0 + half, &original, -half, before)?
            }
            _ => original.clone(),
        };
        let kept = alpha(next) * next / (alpha(sigma) * sigma);
        let x = mix(kept, x, alpha(next) * (1.0 - next / sigma), &direction)?;
        self.before = Some((sigma, original));
        Ok(x)
    }
}
