//! The block over a batch: samples in parallel, sums in a fixed order.

use std::ops::Range;

use rayon::iter::Either;
use rayon::prelude::*;

use super::sample::{backward, forward};
use super::weights::{PartialGradient, Weights};
use super::workspace::{Plan, Workspace};
use super::{linear, sums};
use crate::error::{Error, Result, check_length};
use crate::loss::Loss;
use crate::parameters::Parameters;
use crate::shape::BlockShape;

/// Values that the partial sums of a batch may take together, 256 MiB.
const PARTIAL_VALUES: usize = 1 << 26;
/// Partial sums of a batch at most; more would serve more cores than one machine has.
const PARTIALS: usize = 64;
/// Gradient values that one thread adds up over the partial sums at a time.
const REDUCED_AT_ONCE: usize = 4096;

/// Computes `y` `[B, H, W, C]` from `x` `[B, H, W, C]`, for `size` `[B, H, W]`.
pub fn forward(
    shape: &BlockShape,
    parameters: &Parameters,
    x: &[f32],
    size: [usize; 3],
    y: &mut [f32],
    workspace: &mut Workspace,
) -> Result<()> {
    let sample = check(shape, parameters, x, size)?;
    check_length("y", x.len(), y.len())?;
    workspace.prepare(shape, size[1], size[2], false)?;
    let (plan, kernels, batch, scratches) = workspace.parts();
    batch.resize(shape, size[0], 0);
    let weights = Weights::new(shape, parameters, kernels);
    let means = batch.means.par_chunks_exact_mut(shape.channels());
    let samples = x.par_chunks_exact(sample).zip(y.par_chunks_exact_mut(sample)).zip(means);
    samples.for_each(|((x, y), mean)| {
        let mut scratch = scratches.of_this_thread();
        let mut features = std::mem::take(&mut scratch.features);
        forward::features(plan, weights, x, &mut scratch, &mut features);
        linear::apply(&features, shape.features(), weights.out, y);
        scratch.features = features;
        forward::mean(plan, x, mean);
        forward::shared_output(weights, mean, &mut scratch.bias);
        sums::add_bias(y, &scratch.bias);
    });
    Ok(())
}

/// Computes what conv_out and conv_pool are applied to: `features`, the concatenated p_s
/// `[B, H, W, S·d/2]`, and `means`, x averaged over positions `[B, C]`. A ridge regression of the
/// target on the two gives both linears in closed form.
pub fn features(
    shape: &BlockShape,
    parameters: &Parameters,
    x: &[f32],
    size: [usize; 3],
    features: &mut [f32],
    means: &mut [f32],
    workspace: &mut Workspace,
) -> Result<()> {
    let sample = check(shape, parameters, x, size)?;
    let [batch, height, width] = size;
    check_length("features", x.len() / shape.channels() * shape.features(), features.len())?;
    check_length("means", batch * shape.channels(), means.len())?;
    workspace.prepare(shape, height, width, false)?;
    let (plan, kernels, _, scratches) = workspace.parts();
    let weights = Weights::new(shape, parameters, kernels);
    let outputs = features.par_chunks_exact_mut(height * width * shape.features());
    let means = means.par_chunks_exact_mut(shape.channels());
    x.par_chunks_exact(sample).zip(outputs).zip(means).for_each(|((x, features), mean)| {
        forward::features(plan, weights, x, &mut scratches.of_this_thread(), features);
        forward::mean(plan, x, mean);
    });
    Ok(())
}

/// What a block's output should be.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// `[B, H, W, C]`.
    pub output: &'a [f32],
    /// What the model multiplies each channel of each sample's output by, `[B, C]`, where it does: errors count as much
    /// as they reach the model.
    pub gates: Option<&'a [f32]>,
    /// What is made of the differences.
    pub loss: Loss,
}

impl<'a> From<&'a [f32]> for Target<'a> {
    /// Of a model without gates.
    fn from(output: &'a [f32]) -> Self {
        Self { output, gates: None, loss: Loss::default() }
    }
}

