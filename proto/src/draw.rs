//! What sample i of a job is, from counter-based generators, so that any worker draws the same.

use std::sync::Arc;

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
    /// Samples that all blocks are trained on together; counted by step.
    Finetune,
    /// Those of channels that a trained block gets in addition; counted by layer.
    Widening,
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
    /// The numbers in each latent, row by row of `latents`.
    pub latents: Vec<usize>,
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
}

impl Draw {
    /// The draw of a job whose latents have so many numbers each. The spec was checked when it was planned.
    pub fn new(spec: &JobSpec, latents: Vec<usize>, timesteps: usize) -> Self {
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
        }
    }

    /// Sample `i` of the capture: for training while `i < training_samples`, held out from there on.
    pub fn capture(&self, i: usize) -> Sample {
        let (position, of) = self.position_of_capture(i);
        self.sample(Purpose::Capture, i, position, of, self.is_held_out(i))
    }

    /// The latent of [`Self::capture`], without its noise.
    pub fn latent_of_capture(&self, i: usize) -> usize {
        self.latent(&mut generator(self.seed, Purpose::Capture, i as u64), self.is_held_out(i))
    }

    /// The timestep of [`Self::capture`], without its noise.
    pub fn timestep_of_capture(&self, i: usize) -> usize {
        let (position, of) = self.position_of_capture(i);
        let mut rng = generator(self.seed, Purpose::Capture, i as u64);
        self.latent(&mut rng, self.is_held_out(i));
        self.timestep(&mut rng, position, of)
    }

    /// Where sample `i` of the capture stands among those that share the timesteps, and how many those are.
    fn position_of_capture(&self, i: usize) -> (usize, usize) {
        match self.is_held_out(i) {
            true => (i - self.training_samples, self.held_out_samples),
            false => (i, self.training_samples),
        }
    }

    /// Sample `i` of those on which the predicted noise is compared: always held out.
    pub fn evaluation(&self, i: usize) -> Sample {
        self.sample(Purpose::EvaluateNoise, i, i, self.evaluation_samples, true)
    }

    /// The latent of [`Self::evaluation`], without its noise.
    pub fn latent_of_evaluation(&self, i: usize) -> usize {
        self.latent(&mut generator(self.seed, Purpose::EvaluateNoise, i as u64), true)
    }

    /// The samples of one step of training all blocks together, `batch` of them: of training latents, all of one bucket.
    /// Their timesteps cover all, those of little noise more densely: that is where most of the error is, and
    /// [`Self::weight_of_finetune`] makes up for it.
    pub fn finetune(&self, step: u64, batch: usize, bucket_of: impl Fn(usize) -> usize) -> Vec<Sample> {
        let mut rng = generator(self.seed, Purpose::Finetune, step);
        let bucket = bucket_of(self.latent(&mut rng, false));
        let training_latents = 0..self.latents.len() - self.held_out_latents;
        let of_bucket: Vec<usize> = training_latents.filter(|latent| bucket_of(*latent) == bucket).collect();
        let sample = |position| {
            let latent = of_bucket[rng.random_range(0..of_bucket.len())];
            let share = self.share(&mut rng, position, batch).powi(2);
            let timestep = ((share * self.timesteps as f64) as usize).min(self.timesteps - 1);
            let empty_prompt = rng.random_bool(self.empty_prompt_fraction);
            Sample { latent, empty_prompt, timestep, noise: normal(&mut rng, self.latents[latent]) }
        };
        (0..batch).map(sample).collect()
    }

    /// What a sample of [`Self::finetune`] counts, so that their weighted mean is the mean over all timesteps: squares of
    /// uniform numbers s have the density 1 / (2 √s).
    pub fn weight_of_finetune(&self, timestep: usize) -> f32 {
        (2.0 * ((timestep as f64 + 0.5) / self.timesteps as f64).sqrt()) as f32
    }

    fn is_held_out(&self, i: usize) -> bool {
        i >= self.training_samples
    }

    fn sample(&self, purpose: Purpose, i: usize, position: usize, of: usize, held_out: bool) -> Sample {
        let mut rng = generator(self.seed, purpose, i as u64);
        let latent = self.latent(&mut rng, held_out);
        let timestep = self.timestep(&mut rng, position, of);
        let empty_prompt = rng.random_bool(self.empty_prompt_fraction);
        let noise = normal(&mut rng, self.latents[latent]);
        Sample { latent, empty_prompt, timestep, noise }
    }

    /// The second number: timesteps are stratified. Each of `of` samples draws from its own slice of them, so that a small
    /// number of samples covers all. Neighbours lie far apart, so that a batch of them covers all as well.
    fn timestep(&self, rng: &mut ChaCha12Rng, position: usize, of: usize) -> usize {
        let timestep = (self.share(rng, position, of) * self.timesteps as f64) as usize;
        timestep.min(self.timesteps - 1)
    }

    /// Of all timesteps, those that are before the sample's.
    fn share(&self, rng: &mut ChaCha12Rng, position: usize, of: usize) -> f64 {
        let within: f64 = rng.random();
        (slice(position, of) as f64 + within) / of as f64
    }

    /// The first number that is drawn for a sample.
    fn latent(&self, rng: &mut ChaCha12Rng, held_out: bool) -> usize {
        let training_latents = self.latents.len() - self.held_out_latents;
        match held_out {
            true => training_latents + rng.random_range(0..self.held_out_latents),
            false => rng.random_range(0..training_latents),
        }
    }
}

