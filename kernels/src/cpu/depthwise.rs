//! The depthwise convolution: K×K, one kernel a channel, zero padding K/2, no bias.

use super::correlate::{Kernel, correlate};
use super::grouped::{Extent, Grouping, copy_lanes};
use super::lanes::Group;

/// Groups the weights `[K, K, d]` into planes of K×K, as they are and turned by 180° for the
/// gradient of the input.
pub(super) fn group_weights(
    weights: &[f32],
    grouping: Grouping,
    kernel_size: usize,
    upright: &mut [Group],
    turned: &mut [Group],
) {
    let taps = kernel_size * kernel_size;
    let inner = 2 * grouping.half;
    let planes = upright.chunks_exact_mut(taps).zip(turned.chunks_exact_mut(taps));
    for (index, (upright, turned)) in planes.enumerate() {
        let (first, count) = grouping.channels(index);
        for (tap, channels) in weights.chunks_exact(inner).enumerate() {
            let mut group = Group::ZERO;
            group.0[..count].copy_from_slice(&channels[first..first + count]);
            upright[tap] = group;
            turned[taps - 1 - tap] = group;
        }
    }
}

/// Convolves planes with margins of K/2 into planes without. With the turned weights and the
/// output's gradient as input, this is the input's gradient.
pub(super) fn convolve(input: &[Group], extent: Extent, weights: &[Group], kernel_size: usize, output: &mut [Group]) {
    let taps = kernel_size * kernel_size;
    let outputs = output.chunks_exact_mut(extent.height * extent.width);
    let planes = input.chunks_exact(extent.len()).zip(weights.chunks_exact(taps)).zip(outputs);
    for ((input, weights), output) in planes {
        let kernel = Kernel { values: weights, height: kernel_size, width: kernel_size, row: kernel_size };
        correlate(input, extent, kernel, output);
    }
}

/// The gradient of the weights `[K, K, d]`, written or, if `accumulate`, added. Both planes have
/// margins of K/2; `taps` holds one plane of K×K.
#[expect(clippy::too_many_arguments, reason = "two maps, their extent, and where the sums go")]
pub(super) fn weight_gradient(
    input: &[Group],
    output_gradient: &[Group],
    extent: Extent,
    grouping: Grouping,
    kernel_size: usize,
    taps: &mut [Group],
    accumulate: bool,
    gradient: &mut [f32],
) {
    let inner = 2 * grouping.half;
    let planes = input.chunks_exact(extent.len()).zip(output_gradient.chunks_exact(extent.len()));
    for (index, (input, output_gradient)) in planes.enumerate() {
        let kernel = Kernel {
            values: &output_gradient[extent.margin..],
            height: extent.height,
            width: extent.width,
            row: extent.row(),
        };
        correlate(input, extent, kernel, &mut taps[..kernel_size * kernel_size]);
        let (first, count) = grouping.channels(index);
        for (tap, channels) in taps.iter().zip(gradient.chunks_exact_mut(inner)) {
            let channels = &mut channels[first..first + count];
            if accumulate {
                for (sum, value) in channels.iter_mut().zip(tap.0) {
                    *sum += value;
                }
            } else {
                copy_lanes(&tap.0[..count], channels);
            }
        }
    }
}
