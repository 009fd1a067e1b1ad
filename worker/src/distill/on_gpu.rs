//! A training's state and data on a GPU.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use deltaconv_kernels::cuda::{self, DeviceMemory, Precision, Trainer};
use deltaconv_kernels::{AdamW, Parameters, adamw};
use half::f16;

use crate::accelerator::Cuda;
use crate::shards::{Batch, LayerData, Memory, Piece};
use crate::task::Error;

/// Of the device's free memory, the share that a layer's samples may take.
const RESIDENT_SHARE: f64 = 0.6;

/// A block in training on a GPU, in bf16 with f32 weights. Batches are of one bucket each.
#[derive(Debug)]
pub(super) struct OnGpu {
    cuda: Arc<Cuda>,
    trainer: Trainer,
    channels: usize,
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
        let trained = data.by_bucket(0..data.held_out().start);
        let size = |samples: &Vec<usize>| {
            let [_, height, width] = data.size(&samples[..1]);
            [batch, height, width]
        };
        let mut sizes: Vec<_> = trained.iter().filter(|samples| !samples.is_empty()).map(size).collect();
        // Buckets may have maps of one size in a layer.
        sizes.sort_unstable();
        sizes.dedup();
        let trainer = Trainer::new(&cuda.gpu, weights, optimiser, state, &sizes, Precision::Bf16);
        let trainer = trainer.inspect_err(|error| cuda.note(error))?;
        Ok(Self { cuda: cuda.clone(), trainer, channels: data.channels() })
    }

    /// Bytes of the device's memory that samples may take, if no limit is set.
    pub(super) fn room(&self, limit: Option<u64>) -> Result<u64, Error> {
        let (free, _) = self.cuda.gpu.memory()?;
        Ok(limit.unwrap_or((RESIDENT_SHARE * free as f64) as u64))
    }

    /// Steps taken.
    pub(super) fn steps(&self) -> u64 {
        self.trainer.steps()
    }

    /// Starts a step on a batch.
    pub(super) fn step(&mut self, batch: &Batch, scale: f64, rate: f64) -> Result<(), Error> {
        let [x, target, weights] = [&batch.input, &batch.output, &batch.weights].map(|pieces| self.pieces(pieces));
        let (x, target, weights) = (x?, target?, weights?);
        let gates = (!weights.is_empty()).then_some(&weights[..]);
        let given = cuda::Batch { x: &x[..], target: &target[..], gates };
        let started = self.trainer.step_on_pieces(batch.size, given, scale, rate);
        Ok(started.inspect_err(|error| self.cuda.note(error))?)
    }

    /// As the device reads them.
    fn pieces(&self, pieces: &[Piece]) -> Result<Vec<cuda::Piece>, Error> {
        let on_cuda = |piece: &Piece| {
            let (start, len) = (piece.at.start, piece.at.len());
            match (&piece.memory, piece.numbers()) {
                (Memory::Cuda(memory), _) => Ok(cuda::Piece { memory: memory.clone(), start, len }),
                (Memory::Plain(_), numbers) => {
                    let copied = DeviceMemory::copied(&self.cuda.gpu, numbers.unwrap_or_default());
                    let memory = Arc::new(cuda::Memory::Device(copied.inspect_err(|error| self.cuda.note(error))?));
                    Ok(cuda::Piece { memory, start: 0, len })
                }
            }
        };
        pieces.iter().map(on_cuda).collect()
    }

    /// The steps' mean squared errors since the last call.
    pub(super) fn losses(&mut self) -> Result<Vec<f64>, Error> {
        Ok(self.trainer.losses().inspect_err(|error| self.cuda.note(error))?)
    }

    /// The sum of squares by which the averaged block misses a batch, which lies in the host's memory, each difference times
    /// its weight.
    pub(super) fn squares(&mut self, batch: &Batch) -> Result<f64, Error> {
        let [samples, height, width] = batch.size;
        let dims = (samples, height, width, self.channels);
        let joined = |pieces: &[Piece]| -> Vec<f16> {
            pieces.iter().filter_map(Piece::numbers).flat_map(|numbers| numbers.iter().copied()).collect()
        };
        let input = Tensor::from_vec(joined(&batch.input), dims, &self.cuda.device)?;
        let predicted = self.trainer.forward(&input, true).inspect_err(|error| self.cuda.note(error))?;
        let predicted = predicted.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let output: Vec<f32> = joined(&batch.output).into_iter().map(f16::to_f32).collect();
        let weights: Vec<f32> = joined(&batch.weights).into_iter().map(f16::to_f32).collect();
        Ok(super::training::squares(&predicted, &output, &weights, (height * width, self.channels)))
    }

    /// The weights and the optimiser's state.
    pub(super) fn download(&mut self) -> Result<(Parameters, adamw::State), Error> {
        Ok(self.trainer.download().inspect_err(|error| self.cuda.note(error))?)
    }
}