/// `len` standard normal numbers.
pub fn normal(rng: &mut ChaCha12Rng, len: usize) -> Vec<f32> {
    use rand_distr::{Distribution, StandardNormal};
    (0..len).map(|_| StandardNormal.sample(rng)).collect()
}

/// The slice of sample `position` of `of`: multiples of a number near the golden section of `of`, modulo `of`, whose
/// successive members lie as evenly as can be (Knuth, The Art of Computer Programming 3, section 6.4, theorem S).
fn slice(position: usize, of: usize) -> usize {
    const GOLDEN: f64 = 0.618_033_988_749_894_8;
    // Without a common divisor, every slice comes once.
    let stride = (1..).map(|add| (of as f64 * GOLDEN) as usize + add).find(|stride| gcd(*stride, of) == 1);
    (position as u128 * stride.unwrap_or(1) as u128 % of as u128) as usize
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The batches of a training, without end: the samples of each, in order.
///
/// Samples come in a stream of epochs. The first one has them as they were drawn, which is at random already, so that
/// training can begin when the first shards have arrived; each later one is a permutation of its own. Each bucket gathers
/// its samples, and as soon as there are enough for a batch, they are the next one: so a batch is of one bucket, buckets
/// come as often as they have samples, and every sample comes once an epoch. What is left of a bucket at the end of an
/// epoch waits for the next.
#[derive(Clone, Debug)]
pub struct Batches {
    seed: u64,
    bucket_of: Arc<[usize]>,
    batch: usize,
    epoch: u64,
    order: Vec<usize>,
    position: usize,
    /// By bucket.
    waiting: Vec<Vec<usize>>,
}

impl Batches {
    /// The batches of `batch` samples from number `step` on; `bucket_of` each sample says which bucket it is in.
    pub fn new(seed: u64, bucket_of: impl Into<Arc<[usize]>>, batch: usize, step: u64) -> Self {
        let bucket_of = bucket_of.into();
        let mut samples = vec![0_u128; bucket_of.iter().max().map_or(0, |last| last + 1)];
        bucket_of.iter().for_each(|bucket| samples[*bucket] += 1);
        let size = batch.max(1) as u128;
        let complete = |epochs: u128| samples.iter().map(|samples| epochs * samples / size).sum::<u128>();
        let epoch = last_epoch(u128::from(step), bucket_of.len() as u128, size, samples.len() as u128, complete);

        // What waits at its beginning, from the ends of the epochs before.
        let mut waiting: Vec<Vec<usize>> = vec![Vec::new(); samples.len()];
        let left = |bucket: usize| (epoch * samples[bucket] % size) as usize;
        let mut before = epoch as u64;
        while waiting.iter().enumerate().any(|(bucket, waiting)| waiting.len() < left(bucket)) {
            before -= 1;
            for &sample in order(seed, bucket_of.len(), before).iter().rev() {
                let bucket = bucket_of[sample];
                if waiting[bucket].len() < left(bucket) {
                    waiting[bucket].push(sample);
                }
            }
        }
        waiting.iter_mut().for_each(|waiting| waiting.reverse());

        let order = order(seed, bucket_of.len(), epoch as u64);
        let mut batches =
            Self { seed, bucket_of, batch: batch.max(1), epoch: epoch as u64, order, position: 0, waiting };
        let into_epoch = u128::from(step) - complete(epoch);
        batches.by_ref().take(into_epoch as usize).for_each(drop);
        batches
    }
}

/// The last epoch before which no more than `step` batches were complete.
fn last_epoch(step: u128, samples: u128, batch: u128, buckets: u128, complete: impl Fn(u128) -> u128) -> u128 {
    // Each bucket may keep up to a batch waiting, so the epoch lies between these two.
    let samples = samples.max(1);
    let (mut first, mut last) = (step * batch / samples, (step + 1 + buckets) * batch / samples + 1);
    while last - first > 1 {
        let middle = first.midpoint(last);
        match complete(middle) <= step {
            true => first = middle,
            false => last = middle,
        }
    }
    first
}

impl Iterator for Batches {
    type Item = Vec<usize>;

    /// `None` only where there are no samples.
    fn next(&mut self) -> Option<Vec<usize>> {
        loop {
            if self.position == self.order.len() {
                (self.epoch, self.position) = (self.epoch + 1, 0);
                self.order = order(self.seed, self.bucket_of.len(), self.epoch);
            }
            let sample = *self.order.get(self.position)?;
            self.position += 1;
            let waiting = &mut self.waiting[self.bucket_of[sample]];
            waiting.push(sample);
            if waiting.len() == self.batch {
                return Some(std::mem::take(waiting));
            }
        }
    }
}

/// The samples of an epoch, in order.
fn order(seed: u64, samples: usize, epoch: u64) -> Vec<usize> {
    if epoch == 0 { (0..samples).collect() } else { permutation(seed, samples, epoch) }
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
            latents: vec![12; 20],
            held_out_latents: 4,
            training_samples: 100,
            held_out_samples: 10,
            evaluation_samples: 8,
            empty_prompt_fraction: 0.15,
            timesteps: 1000,
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
        assert!((0..110).all(|i| draw.latent_of_capture(i) == draw.capture(i).latent));
        assert!((0..110).all(|i| draw.timestep_of_capture(i) == draw.capture(i).timestep));
        assert!((0..8).all(|i| draw.latent_of_evaluation(i) == draw.evaluation(i).latent));
    }

    #[test]
    fn what_blocks_are_trained_on_together_covers_all_timesteps_and_is_of_one_bucket() {
        let draw = Draw { latents: (0..20).map(|row| 10 + row % 3).collect(), ..draw() };
        let (mut seen, mut sums) = ([false; 3], [0.0; 2]);
        for step in 0..40 {
            let samples = draw.finetune(step, 8, |latent| latent % 3);
            let bucket = samples[0].latent % 3;
            seen[bucket] = true;
            assert!(samples.iter().all(|s| s.latent < 16 && s.latent % 3 == bucket && s.noise.len() == 10 + bucket));
            let mut timesteps: Vec<usize> = samples.iter().map(|sample| sample.timestep).collect();
            timesteps.sort_unstable();
            for (eighth, timestep) in timesteps.into_iter().enumerate() {
                let edge = |eighth: usize| 1000 * eighth.pow(2) / 64;
                assert!((edge(eighth)..=edge(eighth + 1)).contains(&timestep), "{timestep} in eighth {eighth}");
            }
            for sample in samples {
                let weight = f64::from(draw.weight_of_finetune(sample.timestep));
                sums = [sums[0] + weight, sums[1] + weight * (sample.timestep as f64 / 1000.0).powi(2)];
            }
        }
        // Weighted, they stand for all timesteps alike.
        assert!((sums[0] / 320.0 - 1.0).abs() < 0.02 && (sums[1] / 320.0 - 1.0 / 3.0).abs() < 0.02, "{sums:?}");
        assert_eq!(seen, [true; 3]);
        assert_eq!(draw.finetune(3, 8, |_| 0), draw.finetune(3, 8, |_| 0));
        assert_ne!(draw.finetune(3, 8, |_| 0)[0].noise, draw.finetune(4, 8, |_| 0)[0].noise);
    }

    #[test]
    fn the_noise_has_the_length_of_its_latent() {
        let draw = Draw { latents: (0..20).map(|row| 10 + row % 3).collect(), ..draw() };
        assert!((0..110).map(|i| draw.capture(i)).all(|sample| sample.noise.len() == 10 + sample.latent % 3));
    }

    #[test]
    fn few_samples_cover_all_timesteps() {
        let draw = draw();
        let mut quarters: Vec<usize> = (0..8).map(|i| draw.evaluation(i).timestep / 250).collect();
        quarters.sort_unstable();
        assert_eq!(quarters, [0, 0, 1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn neighbours_cover_the_timesteps() {
        for (of, run) in [(8192, 64), (100, 10), (640, 64), (7, 3)] {
            let slices: Vec<usize> = (0..of).map(|position| slice(position, of)).collect();
            let mut all = slices.clone();
            all.sort_unstable();
            assert_eq!(all, (0..of).collect::<Vec<_>>());
            for neighbours in slices.windows(run) {
                let mut neighbours = neighbours.to_vec();
                neighbours.sort_unstable();
                let gap = neighbours.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
                assert!(gap <= 3 * of.div_ceil(run), "{gap} of {of} in {run}");
            }
        }
    }

    #[test]
    fn batches_of_one_bucket_are_pieces_of_the_epochs_the_first_of_which_is_in_order() {
        for (samples, size) in [(20, 8), (7, 3), (5, 5), (3, 8), (1, 4)] {
            let stream: Vec<usize> = (0..40).flat_map(|epoch| order(1, samples, epoch)).collect();
            assert_eq!(stream[..samples], (0..samples).collect::<Vec<_>>());
            let found: Vec<_> = Batches::new(1, vec![0; samples], size, 0).take(stream.len() / size).collect();
            let expected: Vec<_> = stream.chunks_exact(size).map(<[usize]>::to_vec).collect();
            assert_eq!(found, expected, "{samples} by {size}");
        }
    }

    /// 13 samples of one bucket, 6 of another, one of a third.
    fn bucket_of() -> Vec<usize> {
        (0..20).map(|i| if i == 11 { 2 } else { usize::from(i % 3 == 1) }).collect()
    }

    #[test]
    fn batches_go_on_from_any_step() {
        for (bucket_of, size) in [(bucket_of(), 4), (bucket_of(), 9), (vec![0; 5], 8), (vec![1; 6], 3)] {
            let all: Vec<_> = Batches::new(3, bucket_of.clone(), size, 0).take(60).collect();
            for step in 0..50 {
                let from: Vec<_> = Batches::new(3, bucket_of.clone(), size, step).take(10).collect();
                assert_eq!(from, all[step as usize..step as usize + 10], "{bucket_of:?} by {size} from {step}");
            }
        }
        assert_eq!(Batches::new(3, Vec::new(), 4, 0).next(), None);
    }

    #[test]
    fn a_batch_is_of_one_bucket_and_every_epoch_visits_each_sample_once() {
        let (bucket_of, size) = (bucket_of(), 4);
        let mut streams = vec![Vec::new(); 3];
        // 12 epochs; the buckets' last samples wait for the next.
        for (step, rows) in Batches::new(1, bucket_of.clone(), size, 0).take(12 * 20 / size - 1).enumerate() {
            let bucket = bucket_of[rows[0]];
            assert!(rows.len() == size && rows.iter().all(|row| bucket_of[*row] == bucket), "{step}: {rows:?}");
            streams[bucket].extend(rows);
            // In proportion at every time: no bucket is behind by more than an epoch's rest.
            for (bucket, stream) in streams.iter().enumerate() {
                let of_bucket = bucket_of.iter().filter(|of| **of == bucket).count();
                let expected = (step + 1) as f64 * size as f64 * of_bucket as f64 / 20.0;
                assert!((stream.len() as f64 - expected).abs() <= 2.0 * size as f64, "{step}: {bucket}");
            }
        }
        for (bucket, stream) in streams.iter().enumerate() {
            let all: Vec<usize> = (0..20).filter(|i| bucket_of[*i] == bucket).collect();
            for epoch in stream.chunks_exact(all.len()) {
                let mut epoch = epoch.to_vec();
                epoch.sort_unstable();
                assert_eq!(epoch, all);
            }
        }
        assert_ne!(streams[0][..13], streams[0][13..26], "epochs differ");
    }
}
