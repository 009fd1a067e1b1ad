//! DDIM sampling (arXiv 2010.02502) without noise, η = 0. Source: diffusers `schedulers/scheduling_ddim.py`.

use candle_core::{DType, Device, Tensor};
use deltaconv_proto::teacher::{PredictionType, Scheduler, TimestepSpacing};

use super::{Conditions, Denoiser, Error, SelfAttention};

/// Classifier-free guidance: ε = ε(empty) + scale · (ε(prompt) − ε(empty)).
#[derive(Debug, Clone)]
pub struct Guidance {
    /// 1 is no guidance.
    pub scale: f64,
    /// The empty prompt's embedding: [1, T, D].
    pub empty_prompt: Tensor,
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

    /// The timesteps that `steps` steps of sampling visit, first to last.
    ///
    /// # Errors
    /// No steps, more than the schedule has timesteps, or an offset that leaves the schedule.
    pub fn timesteps(&self, steps: usize) -> Result<Vec<usize>, Error> {
        let train = self.scheduler.num_train_timesteps;
        if !(1..=train).contains(&steps) {
            let problem = format!("expected 1 to {train}, found {steps}");
            return Err(Error::Argument { argument: "steps", problem });
        }
        // numpy rounds halves to even.
        let timesteps: Vec<usize> = match self.scheduler.timestep_spacing {
            TimestepSpacing::Leading => {
                (0..steps).rev().map(|i| i * (train / steps) + self.scheduler.steps_offset).collect()
            }
            TimestepSpacing::Linspace => {
                let step = (train - 1) as f64 / (steps - 1).max(1) as f64;
                (0..steps).rev().map(|i| (i as f64 * step).round_ties_even() as usize).collect()
            }
            TimestepSpacing::Trailing => {
                let step = train as f64 / steps as f64;
                (0..steps)
                    .map(|i| ((train as f64 - i as f64 * step).round_ties_even() as usize).saturating_sub(1))
                    .collect()
            }
        };
        match timesteps.iter().find(|t| **t >= train) {
            Some(t) => {
                let problem = format!("{steps} with the schedule's steps_offset reach timestep {t} of {train}");
                Err(Error::Argument { argument: "steps", problem })
            }
            None => Ok(timesteps),
        }
    }

    /// Latents [B, C, H, W] f32 for the prompts [B, T, D], from `noise` [B, C, H, W].
    ///
    /// # Errors
    /// Shapes that do not fit, a schedule that cannot take so many steps, and whatever the model returns.
    pub fn sample(
        &self,
        model: &Denoiser,
        noise: &Tensor,
        prompts: &Tensor,
        guidance: Option<&Guidance>,
        steps: usize,
        attention: &mut dyn SelfAttention,
    ) -> Result<Tensor, Error> {
        let guidance = guidance.filter(|guidance| guidance.scale != 1.0);
        let batch = noise.dim(0)?;
        let conditions = match guidance {
            Some(guidance) => {
                let (_, tokens, channels) = prompts.dims3()?;
                let empty = guidance.empty_prompt.to_dtype(prompts.dtype())?.broadcast_as((batch, tokens, channels))?;
                Tensor::cat(&[&empty, prompts], 0)?
            }
            None => prompts.clone(),
        };
        let conditions = Conditions::from(conditions);
        let stride = self.scheduler.num_train_timesteps / steps.max(1);
        let mut x = noise.to_dtype(DType::F32)?;
        for timestep in self.timesteps(steps)? {
            let t = Tensor::from_slice(&[timestep as f32], 1, &Device::Cpu)?;
            let prediction = match guidance {
                Some(guidance) => {
                    let both = model.predict(&Tensor::cat(&[&x, &x], 0)?, &t, &conditions, attention)?;
                    let empty = both.narrow(0, 0, batch)?;
                    let prompted = both.narrow(0, batch, batch)?;
                    empty.add(&prompted.sub(&empty)?.affine(guidance.scale, 0.0)?)?
                }
                None => model.predict(&x, &t, &conditions, attention)?,
            };
            x = self.step(&x, &prediction, timestep, timestep.checked_sub(stride))?;
        }
        Ok(x)
    }

