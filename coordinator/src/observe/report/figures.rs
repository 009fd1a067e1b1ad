//! The figures, from the parts of the evaluation.

use super::part::{Noise, Pictures};
use super::{Error, psnr};

/// Student (or teacher without attention) against the teacher.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Comparison {
    /// Σ error / Σ energy of the predicted noise.
    pub(super) epsilon_relative_mse: f64,
    /// The same over the samples of each quarter of the timesteps; none where there is no sample.
    pub(super) by_timestep_quarter: [Option<f64>; 4],
    /// Mean over the pictures.
    pub(super) psnr_db: f64,
    pub(super) psnr_median_db: f64,
    /// By picture, in order.
    pub(super) psnr_each_db: Vec<f64>,
}

/// The predicted noise of one student.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NoiseError {
    pub(super) epsilon_relative_mse: f64,
    pub(super) by_timestep_quarter: [Option<f64>; 4],
}

/// All comparisons.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Compared {
    pub(super) student: Comparison,
    pub(super) removed: Comparison,
    /// The student of each round before the last.
    pub(super) rounds: Vec<NoiseError>,
    pub(super) noise_samples: u64,
}

/// Sums over the parts seen so far.
#[derive(Debug)]
pub(super) struct Measured {
    timesteps: usize,
    samples: u64,
    energy: [f64; 4],
    student: Sums,
    removed: Sums,
    /// Sums of errors of each round before the last.
    rounds: Vec<[f64; 4]>,
}

#[derive(Debug, Default)]
struct Sums {
    error: [f64; 4],
    psnr: Vec<f64>,
}

impl Measured {
    /// `timesteps` are those of the noise schedule.
    pub(super) fn new(timesteps: usize) -> Self {
        let (student, removed) = (Sums::default(), Sums::default());
        Self { timesteps: timesteps.max(1), samples: 0, energy: [0.0; 4], student, removed, rounds: Vec::new() }
    }

    pub(super) fn add_noise(&mut self, noise: &Noise) {
        self.rounds.resize(noise.round_error.len().max(self.rounds.len()), [0.0; 4]);
        for (i, &timestep) in noise.timestep.iter().enumerate() {
            let timestep = usize::try_from(timestep).unwrap_or_default();
            let quarter = (timestep.min(self.timesteps - 1) * 4) / self.timesteps;
            self.energy[quarter] += noise.energy[i];
            self.student.error[quarter] += noise.student_error[i];
            self.removed.error[quarter] += noise.removed_error[i];
            for (sums, errors) in self.rounds.iter_mut().zip(&noise.round_error) {
                sums[quarter] += errors[i];
            }
            self.samples += 1;
        }
    }

    pub(super) fn add_pictures(&mut self, pictures: &Pictures) {
        for i in 0..pictures.prompt.len() {
            let teacher = pictures.picture(&pictures.teacher, i);
            self.student.psnr.push(psnr::of_picture(teacher, pictures.picture(&pictures.student, i)));
            self.removed.psnr.push(psnr::of_picture(teacher, pictures.picture(&pictures.removed, i)));
        }
    }

    /// The figures.
    ///
    /// # Errors
    /// [`Error::NothingMeasured`] without samples or pictures, or when the teacher predicts nothing.
    pub(super) fn compared(&self) -> Result<Compared, Error> {
        if self.energy.iter().sum::<f64>() <= 0.0 {
            return Err(Error::NothingMeasured {
                found: "no sample on which the teacher predicts any noise",
                missing: "epsilon_relative_mse",
            });
        }
        if self.student.psnr.is_empty() {
            return Err(Error::NothingMeasured { found: "no pictures", missing: "psnr_db" });
        }
        let (student, removed) = (self.comparison(&self.student), self.comparison(&self.removed));
        let rounds = self.rounds.iter().map(|error| self.noise_error(error)).collect();
        Ok(Compared { student, removed, rounds, noise_samples: self.samples })
    }

    fn noise_error(&self, error: &[f64; 4]) -> NoiseError {
        let quarter = |i: usize| (self.energy[i] > 0.0).then(|| error[i] / self.energy[i]);
        NoiseError {
            epsilon_relative_mse: error.iter().sum::<f64>() / self.energy.iter().sum::<f64>(),
            by_timestep_quarter: std::array::from_fn(quarter),
        }
    }

    fn comparison(&self, sums: &Sums) -> Comparison {
        let NoiseError { epsilon_relative_mse, by_timestep_quarter } = self.noise_error(&sums.error);
        Comparison {
            epsilon_relative_mse,
            by_timestep_quarter,
            psnr_db: psnr::mean(&sums.psnr),
            psnr_median_db: psnr::median(&sums.psnr),
            psnr_each_db: sums.psnr.clone(),
        }
    }
}
