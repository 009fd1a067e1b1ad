//! DDIM sampling (arXiv 2010.02502, equation 12) without noise, η = 0. Source: diffusers `schedulers/scheduling_ddim.py`.

use candle_core::Tensor;
use deltaconv_proto::teacher::PredictionType;

use super::solver::Descent;
use super::{Error, Sampler, mix};

/// x is √ᾱ_t x₀ + √(1−ᾱ_t) ε.
pub(super) struct Ddim<'a> {
    sampler: &'a Sampler,
    timesteps: Vec<usize>,
    /// From a timestep to the one that its step ends at, whatever the spacing.
    stride: usize,
}

impl<'a> Ddim<'a> {
    pub(super) fn new(sampler: &'a Sampler, timesteps: &[f64]) -> Self {
        let stride = sampler.scheduler.num_train_timesteps / timesteps.len().max(1);
        Self { sampler, timesteps: timesteps.iter().map(|t| *t as usize).collect(), stride }
    }

    /// From x at `timestep` to x at `previous`; `None` is the end.
    fn between(
        &self,
        x: &Tensor,
        prediction: &Tensor,
        timestep: usize,
        previous: Option<usize>,
    ) -> Result<Tensor, Error> {
        let scheduler = &self.sampler.scheduler;
        let alpha = self.sampler.alpha_cumprod(timestep)?;
        let alpha_previous = match previous {
            Some(previous) => self.sampler.alpha_cumprod(previous)?,
            None if scheduler.set_alpha_to_one => 1.0,
            None => self.sampler.alpha_cumprod(0)?,
        };
        let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let (original, epsilon) = match scheduler.prediction_type {
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
        let original = match scheduler.clip_sample_range {
            Some(range) => original.clamp(-range, range)?,
            None => original,
        };
        Ok(mix(alpha_previous.sqrt(), &original, (1.0 - alpha_previous).sqrt(), &epsilon)?)
    }
}

impl Descent for Ddim<'_> {
    fn start(&self, noise: &Tensor) -> Result<Tensor, Error> {
        Ok(noise.clone())
    }

    fn input(&self, _step: usize, x: &Tensor) -> Result<Tensor, Error> {
        Ok(x.clone())
    }

    fn step(&mut self, step: usize, x: &Tensor, prediction: &Tensor) -> Result<Tensor, Error> {
        let timestep = self.timesteps[step];
        self.between(x, prediction, timestep, timestep.checked_sub(self.stride))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use deltaconv_proto::teacher::Scheduler;

    use super::*;

    #[test]
    fn a_right_prediction_goes_straight_back() {
        let device = Device::Cpu;
        let x0 = Tensor::new(&[[[[0.5_f32, -0.25]]]], &device).unwrap();
        let noise = Tensor::new(&[[[[1.5_f32, 0.75]]]], &device).unwrap();
        for (prediction_type, prediction) in [("epsilon", &noise), ("sample", &x0)] {
            let json = format!(r#"{{"_class_name": "DDIMScheduler", "prediction_type": "{prediction_type}"}}"#);
            let sampler = Sampler::new(Scheduler::parse(json.as_bytes()).unwrap());
            let ddim = Ddim::new(&sampler, &[]);
            let x = sampler.add_noise(&x0, &noise, &[500]).unwrap();
            let earlier = ddim.between(&x, prediction, 500, Some(100)).unwrap();
            let expected = sampler.add_noise(&x0, &noise, &[100]).unwrap();
            let gap = earlier.sub(&expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(gap < 1e-6, "{prediction_type}: {gap}");
            let end = ddim.between(&x, prediction, 500, None).unwrap();
            let gap = end.sub(&x0).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(gap < 1e-6, "{prediction_type}: {gap}");
        }
    }
}
