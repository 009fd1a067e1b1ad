//! One sample forward through the block.

use crate::cpu::weights::Weights;
use crate::cpu::workspace::{Plan, Scratch};
use crate::cpu::{depthwise, gate, grouped, linear, pool, resize, sums};

/// The mean `[C]` over the positions of `x` `[HW, C]`.
pub(in crate::cpu) fn mean(plan: &Plan, x: &[f32], mean: &mut [f32]) {
    sums::column_sums(x, plan.shape.channels(), plan.width, false, mean);
    let share = 1.0 / plan.positions() as f32;
    for value in mean {
        *value *= share;
    }
}

/// The gate features `[HW, S·d/2]` of `x` `[HW, C]`. `scratch` keeps what the way back needs.
pub(in crate::cpu) fn features(
    plan: &Plan,
    weights: Weights<'_>,
    x: &[f32],
    scratch: &mut Scratch,
    features: &mut [f32],
) {
    let shape = &plan.shape;
    let Scratch { hidden, scales, gated, row, .. } = scratch;
    linear::apply(x, shape.channels(), weights.up, hidden);
    let (full, smaller) = scales.split_at_mut(1);
    grouped::group(
        hidden,
        shape.inner(),
        0,
        Some(weights.up_bias),
        plan.grouping,
        plan.maps[0].padded,
        &mut full[0].input,
    );
    for (index, scale) in smaller.iter_mut().enumerate() {
        pool::average(plan.pooling(index + 1), &full[0].input, &mut scale.input);
    }
    for (index, scale) in scales.iter_mut().enumerate() {
        let map = &plan.maps[index];
        depthwise::convolve(
            &scale.input,
            map.padded,
            &weights.kernels[index].upright,
            shape.kernel_size(),
            &mut scale.convolved,
        );
        let half = plan.grouping.per_half() * map.bare.len();
        let (a, b) = scale.convolved.split_at_mut(half);
        let gated = &mut gated[..half];
        gate::apply(shape.gate(), shape.half(), a, b, gated);
        if plan.is_full(index) {
            let (stride, column) = (shape.features(), index * shape.half());
            grouped::ungroup(gated, plan.grouping, map.bare, features, stride, column);
        } else {
            resize::enlarge(plan.resizing(index), gated, row, features);
        }
    }
}

/// conv_pool of the mean `[C]`, with its bias and conv_out's: what every position's output shares.
pub(in crate::cpu) fn shared_output(weights: Weights<'_>, mean: &[f32], bias: &mut [f32]) {
    linear::apply(mean, mean.len(), weights.pool, bias);
    for ((sum, pool), out) in bias.iter_mut().zip(weights.pool_bias).zip(weights.out_bias) {
        *sum += pool + out;
    }
}