    /// From x at `timestep` to x at `previous`; `None` is the end.
    fn step(&self, x: &Tensor, prediction: &Tensor, timestep: usize, previous: Option<usize>) -> Result<Tensor, Error> {
        let alpha = self.alpha_cumprod(timestep)?;
        let alpha_previous = match previous {
            Some(previous) => self.alpha_cumprod(previous)?,
            None if self.scheduler.set_alpha_to_one => 1.0,
            None => self.alpha_cumprod(0)?,
        };
        let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        /// a·x + b·y
        fn mix(a: f64, x: &Tensor, b: f64, y: &Tensor) -> candle_core::Result<Tensor> {
            x.affine(a, 0.0)?.add(&y.affine(b, 0.0)?)
        }
        let (original, epsilon) = match self.scheduler.prediction_type {
            PredictionType::Epsilon if signal == 0.0 => {
                let problem = format!("timestep {timestep} is pure noise, from which an ε-prediction gives no x₀");
                return Err(Error::Argument { argument: "steps", problem });
            }
            PredictionType::Epsilon => (mix(1.0 / signal, x, -noise / signal, prediction)?, prediction.clone()),
            PredictionType::Sample if noise == 0.0 => {
                let problem = format!("timestep {timestep} has no noise, so an x₀-prediction gives no ε");
                return Err(Error::Argument { argument: "steps", problem });
            }
            PredictionType::Sample => (prediction.clone(), mix(1.0 / noise, x, -signal / noise, prediction)?),
            PredictionType::VPrediction => (mix(signal, x, -noise, prediction)?, mix(signal, prediction, noise, x)?),
        };
        let original = match self.scheduler.clip_sample_range {
            Some(range) => original.clamp(-range, range)?,
            None => original,
        };
        Ok(mix(alpha_previous.sqrt(), &original, (1.0 - alpha_previous).sqrt(), &epsilon)?)
    }

    fn alpha_cumprod(&self, timestep: usize) -> Result<f64, Error> {
        self.alphas_cumprod.get(timestep).copied().ok_or_else(|| Error::Argument {
            argument: "timestep",
            problem: format!("expected one below {}, found {timestep}", self.alphas_cumprod.len()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(fields: &str) -> Sampler {
        let json = format!(r#"{{"_class_name": "DDIMScheduler"{fields}}}"#);
        Sampler::new(Scheduler::parse(json.as_bytes()).unwrap())
    }

    /// As numpy gives them in diffusers' `set_timesteps`.
    #[test]
    fn timesteps_are_those_of_the_spacing() {
        let leading = sampler(r#", "steps_offset": 1"#);
        assert_eq!(leading.timesteps(4).unwrap(), [751, 501, 251, 1]);
        assert_eq!(leading.timesteps(3).unwrap(), [667, 334, 1]);
        assert!(leading.timesteps(1000).is_err());
        assert!(leading.timesteps(0).is_err());
        let trailing = sampler(r#", "timestep_spacing": "trailing""#);
        assert_eq!(trailing.timesteps(3).unwrap(), [999, 666, 332]);
        let linspace = sampler(r#", "timestep_spacing": "linspace""#);
        assert_eq!(linspace.timesteps(3).unwrap(), [999, 500, 0]);
    }

    #[test]
    fn a_right_prediction_goes_straight_back() {
        let device = Device::Cpu;
        let x0 = Tensor::new(&[[[[0.5_f32, -0.25]]]], &device).unwrap();
        let noise = Tensor::new(&[[[[1.5_f32, 0.75]]]], &device).unwrap();
        for (prediction_type, prediction) in [("epsilon", &noise), ("sample", &x0)] {
            let sampler = sampler(&format!(r#", "prediction_type": "{prediction_type}""#));
            let x = sampler.add_noise(&x0, &noise, &[500]).unwrap();
            let earlier = sampler.step(&x, prediction, 500, Some(100)).unwrap();
            let expected = sampler.add_noise(&x0, &noise, &[100]).unwrap();
            let gap = earlier.sub(&expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(gap < 1e-6, "{prediction_type}: {gap}");
            let end = sampler.step(&x, prediction, 500, None).unwrap();
            let gap = end.sub(&x0).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(gap < 1e-6, "{prediction_type}: {gap}");
        }
    }
}
