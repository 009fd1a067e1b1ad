//! Sampling: from noise down the noise schedule to a sample, with classifier-free guidance.
//!
//! A [`Solver`] takes one evaluation of the model a step. Each gives the numbers of one of diffusers' schedulers (0.35)
//! built from the same `scheduler_config.json`, `config` here:
//!
//! - [`Solver::Ddim`]: `DDIMScheduler.from_config(config)`, η = 0, for a `config` that states `timestep_spacing`,
//!   `set_alpha_to_one` and `clip_sample`. For one that doesn't, we take the default of its own class, and don't clip
//!   where that class has no clipping; `from_config` takes DDIM's defaults, of which clipping at ±1 would ruin latents.
//! - [`Solver::DpmSolverPlusPlus`]: `DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++",
//!   solver_order=2, solver_type="midpoint", lower_order_final=True, final_sigmas_type="zero",
//!   lambda_min_clipped=-math.inf, variance_type=None, use_karras_sigmas=False, use_exponential_sigmas=False,
//!   use_beta_sigmas=False, use_lu_lambdas=False)`.
//! - [`Solver::Euler`]: `EulerDiscreteScheduler.from_config(config, interpolation_type="linear",
//!   final_sigmas_type="zero", use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False)`.
//!
//! `tests/golden/samplers` holds what these give. Where we differ on purpose:
//!
//! - β that `config` doesn't state is the default of its own class, as the model was trained; `from_config` takes that of
//!   the class that it builds (other only for LCM, Heun and KDPM2).
//! - Schedules are f64, diffusers' f32. This shows from σ = 4096 on, where Euler's steps begin in a schedule that is
//!   rescaled to zero terminal SNR: diffusers is some 1e-4 off its own formulas.
//! - Timesteps outside the schedule, and for DPM-Solver++ the same noise twice, are refused: only about as many steps as
//!   there are training timesteps come to that. diffusers clamps the one and divides by zero in the other.
//! - Of `trailing` timesteps there are as many as asked for. Rounding gives diffusers one more for some numbers of steps,
//!   from 61 of 1000 on, at timestep −1; and DDIM's halves are not rounded as there for 49 of 1000, from 48 on.

mod ddim;
mod dpm_solver;
mod euler;
mod sigmas;
mod solver;
#[cfg(test)]
mod tests;
mod timesteps;

use candle_core::{DType, Device, Tensor};
use deltaconv_proto::teacher::{PredictionType, Scheduler};

use self::ddim::Ddim;
use self::dpm_solver::DpmSolver;
use self::euler::Euler;
use self::solver::Descent;
pub use self::solver::{Solver, Steps};
use super::{Conditions, Denoiser, Error, SelfAttention};

/// Classifier-free guidance (arXiv 2207.12598, equation 6, with 1 + w = scale): the prediction is
/// p(negative) + scale · (p(prompt) − p(negative)).
#[derive(Debug, Clone)]
pub struct Guidance {
    /// 1 is no guidance.
    pub scale: f64,
    /// The empty prompt's conditions, or those of what shall not be seen: of one sample, or of as many as are sampled.
    pub negative: Conditions,
}

/// A noise schedule ready for use.
#[derive(Debug, Clone)]
pub struct Sampler {
    scheduler: Scheduler,
    alphas_cumprod: Vec<f64>,
}

impl Sampler {
    /// Of a schedule.
    pub fn new(scheduler: Scheduler) -> Self {
        let alphas_cumprod = scheduler.alphas_cumprod();
        Self { scheduler, alphas_cumprod }
    }

    /// ᾱ of every training timestep.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// What the model predicts.
    pub fn prediction_type(&self) -> PredictionType {
        self.scheduler.prediction_type
    }

    /// √ᾱ_t x₀ + √(1−ᾱ_t) ε: latents and noise [B, C, H, W], a training timestep for each sample.
    ///
    /// # Errors
    /// As many timesteps as samples, each of the schedule; shapes that do not fit.
    pub fn add_noise(&self, latent: &Tensor, noise: &Tensor, timesteps: &[usize]) -> Result<Tensor, Error> {
        if latent.dim(0)? != timesteps.len() {
            let problem = format!("expected {}, one a sample, found {}", latent.dim(0)?, timesteps.len());
            return Err(Error::Argument { argument: "timesteps", problem });
        }
        let alphas = timesteps.iter().map(|t| self.alpha_cumprod(*t)).collect::<Result<Vec<f64>, Error>>()?;
        let column = |f: fn(f64) -> f64| -> Result<Tensor, Error> {
            let values: Vec<f32> = alphas.iter().map(|alpha| f(*alpha).sqrt() as f32).collect();
            Ok(Tensor::from_vec(values, (alphas.len(), 1, 1, 1), latent.device())?)
        };
        let latent = latent.to_dtype(DType::F32)?.broadcast_mul(&column(|alpha| alpha)?)?;
        let noise = noise.to_dtype(DType::F32)?.broadcast_mul(&column(|alpha| 1.0 - alpha)?)?;
        Ok(latent.add(&noise)?)
    }

