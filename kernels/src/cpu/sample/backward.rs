//! One sample back through the block, from the gradient of its output.

use crate::cpu::weights::{PartialGradient, Weights};
use crate::cpu::workspace::{Plan, Scratch};
use crate::cpu::{depthwise, gate, grouped, linear, pool, resize, sums};

/// What one sample's way back reads and writes besides its scratch.
pub(in crate::cpu) struct Sample<'a> {
    /// `[HW, C]`.
    pub(in crate::cpu) x: &'a [f32],
    /// The sum over positions of y's gradient `[C]`; written.
    pub(in crate::cpu) gradient_sum: &'a mut [f32],
    /// The gradient of x `[HW, C]`, where it is wanted; written.
    pub(in crate::cpu) x_gradient: Option<&'a mut [f32]>,
}

/// Takes the gradient of y in `scratch.output` back to the weights and, if wanted, to x. `scratch`
/// is as [`super::forward::features`] left it, with the features in `scratch.features`. The first
/// sample of a partial sum writes it, the others (`accumulate`) add to it.
pub(in crate::cpu) fn gradients(
    plan: &Plan,
    weights: Weights<'_>,
    sample: Sample<'_>,
    scratch: &mut Scratch,
    partial: &mut PartialGradient<'_>,
    accumulate: bool,
) {
    let shape = &plan.shape;
    let (channels, inner) = (shape.channels(), shape.inner());
    let Sample { x, gradient_sum, x_gradient } = sample;

    sums::column_sums(&scratch.output, channels, plan.width, false, gradient_sum);
    if accumulate {
        sums::add(partial.out_bias, gradient_sum);
    } else {
        partial.out_bias.copy_from_slice(gradient_sum);
    }
    let Scratch { output, features, .. } = scratch;
    linear::weight_gradient(output, features, shape.features(), accumulate, partial.out);
    linear::input_gradient(output, shape.features(), weights.out, features);

    convolutions(plan, weights, scratch, partial.kernels, accumulate);

    let Scratch { scales, hidden, .. } = scratch;
    let (full, smaller) = scales.split_at_mut(1);
    for (index, scale) in smaller.iter().enumerate() {
        let pooling = plan.bare_pooling(index + 1);
        pool::average_gradient(pooling, &scale.convolved, &mut full[0].convolved);
    }
    grouped::ungroup(&full[0].convolved, plan.grouping, plan.maps[0].bare, hidden, inner, 0);
    sums::column_sums(hidden, inner, plan.width, accumulate, partial.up_bias);
    linear::weight_gradient(hidden, x, channels, accumulate, partial.up);

    if let Some(x_gradient) = x_gradient {
        linear::input_gradient(hidden, channels, weights.up, x_gradient);
        // Every position has an equal share in the mean that conv_pool sees.
        let shared = &mut scratch.bias;
        linear::input_gradient(gradient_sum, channels, weights.pool, shared);
        let share = 1.0 / plan.positions() as f32;
        for value in shared.iter_mut() {
            *value *= share;
        }
        sums::add_bias(x_gradient, shared);
    }
}

/// Takes the features' gradient back through every scale's gate and convolution: the gradient of
/// h_s replaces g_s, and that of the weights goes to `kernels` `[S, K, K, d]`.
fn convolutions(plan: &Plan, weights: Weights<'_>, scratch: &mut Scratch, kernels: &mut [f32], accumulate: bool) {
    let shape = &plan.shape;
    let kernel_size = shape.kernel_size();
    let Scratch { scales, gated, row, features, taps, .. } = scratch;
    let kernels = kernels.chunks_exact_mut(kernel_size * kernel_size * shape.inner());
    for (index, (scale, kernel)) in scales.iter_mut().zip(kernels).enumerate() {
        let map = &plan.maps[index];
        let half = plan.grouping.per_half() * map.bare.len();
        let gated = &mut gated[..half];
        if plan.is_full(index) {
            let (stride, column) = (shape.features(), index * shape.half());
            grouped::group(features, stride, column, None, plan.grouping, map.bare, gated);
        } else {
            resize::enlarge_gradient(plan.resizing(index), features, row, gated);
        }
        let halves = scale.convolved.split_at(half);
        let padded_half = plan.grouping.per_half() * map.padded.len();
        let gradients = scale.gradient.split_at_mut(padded_half);
        gate::gradient(shape.gate(), shape.half(), map.padded, halves.into(), gated, gradients.into());
        depthwise::weight_gradient(
            &scale.input,
            &scale.gradient,
            map.padded,
            plan.grouping,
            kernel_size,
            taps,
            accumulate,
            kernel,
        );
        depthwise::convolve(
            &scale.gradient,
            map.padded,
            &weights.kernels[index].turned,
            kernel_size,
            &mut scale.convolved,
        );
    }
}
