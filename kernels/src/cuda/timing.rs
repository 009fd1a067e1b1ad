//! Times of a forward pass and of a step on a device.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use cudarc::driver::{CudaGraph, sys};
use half::f16;

use super::gpu::{Gpu, failed};
use super::pass::Pass;
use super::rows::{DeviceMemory, HostMemory, Memory, Piece};
use super::tensor::View;
use super::trainer::{Batch, Precision, Trainer};
use super::weights::Weights;
use crate::adamw::{AdamW, State};
use crate::bench::{self, Case};
use crate::error::{Error, Result};

/// Batches that take turns, so that one's activations don't wait in the cache for the next call.
const BATCHES: usize = 4;
const WARM_UP: usize = 8;
const SAMPLES: usize = 40;
/// Calls between two events.
const CALLS: usize = 8;

/// What a case costs on a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Times {
    /// Seconds of a forward pass.
    pub forward: f64,
    /// Seconds of a step, where it was measured.
    pub step: Option<f64>,
    /// Bytes of the step's buffers and its batch over those of one [B, H, W, C].
    pub activations: Option<f64>,
}

/// Measures a case in bf16, replayed from CUDA graphs: medians over events around [`CALLS`] calls each.
pub fn measure(gpu: &Arc<Gpu>, device: &Device, case: &Case, step: bool) -> Result<Times> {
    let shape = case.shape()?;
    let weights = bench::weights(&shape, bench::WEIGHTS_SEED, 1.0);
    let precision = Precision::Bf16;
    let kind = precision.kind(&shape, case.size);
    let [batch, height, width] = case.size;
    let length = batch * height * width * case.channels;
    let tensor = |seed| {
        Tensor::from_vec(bench::noise(seed, length, 1.0), (batch, height, width, case.channels), device)
            .and_then(|tensor| tensor.to_dtype(DType::BF16))
            .map_err(|error| Error::of_candle("making a batch", length * 4, &error))
    };
    let pairs = (0..BATCHES as u64)
        .map(|index| Ok((tensor(2 * index)?, tensor(2 * index + 1)?)))
        .collect::<Result<Vec<(Tensor, Tensor)>>>()?;

    let mut graphs: Vec<CudaGraph> = Vec::new();
    let prepared = Weights::new(gpu, &weights, kind)?;
    let mut pass = Pass::new(gpu, &shape, case.size, kind, false)?;
    for (x, y) in &pairs {
        let at = |of| View::new(of, "x").and_then(|view| view.address(kind));
        let (x, y) = (at(x)?, at(y)?);
        // SAFETY: both tensors have the pass' size.
        let mut run = || unsafe { pass.forward(&prepared, x, y) };
        run()?;
        gpu.synchronize()?;
        graphs.push(gpu.capture(run)?);
    }
    let forward = median(gpu, |call| graphs[call % graphs.len()].launch().map_err(failed("starting a forward pass")))?;
    drop(graphs);
    drop(pass);
    if !step {
        return Ok(Times { forward, step: None, activations: None });
    }

    let state = State::new(&weights, false);
    let mut trainer = Trainer::new(gpu, &weights, AdamW::default(), &state, &[case.size], precision)?;
    let step = median(gpu, |call| {
        let (x, target) = &pairs[call % pairs.len()];
        trainer.step(Batch { x, target, gates: None }, 1.0, 1e-6)
    })?;
    let one = (length * kind.bytes()) as f64;
    let activations = trainer.activation_bytes() as f64 / one + 2.0;
    Ok(Times { forward, step: Some(step), activations: Some(activations) })
}

/// Seconds a step takes by where its samples lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepTimes {
    /// In tensors, f16, which the step converts.
    pub tensor: f64,
    /// In the device's memory, a piece each.
    pub device: f64,
    /// In page-locked memory of the host, a piece each.
    pub host: f64,
}

/// Measures steps in bf16 on batches of samples that lie in tensors, in the device's memory and in the host's: medians over
/// events around [`CALLS`] steps each.
pub fn measure_samples(gpu: &Arc<Gpu>, device: &Device, case: &Case) -> Result<StepTimes> {
    let shape = case.shape()?;
    let weights = bench::weights(&shape, bench::WEIGHTS_SEED, 1.0);
    let [batch, height, width] = case.size;
    let of_sample = height * width * case.channels;
    let values: Vec<Vec<f16>> = (0..2 * BATCHES as u64)
        .map(|seed| bench::noise(seed, batch * of_sample, 1.0).into_iter().map(f16::from_f32).collect())
        .collect();
    let trainer =
        || Trainer::new(gpu, &weights, AdamW::default(), &State::new(&weights, false), &[case.size], Precision::Bf16);

    let tensors = values.iter().map(|values| {
        Tensor::from_slice(values, (batch, height, width, case.channels), device)
            .map_err(|error| Error::of_candle("making a batch", size_of_val(values.as_slice()), &error))
    });
    let tensors = tensors.collect::<Result<Vec<Tensor>>>()?;
    let mut of_tensors = trainer()?;
    let tensor = median(gpu, |call| {
        let index = call % BATCHES;
        let batch = Batch { x: &tensors[2 * index], target: &tensors[2 * index + 1], gates: None };
        of_tensors.step(batch, 1.0, 1e-6)
    })?;
    drop((of_tensors, tensors));

    let in_pieces = |place: &dyn Fn(&[f16]) -> Result<Memory>| -> Result<f64> {
        let pieces = |values: &Vec<f16>| {
            let piece = |values| Ok(Piece { memory: Arc::new(place(values)?), start: 0, len: of_sample });
            values.chunks_exact(of_sample).map(piece).collect::<Result<Vec<Piece>>>()
        };
        let batches = values.iter().map(pieces).collect::<Result<Vec<_>>>()?;
        let mut trainer = trainer()?;
        median(gpu, |call| {
            let index = call % BATCHES;
            let batch = Batch { x: &batches[2 * index][..], target: &batches[2 * index + 1], gates: None };
            trainer.step_on_pieces(case.size, batch, 1.0, 1e-6)
        })
    };
    let device = in_pieces(&|values| DeviceMemory::copied(gpu, values).map(Memory::Device))?;
    let host = in_pieces(&|values| {
        let mut memory = HostMemory::new(gpu, values.len())?;
        memory.as_mut_slice().copy_from_slice(values);
        Ok(Memory::Host(memory))
    })?;
    Ok(StepTimes { tensor, device, host })
}

fn median(gpu: &Gpu, mut call: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    for index in 0..WARM_UP {
        call(index)?;
    }
    gpu.synchronize()?;
    let event = || {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        gpu.stream.record_event(flags).map_err(failed("recording an event"))
    };
    let mut times = Vec::new();
    for sample in 0..SAMPLES {
        let before = event()?;
        for index in 0..CALLS {
            call(sample * CALLS + index)?;
        }
        let after = event()?;
        let elapsed = before.elapsed_ms(&after).map_err(failed("reading a time"))?;
        times.push(f64::from(elapsed) / 1e3 / CALLS as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
