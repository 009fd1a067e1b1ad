//! Compares a device with the CPU path on fresh random inputs: outputs, every gradient, steps of the optimiser, and two
//! runs bit by bit.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::gpu::Gpu;
use super::rows::{DeviceMemory, HostMemory, Memory, Piece};
use super::tensor::View;
use super::trainer::{Batch, Precision, Trainer};
use crate::adamw::{AdamW, State};
use crate::bench::{self, noise};
use crate::cpu::{self, Target, Workspace};
use crate::error::{Error, Result};
use crate::loss::Loss;
use crate::op::BlockOp;
use crate::parameters::Parameters;
use crate::shape::{BlockShape, Gate};

/// How far results may be from the CPU's, as ‖a − b‖ / ‖b‖.
const TOLERANCE_F32: f64 = 1e-4;
const TOLERANCE_BF16: f64 = 1e-2;

/// What conv_up's outputs are multiplied by in loud cases.
const LOUD: f32 = 131_072.0;

/// One random block and batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// [B, H, W].
    pub size: [usize; 3],
    /// The block.
    pub shape: BlockShape,
    /// The tensors' dtype: F32, BF16 or F16.
    pub dtype: DType,
    /// Whether conv_up's outputs and the gate's products are far above f16's largest value, 65504, while y is not.
    pub loud: bool,
    /// Whether the differences to the target are multiplied by gates.
    pub gated: bool,
    /// What training lessens.
    pub loss: Loss,
    seed: u64,
}

/// What a case showed: for each result its relative error, and what was wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// By result: `y`, `loss`, the gradients by their tensors' names, `x`, and the weights after some steps.
    pub errors: Vec<(String, f64)>,
    /// The tolerance.
    pub tolerance: f64,
    /// Whether a second run gave the same bits.
    pub repeats: bool,
}

impl Outcome {
    /// Whether everything is as it must be.
    pub fn holds(&self) -> bool {
        self.repeats && self.errors.iter().all(|(_, error)| *error <= self.tolerance)
    }
}

/// The `index`-th random case of a seed.
pub fn case(seed: u64, index: u64) -> Result<Case> {
    let mut draws = noise(seed.wrapping_add(index.wrapping_mul(0x1000_0001)), 16, 1.0).into_iter();
    let mut below = |count: usize| ((draws.next().unwrap_or(0.0) + 1.0) * 0.5 * count as f32) as usize % count;
    let edges = [1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 24, 32, 33, 40];
    let scales =
        [vec![1.0], vec![1.0, 0.5], vec![1.0, 0.5], vec![1.0, 0.5, 0.25], vec![1.0, 0.7, 0.3]][below(5)].clone();
    let smallest = scales.iter().copied().fold(1.0, f64::min);
    let least = (1.0_f64 / smallest).ceil() as usize;
    let kernel_size = if below(4) == 0 { 2 * below(16) + 1 } else { 2 * below(7) + 1 };
    let channels = [8, 12, 16, 24, 40, 64, 96, 160][below(8)];
    let gate = if below(2) == 0 { Gate::Scaled } else { Gate::Sigmoid };
    let size = [[1, 1, 2, 3, 5, 8][below(6)], edges[below(16)].max(least), edges[below(16)].max(least)];
    let dtype = [DType::F32, DType::BF16, DType::BF16, DType::F16][below(4)];
    let loud = below(4) == 0 && gate == Gate::Scaled;
    let gated = below(3) == 0;
    // In bf16 too many small differences have another sign.
    let absolute = if dtype == DType::F32 { Loss::Absolute { unit: 0.7 } } else { Loss::Huber { delta: 1.3 } };
    let loss = [Loss::Squared, Loss::Squared, Loss::Huber { delta: 0.4 }, absolute][below(4)];
    let shape = BlockShape::new(channels, 0.5, kernel_size, scales, gate)?;
    Ok(Case { size, shape, dtype, loud, gated, loss, seed: seed ^ index })
}