    /// The timesteps at which sampling asks the model, first to last. [`Solver::Euler`]'s need not be whole.
    ///
    /// # Errors
    /// No steps, more than the schedule has timesteps, or an offset that leaves the schedule.
    pub fn timesteps(&self, steps: Steps) -> Result<Vec<f64>, Error> {
        timesteps::visited(&self.scheduler, steps)
    }

    /// Latents [B, C, H, W] f32 for `prompts` of B samples or of one, from `noise` [B, C, H, W] of unit variance.
    ///
    /// # Errors
    /// Conditions that do not fit each other, a schedule that cannot take such steps, and whatever the model returns.
    pub fn sample(
        &self,
        model: &Denoiser,
        noise: &Tensor,
        prompts: &Conditions,
        guidance: Option<&Guidance>,
        steps: Steps,
        attention: &mut dyn SelfAttention,
    ) -> Result<Tensor, Error> {
        let batch = noise.dim(0)?;
        let prompts = prompts.repeat(batch)?;
        let mut predict = |x: &Tensor, timestep: f64, conditions: &Conditions| {
            let timestep = Tensor::from_slice(&[timestep as f32], 1, &Device::Cpu)?;
            model.predict(x, &timestep, conditions, attention)
        };
        let Some(guidance) = guidance.filter(|guidance| guidance.scale != 1.0) else {
            return self.solve(noise, steps, |x, timestep| predict(x, timestep, &prompts));
        };
        let conditions = guidance.negative.repeat(batch)?.stack(&prompts)?;
        self.solve(noise, steps, |x, timestep| {
            let both = predict(&Tensor::cat(&[x, x], 0)?, timestep, &conditions)?;
            let negative = both.narrow(0, 0, batch)?;
            let prompted = both.narrow(0, batch, batch)?;
            Ok(negative.add(&prompted.sub(&negative)?.affine(guidance.scale, 0.0)?)?)
        })
    }

    /// A sample [B, C, H, W] f32 from `noise` [B, C, H, W] of unit variance, by whatever model: `predict` is called once
    /// a step, with what diffusers' `scale_model_input` returns and the timestep, and gives the prediction [B, C, H, W].
    ///
    /// # Errors
    /// A schedule that cannot take such steps, predictions of another shape, and whatever `predict` returns.
    pub fn solve(
        &self,
        noise: &Tensor,
        steps: Steps,
        mut predict: impl FnMut(&Tensor, f64) -> Result<Tensor, Error>,
    ) -> Result<Tensor, Error> {
        let timesteps = self.timesteps(steps)?;
        let mut descent: Box<dyn Descent> = match steps.solver {
            Solver::Ddim => Box::new(Ddim::new(self, &timesteps)),
            Solver::DpmSolverPlusPlus => Box::new(DpmSolver::new(self, &timesteps)?),
            Solver::Euler => Box::new(Euler::new(self, &timesteps)?),
        };
        let mut x = descent.start(&noise.to_dtype(DType::F32)?)?;
        for (step, timestep) in timesteps.into_iter().enumerate() {
            let prediction = predict(&descent.input(step, &x)?, timestep)?;
            x = descent.step(step, &x, &prediction)?;
        }
        Ok(x)
    }

    fn alpha_cumprod(&self, timestep: usize) -> Result<f64, Error> {
        self.alphas_cumprod.get(timestep).copied().ok_or_else(|| Error::Argument {
            argument: "timestep",
            problem: format!("expected one below {}, found {timestep}", self.alphas_cumprod.len()),
        })
    }
}

/// a·x + b·y
fn mix(a: f64, x: &Tensor, b: f64, y: &Tensor) -> candle_core::Result<Tensor> {
    x.affine(a, 0.0)?.add(&y.affine(b, 0.0)?)
}
