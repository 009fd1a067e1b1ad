//! What sample i of a job is, from counter-based generators, so that any worker draws the same.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;

use crate::v1::JobSpec;

/// What numbers are drawn for. Each purpose has generators of its own.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// Samples that blocks are trained on and measured on during training.
    Capture,
    /// Samples on which teacher and student are compared.
    EvaluateNoise,
    /// Initial noise of pictures.
    EvaluatePictures,
    /// Initial noise of latents that the teacher samples.
    Synthesise,
    /// Which samples make up a batch; counted by epoch.
    Order,
    /// Initial weights; counted by layer.
    Weights,
}

/// The generator for number `i` of a purpose, keyed by (seed, purpose, i).
pub fn generator(seed: u64, purpose: Purpose, i: u64) -> ChaCha12Rng {
    let mut key = blake3::Hasher::new_derive_key("deltaconv 2026 counter-based generators v1");
    key.update(&seed.to_le_bytes());
    key.update(format!("{purpose:?}").as_bytes());
    let mut rng = ChaCha12Rng::from_seed(*key.finalize().as_bytes());
    // A stream has 2^68 bytes of its own, so the generators of two samples never overlap.
    rng.set_stream(i);
    rng
}

/// One noised latent: which scene, which prompt, how noisy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Row of `latents`.
    pub latent: usize,
    /// Whether the scene's prompt gives way to the empty one.
    pub empty_prompt: bool,
    /// In `0..num_train_timesteps`.
    pub timestep: usize,
    /// Standard normal, one number for each of the latent's.
    pub noise: Vec<f32>,
}

/// Which samples a job has, from its spec and the number of latents.
#[derive(Clone, Debug)]
pub struct Draw {
    /// The job's seed.
    pub seed: u64,
    /// Rows of `latents`.
    pub latents: usize,
    /// How many of the last of them training must not see.
    pub held_out_latents: usize,
    /// Samples for training; the held-out ones follow.
    pub training_samples: usize,
    /// The held-out samples after them.
    pub held_out_samples: usize,
    /// Held-out samples on which the predicted noise is compared.
    pub evaluation_samples: usize,
    /// Share of samples with the empty prompt.
    pub empty_prompt_fraction: f64,
    /// `num_train_timesteps` of the teacher's scheduler.
    pub timesteps: usize,
    /// Numbers in one latent.
    pub latent_len: usize,
}

impl Draw {
    /// The draw of a job whose data has `latents` rows of `latent_len` numbers. The spec was checked when it was planned.
    pub fn new(spec: &JobSpec, latents: usize, timesteps: usize, latent_len: usize) -> Self {
        let data = spec.data.clone().unwrap_or_default();
        let recipe = spec.recipe.clone().unwrap_or_default();
        let evaluation = spec.evaluation.unwrap_or_default();
        Self {
            seed: data.seed,
            latents,
            held_out_latents: data.held_out_latents as usize,
            training_samples: recipe.samples as usize,
            held_out_samples: recipe.held_out_samples as usize,
            evaluation_samples: evaluation.samples as usize,
            empty_prompt_fraction: recipe.empty_prompt_fraction,
            timesteps,
            latent_len,
        }
    }

    /// Sample `i` of the capture: for training while `i < training_samples`, held out from there on.
    pub fn capture(&self, i: usize) -> Sample {
        let held_out = i >= self.training_samples;
        let (position, of) = match held_out {
            true => (i - self.training_samples, self.held_out_samples),
            false => (i, self.training_samples),
        };
        self.sample(Purpose::Capture, i, position, of, held_out)
    }

    /// Sample `i` of those on which the predicted noise is compared: always held out.
    pub fn evaluation(&self, i: usize) -> Sample {
        self.sample(Purpose::EvaluateNoise, i, i, self.evaluation_samples, true)
    }

    /// Timesteps are stratified: sample `position` of `of` draws from its own slice of them, so that a small number of
    /// samples covers all. Training reads samples in random order, so neighbours never share a batch for it.
    fn sample(&self, purpose: Purpose, i: usize, position: usize, of: usize, held_out: bool) -> Sample {
        let mut rng = generator(self.seed, purpose, i as u64);
        let training_latents = self.latents - self.held_out_latents;
        let latent = match held_out {
            true => training_latents + rng.random_range(0..self.held_out_latents),
            false => rng.random_range(0..training_latents),
        };
        let within: f64 = rng.random();
        let timestep = ((position as f64 + within) / of as f64 * self.timesteps as f64) as usize;
        let empty_prompt = rng.random_bool(self.empty_prompt_fraction);
        let noise = normal(&mut rng, self.latent_len);
        Sample { latent, empty_prompt, timestep: timestep.min(self.timesteps - 1), noise }
    }
}

/// `len` standard normal numbers.
pub fn normal(rng: &mut ChaCha12Rng, len: usize) -> Vec<f32> {
    use rand_distr::{Distribution, StandardNormal};
    (0..len).map(|_| StandardNormal.sample(rng)).collect()
}

/// The training samples of batch `step`, in order: each epoch is a permutation of its own, batches run across its end.
pub fn batch(seed: u64, samples: usize, batch: usize, step: u64) -> Vec<usize> {
    let first = step as u128 * batch as u128;
    let mut epoch = (first / samples as u128) as u64;
    let mut position = (first % samples as u128) as usize;
    let mut order = permutation(seed, samples, epoch);
    let mut rows = Vec::with_capacity(batch);
    while rows.len() < batch {
        if position == samples {
            (epoch, position) = (epoch + 1, 0);
            order = permutation(seed, samples, epoch);
        }
        rows.push(order[position]);
        position += 1;
    }
    rows
}

fn permutation(seed: u64, samples: usize, epoch: u64) -> Vec<usize> {
    use rand::seq::SliceRandom;
    let mut order: Vec<usize> = (0..samples).collect();
    order.shuffle(&mut generator(seed, Purpose::Order, epoch));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw() -> Draw {
        Draw {
            seed: 7,
            latents: 20,
            held_out_latents: 4,
            training_samples: 100,
            held_out_samples: 10,
            evaluation_samples: 8,
            empty_prompt_fraction: 0.15,
            timesteps: 1000,
            latent_len: 12,
        }
    }

    #[test]
    fn held_out_samples_use_latents_that_training_never_sees() {
        let draw = draw();
        assert!((0..100).all(|i| draw.capture(i).latent < 16));
        assert!((100..110).all(|i| draw.capture(i).latent >= 16));
        assert!((0..8).all(|i| draw.evaluation(i).latent >= 16));
    }

    #[test]
    fn a_sample_depends_on_its_number_alone() {
        let draw = draw();
        assert_eq!(draw.capture(33), draw.capture(33));
        assert_ne!(draw.capture(33).noise, draw.capture(34).noise);
        assert_ne!(draw.capture(3).noise, draw.evaluation(3).noise);
    }

    #[test]
    fn few_samples_cover_all_timesteps() {
        let draw = draw();
        let quarters: Vec<usize> = (0..8).map(|i| draw.evaluation(i).timestep / 250).collect();
        assert_eq!(quarters, [0, 0, 1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn every_epoch_visits_each_sample_once() {
        let mut seen: Vec<usize> = (0..5).flat_map(|step| batch(1, 20, 8, step)).collect();
        let mut first: Vec<usize> = seen.drain(..20).collect();
        first.sort_unstable();
        seen.sort_unstable();
        assert_eq!(first, (0..20).collect::<Vec<_>>());
        assert_eq!(seen, first);
    }
}
