//! A training's state and data on a GPU.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use deltaconv_kernels::cuda::{self, DeviceMemory, Precision, Trainer};
use deltaconv_kernels::{AdamW, Loss, Parameters, adamw};
use half::f16;

use super::training::{Kept, Trained};
use crate::accelerator::Cuda;
use crate::shards::{Batch, LayerData, Memory, Piece};
use crate::task::Error;

/// Of the device's free memory, the share that a layer's samples may take.
const RESIDENT_SHARE: f64 = 0.6;
/// And its held-out ones.
const HELD_OUT_SHARE: f64 = 0.1;
/// Numbers in a batch of held-out samples, at most, of which a few copies in f32 are made.
const MEASURED: usize = 1 << 24;

/// A block in training on a GPU, in bf16 with f32 weights. Batches are of one bucket each.
#[derive(Debug)]
pub(super) struct OnGpu {
    cuda: Arc<Cuda>,
    trainer: Trainer,
}

impl OnGpu {
    pub(super) fn new(
        cuda: &Arc<Cuda>,
        Trained { weights, optimiser: state, .. }: &Trained,
        optimiser: AdamW,
        loss: Loss,
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
        Ok(Self { cuda: cuda.clone(), trainer: trainer.with_loss(loss) })
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

    /// The sum of squares by which the block misses a batch, each difference times its weight.
    pub(super) fn squares(&mut self, batch: &HeldOut) -> Result<f64, Error> {
        let HeldOut { input, output, weights } = batch.on(&self.cuda.device)?;
        let predicted = self.trainer.forward(&input, true).inspect_err(|error| self.cuda.note(error))?;
        let mut missed = predicted.to_dtype(DType::F32)?.sub(&output.to_dtype(DType::F32)?)?;
        if let Some(weights) = weights {
            missed = missed.broadcast_mul(&weights.to_dtype(DType::F32)?)?;
        }
        // By sample, and those on the host: no sum of f32 gets long.
        let squares: Vec<f32> = missed.sqr()?.sum((1, 3))?.sum(1)?.to_vec1()?;
        Ok(squares.into_iter().map(f64::from).sum())
    }

    /// What becomes the block.
    pub(super) fn block(&self) -> Result<Parameters, Error> {
        Ok(self.trainer.block().inspect_err(|error| self.cuda.note(error))?)
    }

    /// Keeps the state as it is, beside the one that was kept last.
    pub(super) fn keep(&mut self) -> Result<(), Error> {
        Ok(self.trainer.keep().inspect_err(|error| self.cuda.note(error))?)
    }

    /// Takes up the older state that is kept, which is the only one then.
    pub(super) fn go_back(&mut self) -> Result<(), Error> {
        Ok(self.trainer.go_back().inspect_err(|error| self.cuda.note(error))?)
    }

    /// The weights and the optimiser's state.
    pub(super) fn state(&mut self) -> Result<(Parameters, adamw::State), Error> {
        Ok(self.trainer.download().inspect_err(|error| self.cuda.note(error))?)
    }

    /// The states that are kept, the older one first.
    pub(super) fn kept(&self) -> Result<Vec<Kept>, Error> {
        Ok(self.trainer.kept().inspect_err(|error| self.cuda.note(error))?)
    }

    /// Keeps these, of a training that this one goes on with, instead of any.
    pub(super) fn keep_again(&mut self, kept: Vec<Kept>) -> Result<(), Error> {
        Ok(self.trainer.keep_again(&kept).inspect_err(|error| self.cuda.note(error))?)
    }
}

/// Some held-out samples of one bucket, f16.
#[derive(Clone, Debug)]
pub(super) struct HeldOut {
    /// [B, H, W, C].
    input: Tensor,
    /// As the input.
    output: Tensor,
    /// [B, 1, 1, C], where samples have them.
    weights: Option<Tensor>,
}

impl HeldOut {
    /// Of a batch that lies in the host's memory.
    fn new(batch: &Batch, channels: usize) -> Result<Self, Error> {
        let [samples, height, width] = batch.size;
        let joined = |pieces: &[Piece]| -> Vec<f16> {
            let mut all = Vec::with_capacity(pieces.iter().map(|piece| piece.at.len()).sum());
            pieces.iter().filter_map(Piece::numbers).for_each(|numbers| all.extend_from_slice(numbers));
            all
        };
        let dims = (samples, height, width, channels);
        let map = |pieces: &[Piece]| Tensor::from_vec(joined(pieces), dims, &Device::Cpu);
        let weights = joined(&batch.weights);
        let weights = (!weights.is_empty()).then(|| Tensor::from_vec(weights, (samples, 1, 1, channels), &Device::Cpu));
        Ok(Self { input: map(&batch.input)?, output: map(&batch.output)?, weights: weights.transpose()? })
    }

    fn on(&self, device: &Device) -> Result<Self, Error> {
        let Self { input, output, weights } = self;
        let weights = weights.as_ref().map(|weights| weights.to_device(device)).transpose()?;
        Ok(Self { input: input.to_device(device)?, output: output.to_device(device)?, weights })
    }

    /// All of a layer's, in batches: on the device where they take little of its memory, else in the host's.
    pub(super) fn of(data: &LayerData, cuda: &Cuda) -> Result<Vec<Self>, Error> {
        let by_bucket = data.by_bucket(data.held_out());
        let most = |samples: &[usize]| {
            let numbers: usize = data.size(&samples[..1]).iter().product::<usize>() * data.channels();
            (MEASURED / numbers.max(1)).max(1)
        };
        let batches =
            by_bucket.iter().filter(|samples| !samples.is_empty()).flat_map(|samples| samples.chunks(most(samples)));
        let on_host = batches.map(|samples| Self::new(&data.batch(samples)?, data.channels()));
        let (free, _) = cuda.gpu.memory()?;
        let bytes = 2 * data.numbers(data.held_out()) * size_of::<f16>();
        match bytes as f64 <= HELD_OUT_SHARE * free as f64 {
            true => on_host.map(|batch| batch?.on(&cuda.device)).collect(),
            false => on_host.collect(),
        }
    }
}
