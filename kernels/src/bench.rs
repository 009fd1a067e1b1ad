//! What the block costs on this machine: the shapes, how long each may take at best, and the measuring on the CPU.
//! `deltaconv bench kernels` prints it; [`crate::cuda::measure`] measures on a GPU.

use std::time::{Duration, Instant};

use crate::adamw::{AdamW, State};
use crate::cpu::{self, Workspace};
use crate::error::Result;
use crate::parameters::Parameters;
use crate::shape::{BlockShape, Gate};

/// One H200's rates, as measured: bf16 matrix products, f32 multiply-adds outside the tensor cores, memory.
const MATRIX_FLOPS: f64 = 790e12;
const DEPTHWISE_FLOPS: f64 = 60e12;
const MEMORY_BYTES: f64 = 4.2e12;
/// The optimiser reads weight, gradient and both moments, and writes weight, moments and the bf16 weight.
const OPTIMISER_BYTES: f64 = 30.0;

/// What the measured blocks' weights are drawn from.
pub(crate) const WEIGHTS_SEED: u64 = 7;

/// A block and a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// [B, H, W].
    pub size: [usize; 3],
    /// C.
    pub channels: usize,
    /// K.
    pub kernel_size: usize,
    /// The gate.
    pub gate: Gate,
}

impl Case {
    /// The block, with scales 1 and ½ and half as many inner channels.
    pub fn shape(&self) -> Result<BlockShape> {
        BlockShape::new(self.channels, 0.5, self.kernel_size, vec![1.0, 0.5], self.gate)
    }

    /// How the case is written in tables: `16×64×64×320 K7`.
    pub fn name(&self) -> String {
        let [batch, height, width] = self.size;
        format!("{batch}×{height}×{width}×{} K{}", self.channels, self.kernel_size)
    }

    /// Seconds of a forward pass and of a step on an H200 that does nothing but multiply, each part at its unit's full
    /// rate.
    pub fn limit(&self) -> Result<(f64, f64)> {
        let shape = self.shape()?;
        let [batch, height, width] = self.size;
        let positions = (batch * height * width) as f64;
        let (c, d, f) = (shape.channels() as f64, shape.inner() as f64, shape.features() as f64);
        let matrix = 2.0 * positions * c * (d + f) + 2.0 * batch as f64 * c * c;
        let mut taps = 0.0;
        for &scale in shape.scales() {
            let (height, width) = shape.scaled_map(height, width, scale)?;
            let kernel = (shape.kernel_size() * shape.kernel_size()) as f64;
            taps += 2.0 * kernel * d * (batch * height * width) as f64;
        }
        let forward = matrix / MATRIX_FLOPS + taps / DEPTHWISE_FLOPS;
        let parameters: usize = shape.tensors().iter().map(crate::TensorShape::len).sum();
        // The way back is two products for each of the forward's, but for what no gradient of x needs.
        Ok((forward, 3.0 * forward + OPTIMISER_BYTES * parameters as f64 / MEMORY_BYTES))
    }
}

/// The layers of SD1.5, SDXL and PixArt-Σ at their usual batches.
pub fn cases() -> Vec<Case> {
    let case = |size, channels, kernel_size, gate| Case { size, channels, kernel_size, gate };
    vec![
        case([16, 64, 64], 320, 7, Gate::Scaled),
        case([16, 64, 64], 320, 11, Gate::Scaled),
        case([16, 32, 32], 640, 9, Gate::Scaled),
        case([16, 16, 16], 1280, 5, Gate::Scaled),
        case([16, 8, 8], 1280, 3, Gate::Scaled),
        case([4, 64, 64], 640, 13, Gate::Scaled),
        case([4, 32, 32], 1280, 9, Gate::Scaled),
        case([4, 64, 64], 1152, 13, Gate::Sigmoid),
    ]
}

