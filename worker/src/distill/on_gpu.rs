//! A training's state and data on a GPU.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use deltaconv_kernels::cuda::{Precision, Trainer};
use deltaconv_kernels::{AdamW, Parameters, adamw};

use crate::accelerator::Cuda;
use crate::shards::LayerData;
use crate::task::Error;

/// Of the device's free memory, the share that a layer's samples may take.
const RESIDENT_SHARE: f64 = 0.6;

/// A block in training on a GPU, in bf16 with f32 weights, and its samples: in the GPU's memory where they fit, else
/// sent batch by batch.
#[derive(Debug)]
pub(super) struct OnGpu {
    cuda: Arc<Cuda>,
    trainer: Trainer,
    /// [samples, H, W, C] f16.
    resident: Option<(Tensor, Tensor)>,
}

impl OnGpu {
    pub(super) fn new(
        cuda: &Arc<Cuda>,
        weights: &Parameters,
        state: &adamw::State,
        optimiser: AdamW,
        data: &LayerData,
        batch: usize,
    ) -> Result<Self, Error> {
        let trainer = Trainer::new(&cuda.gpu, weights, optimiser, state, data.size(batch), Precision::Bf16);
        let trainer = trainer.inspect_err(|error| cuda.note(error))?;
        let (free, _) = cuda.gpu.memory()?;
        let samples = data.held_out().end;
        let bytes = 4.0 * samples as f64 * data.sample_len() as f64;
        let mut on_gpu = Self { cuda: cuda.clone(), trainer, resident: None };
        if bytes < RESIDENT_SHARE * free as f64 {
            let all: Vec<usize> = (0..samples).collect();
            on_gpu.resident = Some(on_gpu.send(data, &all)?);
        }
        Ok(on_gpu)
    }

    /// Steps taken.
    pub(super) fn steps(&self) -> u64 {
        self.trainer.steps()
    }

    /// Starts a step on these samples.
    pub(super) fn step(&mut self, data: &LayerData, rows: &[usize], scale: f64, rate: f64) -> Result<(), Error> {
        let (input, output) = self.batch(data, rows)?;
        let started = self.trainer.step(&input, &output, scale, rate);
        Ok(started.inspect_err(|error| self.cuda.note(error))?)
    }

    /// The steps' mean squared errors since the last call.
    pub(super) fn losses(&mut self) -> Result<Vec<f64>, Error> {
        Ok(self.trainer.losses().inspect_err(|error| self.cuda.note(error))?)
    }

    /// The sum of squares by which the averaged block misses these samples.
    pub(super) fn squares(&mut self, data: &LayerData, rows: &[usize]) -> Result<f64, Error> {
        let (input, output) = self.batch(data, rows)?;
        let predicted = self.trainer.forward(&input, true).inspect_err(|error| self.cuda.note(error))?;
        let values = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let (predicted, expected) = (values(&predicted)?, values(&output)?);
        Ok(predicted.iter().zip(&expected).map(|(y, target)| f64::from(y - target).powi(2)).sum())
    }

    /// The weights and the optimiser's state.
    pub(super) fn download(&mut self) -> Result<(Parameters, adamw::State), Error> {
        Ok(self.trainer.download().inspect_err(|error| self.cuda.note(error))?)
    }

    fn batch(&self, data: &LayerData, rows: &[usize]) -> Result<(Tensor, Tensor), Error> {
        let Some((input, output)) = &self.resident else { return self.send(data, rows) };
        let picks: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        let picks = Tensor::from_vec(picks, rows.len(), &self.cuda.device)?;
        Ok((input.index_select(&picks, 0)?, output.index_select(&picks, 0)?))
    }

    fn send(&self, data: &LayerData, rows: &[usize]) -> Result<(Tensor, Tensor), Error> {
        let [samples, height, width] = data.size(rows.len());
        let dims = (samples, height, width, data.sample_len() / (height * width));
        let (input, output) = data.collect(rows);
        let device = &self.cuda.device;
        Ok((Tensor::from_vec(input, dims, device)?, Tensor::from_vec(output, dims, device)?))
    }
}