/// Computes the mean squared error of the block's output against `target`, each difference times its gate, and the
/// gradients of `scale` times the target's loss: those of the parameters overwrite `gradients`, that of
/// `x` goes to `x_gradient` where one is given.
///
/// The error is summed in f64 and returned without `scale`. Values that are not finite show in it;
/// nothing hides them.
#[expect(clippy::too_many_arguments, reason = "the step's inputs and outputs, each a plain slice")]
pub fn loss_and_gradient(
    shape: &BlockShape,
    parameters: &Parameters,
    x: &[f32],
    target: Target<'_>,
    size: [usize; 3],
    scale: f64,
    gradients: &mut Parameters,
    x_gradient: Option<&mut [f32]>,
    workspace: &mut Workspace,
) -> Result<f64> {
    check(shape, parameters, x, size)?;
    check_length("target", x.len(), target.output.len())?;
    if let Some(gates) = target.gates {
        check_length("gates", size[0] * shape.channels(), gates.len())?;
    }
    let factor = (2.0 * scale / x.len() as f64) as f32;
    let squares = back(shape, parameters, x, Start::Error(target, factor), size, gradients, x_gradient, workspace)?;
    Ok(squares / x.len() as f64)
}

/// Takes the gradient of a loss with respect to the block's output, `y_gradient` `[B, H, W, C]`, back through the block:
/// the gradients of the parameters overwrite `gradients`, that of `x` goes to `x_gradient` where one is given.
#[expect(clippy::too_many_arguments, reason = "the pass's inputs and outputs, each a plain slice")]
pub fn gradient(
    shape: &BlockShape,
    parameters: &Parameters,
    x: &[f32],
    y_gradient: &[f32],
    size: [usize; 3],
    gradients: &mut Parameters,
    x_gradient: Option<&mut [f32]>,
    workspace: &mut Workspace,
) -> Result<()> {
    check(shape, parameters, x, size)?;
    check_length("y_gradient", x.len(), y_gradient.len())?;
    back(shape, parameters, x, Start::Gradient(y_gradient), size, gradients, x_gradient, workspace)?;
    Ok(())
}