/// One image of 512² to 4096² at SD1.5's first layer; for the forward pass.
pub fn resolutions() -> Vec<Case> {
    let case = |edge| Case { size: [1, edge, edge], channels: 320, kernel_size: 7, gate: Gate::Scaled };
    [64, 128, 256, 512].map(case).into()
}

/// The layers of the repository's own tiny-unet at batch 16, which a CPU finishes while one waits.
pub fn small_cases() -> Vec<Case> {
    let case = |edge, channels, kernel_size| Case { size: [16, edge, edge], channels, kernel_size, gate: Gate::Scaled };
    vec![case(32, 64, 7), case(16, 128, 5), case(8, 128, 3), case(16, 128, 11), case(8, 128, 9)]
}

/// Seconds of a forward pass and of a step on the CPU with this process' threads, f32: medians of the calls that fit
/// into a second each, after a warm-up.
pub fn measure_cpu(case: &Case) -> Result<(f64, f64)> {
    let shape = case.shape()?;
    let mut weights = weights(&shape, WEIGHTS_SEED, 1.0);
    let length = case.size.iter().product::<usize>() * case.channels;
    let x: Vec<f32> = noise(1, length, 1.0);
    let target: Vec<f32> = noise(2, length, 1.0);
    let mut y = vec![0.0; length];
    let mut gradients = weights.zeros_like();
    let mut state = State::new(&weights, false);
    let mut workspace = Workspace::default();
    let optimiser = AdamW::default();
    let size = case.size;
    let forward = median(|| cpu::forward(&shape, &weights, &x, size, &mut y, &mut workspace))?;
    let step = median(|| {
        cpu::loss_and_gradient(
            &shape,
            &weights,
            &x,
            target[..].into(),
            size,
            1.0,
            &mut gradients,
            None,
            &mut workspace,
        )?;
        optimiser.step(1e-6, &mut weights, &gradients, &mut state).map(drop)
    })?;
    Ok((forward, step))
}

fn median(mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    for _ in 0..5 {
        call()?;
    }
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < 20 || start.elapsed() < Duration::from_secs(1) {
        let before = Instant::now();
        call()?;
        times.push(before.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2].as_secs_f64())
}

/// Weights about as large as trained ones: uniform within ±`gain`/√fan_in.
pub fn weights(shape: &BlockShape, seed: u64, gain: f32) -> Parameters {
    let mut weights = Parameters::zeros(shape);
    for (index, tensor) in shape.tensors().into_iter().enumerate() {
        let inputs = match tensor.dims.as_slice() {
            [kernel, _, _] => kernel * kernel,
            dims => dims[dims.len() - 1],
        };
        let values = noise(seed.wrapping_add(index as u64), tensor.len(), gain / (inputs as f32).sqrt());
        if let Ok(target) = weights.get_mut(&tensor.name) {
            target.copy_from_slice(&values);
        }
    }
    weights
}

/// Uniform noise within ±`bound`: SplitMix64 of the seed and a value's index.
pub fn noise(seed: u64, length: usize, bound: f32) -> Vec<f32> {
    let value = |index: usize| {
        let mut z = seed
            .wrapping_mul(0xd134_2543_de82_ef95)
            .wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = ((z ^ (z >> 31)) >> 40) as f32 / (1_u32 << 23) as f32;
        bound * (unit - 1.0)
    };
    (0..length).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_that_the_targets_were_set_by() {
        let limits: Vec<(f64, f64)> = cases().iter().map(|case| case.limit().unwrap()).collect();
        let expected = [(38, 116), (70, 212), (35, 110), (20, 83), (4, 37), (54, 168), (26, 102), (121, 383)];
        for ((forward, step), (of_forward, of_step)) in limits.into_iter().zip(expected) {
            assert!((forward * 1e6 - f64::from(of_forward)).abs() < 1.0, "{forward} {of_forward}");
            assert!((step * 1e6 - f64::from(of_step)).abs() < 2.0, "{step} {of_step}");
        }
    }
}
