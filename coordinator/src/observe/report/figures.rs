//! The figures, from the parts of the evaluation.

use serde::Serialize;

use super::part::{ByLayer, Noise, PartError, Pictures};
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
    /// The students before it, in the order of the evaluation's task.
    pub(super) earlier: Vec<Comparison>,
    /// By layer, or empty where no part looked at them.
    pub(super) layers: Vec<OfLayer>,
    pub(super) noise_samples: u64,
    /// Those of them on which the layers were looked at.
    pub(super) layer_samples: u64,
    pub(super) latency: Option<Latency>,
}

/// What a sample takes in a pass of the evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Latency {
    /// Median over the batches, on whatever worker had them.
    pub(super) teacher_seconds: f64,
    pub(super) student_seconds: f64,
    pub(super) batches: usize,
}

/// What one layer does to the student.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OfLayer {
    /// The predicted noise of the teacher with only this layer replaced.
    pub(super) alone: NoiseError,
    /// Σ difference / Σ energy of the residual stream before it, student to teacher.
    pub(super) drift: f64,
}

/// Sums over the parts seen so far.
#[derive(Debug)]
pub(super) struct Measured {
    timesteps: usize,
    samples: u64,
    energy: [f64; 4],
    student: Sums,
    removed: Sums,
    /// Of the students before it.
    earlier: Vec<Sums>,
    /// Over the samples on which the layers were looked at.
    layer_samples: u64,
    layer_energy: [f64; 4],
    layers: Vec<LayerSums>,
    teacher_seconds: Vec<f64>,
    student_seconds: Vec<f64>,
}

#[derive(Clone, Debug, Default)]
struct LayerSums {
    alone: [f64; 4],
    stream_energy: f64,
    stream_error: f64,
}

#[derive(Debug, Default)]
struct Sums {
    error: [f64; 4],
    psnr: Vec<f64>,
}

impl Measured {
    /// `timesteps` are those of the noise schedule, `layers` those that were replaced.
    pub(super) fn new(timesteps: usize, layers: usize) -> Self {
        Self {
            timesteps: timesteps.max(1),
            samples: 0,
            energy: [0.0; 4],
            student: Sums::default(),
            removed: Sums::default(),
            earlier: Vec::new(),
            layer_samples: 0,
            layer_energy: [0.0; 4],
            layers: vec![LayerSums::default(); layers],
            teacher_seconds: Vec::new(),
            student_seconds: Vec::new(),
        }
    }

    fn quarter(&self, timestep: i64) -> usize {
        let timestep = usize::try_from(timestep).unwrap_or_default();
        (timestep.min(self.timesteps - 1) * 4) / self.timesteps
    }

    /// Adds a part.
    ///
    /// # Errors
    /// [`PartError::Layers`] where it is of other layers.
    pub(super) fn add_noise(&mut self, noise: &Noise) -> Result<(), PartError> {
        self.expect_earlier(noise.round_error.len());
        for (i, &timestep) in noise.timestep.iter().enumerate() {
            let quarter = self.quarter(timestep);
            self.energy[quarter] += noise.energy[i];
            self.student.error[quarter] += noise.student_error[i];
            self.removed.error[quarter] += noise.removed_error[i];
            for (sums, errors) in self.earlier.iter_mut().zip(&noise.round_error) {
                sums.error[quarter] += errors[i];
            }
            self.samples += 1;
        }
        self.teacher_seconds.extend(&noise.teacher_seconds);
        self.student_seconds.extend(&noise.student_seconds);
        self.add_layers(&noise.by_layer)
    }

    fn add_layers(&mut self, part: &ByLayer) -> Result<(), PartError> {
        let (found, expected) = (part.alone_error.len(), self.layers.len());
        if found != expected && !part.timestep.is_empty() {
            return Err(PartError::Layers { found, expected });
        }
        self.layer_samples += part.timestep.len() as u64;
        for (i, &timestep) in part.timestep.iter().enumerate() {
            let quarter = self.quarter(timestep);
            self.layer_energy[quarter] += part.energy[i];
            for (sums, alone) in self.layers.iter_mut().zip(&part.alone_error) {
                sums.alone[quarter] += alone[i];
            }
        }
        let streams = part.stream_energy.iter().zip(&part.stream_error);
        for (sums, (energy, error)) in self.layers.iter_mut().zip(streams) {
            sums.stream_energy += energy.iter().sum::<f64>();
            sums.stream_error += error.iter().sum::<f64>();
        }
        Ok(())
    }

    fn expect_earlier(&mut self, count: usize) {
        self.earlier.resize_with(count.max(self.earlier.len()), Sums::default);
    }

    pub(super) fn add_pictures(&mut self, pictures: &Pictures) {
        self.expect_earlier(pictures.rounds.len());
        for i in 0..pictures.prompt.len() {
            let teacher = pictures.picture(&pictures.teacher, i);
            self.student.psnr.push(psnr::of_picture(teacher, pictures.picture(&pictures.student, i)));
            self.removed.psnr.push(psnr::of_picture(teacher, pictures.picture(&pictures.removed, i)));
            for (sums, round) in self.earlier.iter_mut().zip(&pictures.rounds) {
                sums.psnr.push(psnr::of_picture(teacher, pictures.picture(round, i)));
            }
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
        if std::iter::once(&self.student).chain(&self.earlier).any(|sums| sums.psnr.is_empty()) {
            return Err(Error::NothingMeasured { found: "no pictures", missing: "psnr_db" });
        }
        let (student, removed) = (self.comparison(&self.student), self.comparison(&self.removed));
        let earlier = self.earlier.iter().map(|sums| self.comparison(sums)).collect();
        let of_layer = |sums: &LayerSums| OfLayer {
            alone: NoiseError::of(&sums.alone, &self.layer_energy),
            drift: if sums.stream_energy > 0.0 { sums.stream_error / sums.stream_energy } else { 0.0 },
        };
        let has_layers = self.layer_energy.iter().sum::<f64>() > 0.0;
        let layers = if has_layers { self.layers.iter().map(of_layer).collect() } else { Vec::new() };
        let (noise_samples, layer_samples) = (self.samples, self.layer_samples);
        let batches = self.teacher_seconds.len();
        let latency = (batches > 0).then(|| Latency {
            teacher_seconds: psnr::median(&self.teacher_seconds),
            student_seconds: psnr::median(&self.student_seconds),
            batches,
        });
        Ok(Compared { student, removed, earlier, layers, noise_samples, layer_samples, latency })
    }

    fn comparison(&self, sums: &Sums) -> Comparison {
        let NoiseError { epsilon_relative_mse, by_timestep_quarter } = NoiseError::of(&sums.error, &self.energy);
        Comparison {
            epsilon_relative_mse,
            by_timestep_quarter,
            psnr_db: psnr::mean(&sums.psnr),
            psnr_median_db: psnr::median(&sums.psnr),
            psnr_each_db: sums.psnr.clone(),
        }
    }
}

impl NoiseError {
    /// By quarter, the sums of the errors over those of the energy.
    fn of(error: &[f64; 4], energy: &[f64; 4]) -> Self {
        let quarter = |i: usize| (energy[i] > 0.0).then(|| error[i] / energy[i]);
        Self {
            epsilon_relative_mse: error.iter().sum::<f64>() / energy.iter().sum::<f64>(),
            by_timestep_quarter: std::array::from_fn(quarter),
        }
    }
}