/// Runs a case on a device and on the CPU.
pub fn run(gpu: &Arc<Gpu>, device: &Device, case: &Case) -> Result<Outcome> {
    let Case { size, shape, dtype, loud, gated, loss: lessened, seed } = case;
    let [batch, height, width] = *size;
    let dims = (batch, height, width, shape.channels());
    let length = batch * height * width * shape.channels();
    let rounded = |seed, bound| {
        Tensor::from_vec(noise(seed, length, bound), dims, &Device::Cpu).and_then(|tensor| tensor.to_dtype(*dtype))
    };
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let candle = |error: candle_core::Error| Error::of_candle("making a batch", length * 4, &error);
    let (x, target) = (rounded(seed ^ 1, 1.7).map_err(candle)?, rounded(seed ^ 2, 1.7).map_err(candle)?);
    // As shards hold them.
    let gates = noise(seed ^ 3, batch * shape.channels(), 1.7).into_iter().map(half::f16::from_f32);
    let gates: Vec<f32> = gates.map(half::f16::to_f32).collect();
    let (x_values, target_values) = (values(&x).map_err(candle)?, values(&target).map_err(candle)?);
    let mut weights = bench::weights(shape, seed.wrapping_mul(31), 1.7);
    if *loud {
        make_loud(&mut weights)?;
    }
    if *dtype != DType::F32 {
        // Weights that bf16 can hold, as the inputs are.
        weights.values_mut().iter_mut().for_each(|value| *value = half::bf16::from_f32(*value).to_f32());
    }
    let optimiser =
        AdamW { clip_norm: (seed % 2 == 0).then_some(0.5), weight_decay: 0.02, ema_decay: 0.9, ..AdamW::default() };

    // The CPU's results.
    let mut workspace = Workspace::default();
    let mut y = vec![0.0; length];
    cpu::forward(shape, &weights, &x_values, *size, &mut y, &mut workspace)?;
    let mut gradients = weights.zeros_like();
    let mut x_gradient = vec![0.0; length];
    let loss = cpu::loss_and_gradient(
        shape,
        &weights,
        &x_values,
        Target { output: &target_values, gates: gated.then_some(&gates[..]), loss: *lessened },
        *size,
        3.0,
        &mut gradients,
        Some(&mut x_gradient),
        &mut workspace,
    )?;

    // The device's.
    let precision = if *dtype == DType::F32 { Precision::F32 } else { Precision::Bf16 };
    let tolerance = if *dtype == DType::F32 { TOLERANCE_F32 } else { TOLERANCE_BF16 };
    let (x, target) = (x.to_device(device).map_err(candle)?, target.to_device(device).map_err(candle)?);
    let gates = Tensor::from_slice(&gates, (batch, 1, 1, shape.channels()), device).map_err(candle)?;
    let given = Batch { x: &x, target: &target, gates: gated.then_some(&gates) };
    let on_device = |weights: &Parameters, state: &State, sizes: &[[usize; 3]]| -> Result<Trainer> {
        Ok(Trainer::new(gpu, weights, optimiser, state, sizes, precision)?.with_loss(*lessened))
    };
    let mut trainer = on_device(&weights, &State::new(&weights, true), &[*size])?;
    trainer.poison()?;
    let output = values(&trainer.forward(&x, false)?).map_err(candle)?;
    let block = BlockOp::new(Arc::new(weights.clone()));
    let of_op = x.apply_op1_no_bwd(&block).and_then(|y| values(&y)).map_err(candle)?;
    trainer.poison()?;
    let (device_loss, device_gradients, device_x) = trainer.gradients(given, 3.0, true)?;
    let device_x = match device_x {
        Some(tensor) => values(&tensor).map_err(candle)?,
        None => Vec::new(),
    };
    let mut errors = vec![
        ("y".to_owned(), relative(&output, &y)),
        ("y of the operation".to_owned(), relative(&of_op, &y)),
        ("loss".to_owned(), (device_loss - loss).abs() / loss),
        ("x".to_owned(), relative(&device_x, &x_gradient)),
    ];
    for ((tensor, found), (_, expected)) in device_gradients.iter().zip(gradients.iter()) {
        errors.push((tensor.name.clone(), relative(found, expected)));
    }

    // The optimiser, given the same gradients: three steps on the CPU with the device's own.
    let mut after = weights.clone();
    let mut state = State::new(&weights, true);
    for _ in 0..3 {
        let mut other = on_device(&after, &state, &[*size])?;
        let (_, gradients, _) = other.gradients(given, 3.0, false)?;
        optimiser.step(1e-3, &mut after, &gradients, &mut state)?;
    }
    for _ in 0..3 {
        trainer.poison()?;
        trainer.step(given, 3.0, 1e-3)?;
    }
    let (found, found_state) = trainer.download()?;
    errors.push(("weights after steps".into(), change(&found, &after, &weights) * tolerance / TOLERANCE_BF16));
    if let (Some(found), Some(expected)) = (&found_state.ema, &state.ema) {
        errors.push(("average after steps".into(), relative(found.values(), expected.values())));
    }

    // The same again, bit by bit, by a trainer that also takes batches of another size.
    let other = if height == width { [batch + 1, height, width] } else { [batch, width, height] };
    let mut again = on_device(&weights, &State::new(&weights, true), &[other, *size])?;
    let repeated = values(&again.forward(&x, false)?).map_err(candle)?;
    let (_, repeated_gradients, _) = again.gradients(given, 3.0, false)?;
    for _ in 0..3 {
        again.step(given, 3.0, 1e-3)?;
    }
    let (repeated_weights, repeated_state) = again.download()?;
    let repeats = repeated == output
        && repeated_gradients == device_gradients
        && repeated_weights == found
        && repeated_state == found_state
        && repeats_in_pieces(gpu, case, [&x, &target, &gates], |sizes| {
            on_device(&weights, &State::new(&weights, true), sizes)
        })?;
    View::new(&x, "x")?.release(gpu)?;
    Ok(Outcome { errors, tolerance, repeats })
}