/// What the way back begins with.
#[derive(Clone, Copy)]
enum Start<'a> {
    /// The output's difference from a target, times a factor.
    Error(Target<'a>, f32),
    /// The gradient of the output `[B, H, W, C]`.
    Gradient(&'a [f32]),
}

impl<'a> Start<'a> {
    /// That of some of the samples, whose values these are of all, and of all channels' rows.
    fn of(self, values: Range<usize>, rows: Range<usize>) -> Self {
        match self {
            Self::Error(Target { output, gates, loss }, factor) => {
                let target = Target { output: &output[values], gates: gates.map(|gates| &gates[rows]), loss };
                Self::Error(target, factor)
            }
            Self::Gradient(gradient) => Self::Gradient(&gradient[values]),
        }
    }
}

/// The way back, whose arguments were checked but for the gradients' lengths. Returns the sum of the squared differences, 0
/// where it doesn't begin with them.
#[expect(clippy::too_many_arguments, reason = "the pass's inputs and outputs, each a plain slice")]
fn back(
    shape: &BlockShape,
    parameters: &Parameters,
    x: &[f32],
    start: Start<'_>,
    size: [usize; 3],
    gradients: &mut Parameters,
    x_gradient: Option<&mut [f32]>,
    workspace: &mut Workspace,
) -> Result<f64> {
    gradients.check_shape("gradients", shape)?;
    if let Some(x_gradient) = &x_gradient {
        check_length("x_gradient", x.len(), x_gradient.len())?;
    }
    let [batch, height, width] = size;
    let channels = shape.channels();
    let sample = height * width * channels;
    workspace.prepare(shape, height, width, true)?;
    let (plan, kernels, totals, scratches) = workspace.parts();
    let partial_len = PartialGradient::len(shape);
    let chunk = samples_per_partial(batch, partial_len);
    totals.resize(shape, batch, batch.div_ceil(chunk));
    let weights = Weights::new(shape, parameters, kernels);

    let x_gradients = match x_gradient {
        Some(x_gradient) => Either::Left(x_gradient.par_chunks_mut(chunk * sample).map(Some)),
        None => Either::Right(rayon::iter::repeat_n((), batch.div_ceil(chunk)).map(|()| None)),
    };
    let inputs = x.par_chunks(chunk * sample).enumerate();
    let partials = totals.partials.par_chunks_exact_mut(partial_len).zip(x_gradients);
    let sums = totals.squares.par_chunks_mut(chunk);
    let means = totals.means.par_chunks_mut(chunk * channels);
    let gradient_sums = totals.gradient_sums.par_chunks_mut(chunk * channels);
    let chunks = inputs.zip(partials).zip(sums.zip(means).zip(gradient_sums));
    chunks.for_each(|(((number, x), (partial, mut x_gradient)), ((squares, means), sums))| {
        let mut scratch = scratches.of_this_thread();
        let mut partial = PartialGradient::split(shape, partial);
        for (index, squares) in squares.iter_mut().enumerate() {
            let map = index * sample..(index + 1) * sample;
            let vector = index * channels..(index + 1) * channels;
            let x = &x[map.clone()];
            let mean = &mut means[vector.clone()];
            let scratch = &mut *scratch;
            forward::mean(plan, x, mean);
            let mut features = std::mem::take(&mut scratch.features);
            forward::features(plan, weights, x, scratch, &mut features);
            scratch.features = features;
            let first = number * chunk + index;
            let values = first * sample..(first + 1) * sample;
            *squares = match start.of(values, first * channels..(first + 1) * channels) {
                Start::Gradient(gradient) => {
                    scratch.output.copy_from_slice(gradient);
                    0.0
                }
                Start::Error(Target { output: target, gates, loss }, factor) => {
                    let slope = loss.slope();
                    forward::shared_output(weights, mean, &mut scratch.bias);
                    linear::apply(&scratch.features, shape.features(), weights.out, &mut scratch.output);
                    let (output, bias) = (&mut scratch.output, &scratch.bias);
                    match gates {
                        None => sums::residual(output, bias, target, slope, factor),
                        Some(gates) => sums::gated_residual(output, bias, target, gates, slope, factor),
                    }
                }
            };
            let sample = backward::Sample {
                x,
                gradient_sum: &mut sums[vector],
                x_gradient: x_gradient.as_deref_mut().map(|gradient| &mut gradient[map]),
            };
            backward::gradients(plan, weights, sample, scratch, &mut partial, index > 0);
        }
    });

    reduce(plan, totals.partials.as_slice(), gradients.values_mut());
    let (summed, pool) = gradients.values_mut().split_at_mut(partial_len);
    let (pool_weight, pool_bias) = pool.split_at_mut(channels * channels);
    linear::weight_gradient(&totals.gradient_sums, &totals.means, channels, false, pool_weight);
    // conv_pool's bias reaches every position, as conv_out's does.
    pool_bias.copy_from_slice(&summed[partial_len - channels..]);
    Ok(totals.squares.iter().sum())
}

/// Checks what all passes are given and returns the values of one sample, H·W·C.
fn check(shape: &BlockShape, parameters: &Parameters, x: &[f32], size: [usize; 3]) -> Result<usize> {
    parameters.check_shape("parameters", shape)?;
    let [batch, height, width] = size;
    for &scale in shape.scales() {
        shape.scaled_map(height, width, scale)?;
    }
    if batch == 0 {
        return Err(Error::EmptyBatch);
    }
    let sample = height.checked_mul(width).and_then(|n| n.checked_mul(shape.channels()));
    let total = sample.and_then(|sample| sample.checked_mul(batch));
    let (Some(sample), Some(total)) = (sample, total) else { return Err(Error::TooLarge(size)) };
    check_length("x", total, x.len())?;
    Ok(sample)
}

/// How many samples share a partial sum: one, unless the partial sums would take too much memory.
/// It must not depend on the number of threads, because it decides the order of the sums.
fn samples_per_partial(batch: usize, partial_len: usize) -> usize {
    let partials = (PARTIAL_VALUES / partial_len).clamp(1, PARTIALS);
    batch.div_ceil(partials)
}

/// Adds the partial sums, in the order of their samples, into the head of the gradients.
fn reduce(plan: &Plan, partials: &[f32], gradients: &mut [f32]) {
    let len = PartialGradient::len(&plan.shape);
    let slices = gradients[..len].par_chunks_mut(REDUCED_AT_ONCE).enumerate();
    slices.for_each(|(index, sum)| {
        let start = index * REDUCED_AT_ONCE;
        let slice = start..start + sum.len();
        sum.copy_from_slice(&partials[slice.clone()]);
        for part in partials.chunks_exact(len).skip(1) {
            sums::add(sum, &part[slice.clone()]);
        }
    });
}
