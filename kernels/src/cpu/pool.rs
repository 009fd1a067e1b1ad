//! Adaptive average pooling, with the bins of PyTorch's `adaptive_avg_pool2d`.

use std::ops::Range;

use super::grouped::Extent;
use super::instruction_set::multiversion;
use super::lanes::{Group, LANES};

/// The bins along one axis: output i averages inputs ⌊i·n/m⌋ to ⌈(i+1)·n/m⌉ (exclusive), for n
/// inputs and m outputs. Where m does not divide n, neighbouring bins overlap (ATen's
/// `AdaptivePooling.h`).
pub(super) fn bins(inputs: usize, outputs: usize) -> Vec<Range<usize>> {
    (0..outputs).map(|index| index * inputs / outputs..((index + 1) * inputs).div_ceil(outputs)).collect()
}

/// The averaging of one map: bins along both axes, and the planes on either side.
#[derive(Clone, Copy)]
pub(super) struct Pooling<'a> {
    pub(super) rows: &'a [Range<usize>],
    pub(super) columns: &'a [Range<usize>],
    /// The larger map.
    pub(super) full: Extent,
    /// The smaller map.
    pub(super) small: Extent,
}

multiversion! {
    /// Averages the bins of planes of `full` into planes of `small`; margins stay as they are.
    pub(super) fn average<V>(pooling: Pooling<'_>, input: &[Group], output: &mut [Group]) {
        let Pooling { rows, columns, full, small } = pooling;
        let inputs = input.chunks_exact(full.len());
        for (input, output) in inputs.zip(output.chunks_exact_mut(small.len())) {
            for (rows, output) in rows.iter().zip(output.chunks_exact_mut(small.row())) {
                for (columns, mean) in columns.iter().zip(&mut output[small.margin..]) {
                    let mut sum = Group::ZERO;
                    for y in rows.clone() {
                        let start = y * full.row() + full.margin;
                        for value in &input[start + columns.start..start + columns.end] {
                            for lane in 0..LANES {
                                sum.0[lane] += value.0[lane];
                            }
                        }
                    }
                    let share = 1.0 / (rows.len() * columns.len()) as f32;
                    for lane in 0..LANES {
                        mean.0[lane] = sum.0[lane] * share;
                    }
                }
            }
        }
    }
}

multiversion! {
    /// Adds to the gradient of the larger map what the gradient of its averages contributes.
    pub(super) fn average_gradient<V>(
        pooling: Pooling<'_>,
        gradient: &[Group],
        input_gradient: &mut [Group],
    ) {
        let Pooling { rows, columns, full, small } = pooling;
        let gradients = gradient.chunks_exact(small.len());
        for (gradient, target) in gradients.zip(input_gradient.chunks_exact_mut(full.len())) {
            for (rows, gradient) in rows.iter().zip(gradient.chunks_exact(small.row())) {
                for (columns, value) in columns.iter().zip(&gradient[small.margin..]) {
                    let share = 1.0 / (rows.len() * columns.len()) as f32;
                    let mut part = Group::ZERO;
                    for lane in 0..LANES {
                        part.0[lane] = value.0[lane] * share;
                    }
                    for y in rows.clone() {
                        let start = y * full.row() + full.margin;
                        for sum in &mut target[start + columns.start..start + columns.end] {
                            for lane in 0..LANES {
                                sum.0[lane] += part.0[lane];
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::bins;

    #[test]
    fn bins_overlap_where_the_sizes_do_not_divide() {
        assert_eq!(bins(8, 4), [0..2, 2..4, 4..6, 6..8]);
        assert_eq!(bins(7, 3), [0..3, 2..5, 4..7]);
        assert_eq!(bins(5, 2), [0..3, 2..5]);
    }
}