/// Whether steps on batches in pieces end with the same bits as steps on tensors of the same f16 numbers.
fn repeats_in_pieces(
    gpu: &Arc<Gpu>,
    case: &Case,
    tensors: [&Tensor; 3],
    trainer: impl Fn(&[[usize; 3]]) -> Result<Trainer>,
) -> Result<bool> {
    let halves = tensors.map(|tensor| tensor.to_dtype(DType::F16));
    let [Ok(x), Ok(target), Ok(gates)] = halves else { return Ok(false) };
    let (mut whole, mut in_pieces) = (trainer(&[case.size])?, trainer(&[case.size])?);
    for step in 0..5 {
        whole.step(Batch { x: &x, target: &target, gates: case.gated.then_some(&gates) }, 3.0, 1e-3)?;
        let pieces = |tensor: &Tensor, salt: u64| -> Result<Vec<Piece>> {
            let values = tensor.flatten_all().and_then(|tensor| tensor.to_vec1::<half::f16>());
            let bytes = 2 * tensor.elem_count();
            let values = values.map_err(|error| Error::of_candle("reading a batch", bytes, &error))?;
            cut(gpu, &values, case.seed.wrapping_mul(31).wrapping_add(3 * step + salt))
        };
        let (x, target, gates) = (pieces(&x, 0)?, pieces(&target, 1)?, pieces(&gates, 2)?);
        let batch = Batch { x: &x[..], target: &target, gates: case.gated.then_some(&gates) };
        in_pieces.step_on_pieces(case.size, batch, 3.0, 1e-3)?;
    }
    let (whole_losses, losses) = (whole.losses()?, in_pieces.losses()?);
    Ok(whole_losses == losses && whole.download()? == in_pieces.download()?)
}

/// The values in pieces of all sizes, which begin anywhere, by turns in the device's memory and the host's.
fn cut(gpu: &Arc<Gpu>, values: &[half::f16], seed: u64) -> Result<Vec<Piece>> {
    let mut state = seed | 1;
    // Numerical Recipes, 3rd edition, section 7.1: a linear congruential generator's upper bits.
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    let (mut pieces, mut rest) = (Vec::new(), values);
    while !rest.is_empty() {
        let aligned = next(2) == 0;
        let len = if aligned { (next(rest.len()) + 8) / 8 * 8 } else { next(rest.len() / 2 + 1) + 1 }.min(rest.len());
        let start = if aligned { 8 * next(3) } else { next(9) };
        let mut held = vec![half::f16::NAN; start];
        held.extend_from_slice(&rest[..len]);
        let memory = match pieces.len() % 2 {
            0 => Memory::Device(DeviceMemory::copied(gpu, &held)?),
            _ => {
                let mut memory = HostMemory::new(gpu, held.len())?;
                memory.as_mut_slice().copy_from_slice(&held);
                Memory::Host(memory)
            }
        };
        pieces.push(Piece { memory: Arc::new(memory), start, len });
        rest = &rest[len..];
    }
    Ok(pieces)
}

/// Scales conv_up by 2¹⁷ and conv_out back by the square that the gate makes of that, so that what lies between overflows
/// f16. (A sigmoid would be 0 or 1 everywhere.)
fn make_loud(weights: &mut Parameters) -> Result<()> {
    for name in ["conv_up.weight", "conv_up.bias"] {
        weights.get_mut(name)?.iter_mut().for_each(|value| *value *= LOUD);
    }
    weights.get_mut("conv_out.weight")?.iter_mut().for_each(|value| *value /= LOUD * LOUD);
    Ok(())
}

/// ‖found − expected‖ / ‖expected‖; infinite where something is not finite.
fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = squares(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = squares(&mut expected.iter().map(|b| f64::from(*b)));
    let error = difference / size.max(f64::MIN_POSITIVE);
    if error.is_finite() && found.len() == expected.len() { error } else { f64::INFINITY }
}

/// How far the weights' way from `start` is from the expected one, relative to it.
fn change(found: &Parameters, expected: &Parameters, start: &Parameters) -> f64 {
    let way =
        |to: &Parameters| -> Vec<f32> { to.values().iter().zip(start.values()).map(|(to, from)| to - from).collect() };
    relative(&way(found), &way(expected))
}
