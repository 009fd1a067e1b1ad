//! The yardstick of the CPU path: medians of a forward pass and of a training step (loss, gradients
//! of the parameters, AdamW) at batch 16. `benches/pytorch.py` measures the same in PyTorch.
//!
//! `cargo bench -p deltaconv-kernels`; `RAYON_NUM_THREADS` sets the number of threads.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench prints, and stops on errors")]

use std::time::{Duration, Instant};

use deltaconv_kernels::adamw::State;
use deltaconv_kernels::cpu::{Workspace, forward, loss_and_gradient};
use deltaconv_kernels::{AdamW, BlockShape, Gate, Parameters};

const BATCH: usize = 16;
/// Edge of the map, channels, kernel size.
const SHAPES: [(usize, usize, usize); 5] = [(32, 64, 7), (16, 128, 5), (8, 128, 3), (16, 128, 11), (8, 128, 9)];

fn main() {
    println!("{:<14} {:>12} {:>12}", "map, kernel", "forward ms", "step ms");
    for (edge, channels, kernel_size) in SHAPES {
        let (forward, step) = measure(edge, channels, kernel_size);
        let name = format!("{edge}×{edge}×{channels} K{kernel_size}");
        println!("{name:<14} {forward:>12.3} {step:>12.3}");
    }
}

fn measure(edge: usize, channels: usize, kernel_size: usize) -> (f64, f64) {
    let scales = vec![1.0, 0.5];
    let shape = BlockShape::new(channels, 0.5, kernel_size, scales, Gate::Scaled).unwrap();
    let mut weights = Parameters::zeros(&shape);
    fill(weights.values_mut(), 0.05);
    let size = [BATCH, edge, edge];
    let mut x = vec![0.0; BATCH * edge * edge * channels];
    fill(&mut x, 1.0);
    let mut target = x.clone();
    target.reverse();
    let mut y = vec![0.0; x.len()];
    let mut gradients = weights.zeros_like();
    let mut state = State::new(&weights, false);
    let mut workspace = Workspace::default();
    let optimiser = AdamW::default();

    let forward = median(|| {
        forward(&shape, &weights, &x, size, &mut y, &mut workspace).unwrap();
    });
    let step = median(|| {
        loss_and_gradient(&shape, &weights, &x, &target, size, 1.0, &mut gradients, None, &mut workspace).unwrap();
        optimiser.step(1e-6, &mut weights, &gradients, &mut state).unwrap();
    });
    (forward, step)
}

/// Milliseconds, the median of the calls that fit into a second after a warm-up.
fn median(mut call: impl FnMut()) -> f64 {
    for _ in 0..5 {
        call();
    }
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < 20 || start.elapsed() < Duration::from_secs(1) {
        let before = Instant::now();
        call();
        times.push(before.elapsed());
    }
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn fill(values: &mut [f32], amplitude: f32) {
    for (index, value) in values.iter_mut().enumerate() {
        *value = amplitude * (index as f32 * 12.9898).sin();
    }
}
