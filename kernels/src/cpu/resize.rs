//! Bilinear enlargement, as PyTorch's `interpolate(mode="bilinear", align_corners=False)`.

use super::grouped::{Extent, Grouping, copy_lanes};
use super::instruction_set::multiversion;
use super::lanes::{Group, LANES};

/// What one output along an axis is made of: `(1 − weight)·input[low] + weight·input[high]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    pub(super) low: usize,
    pub(super) high: usize,
    pub(super) weight: f32,
}

/// The samples along one axis: output i lies at (i + ½)·inputs/outputs − ½, not below 0, and past
/// the last input its value repeats (ATen's `UpSample.h`). The factor is the ratio of the sizes and
/// not the block's scale, which rounding down makes a different one for odd maps.
pub(super) fn samples(inputs: usize, outputs: usize) -> Vec<Sample> {
    let factor = inputs as f64 / outputs as f64;
    (0..outputs)
        .map(|index| {
            let position = ((index as f64 + 0.5) * factor - 0.5).max(0.0);
            let low = (position as usize).min(inputs - 1);
            let weight = (position - low as f64) as f32;
            Sample { low, high: (low + 1).min(inputs - 1), weight }
        })
        .collect()
}

/// The enlargement of one map into columns of a row-major matrix.
#[derive(Clone, Copy)]
pub(super) struct Resizing<'a> {
    pub(super) rows: &'a [Sample],
    pub(super) columns: &'a [Sample],
    /// The smaller map; without margins.
    pub(super) small: Extent,
    pub(super) grouping: Grouping,
    /// Columns of the matrix.
    pub(super) stride: usize,
    /// The first of the half's columns in it.
    pub(super) column: usize,
}

multiversion! {
    /// Enlarges the planes of one half into `[H·W, stride]`. `row` holds one row of the small map.
    pub(super) fn enlarge<V>(
        resizing: Resizing<'_>,
        input: &[Group],
        row: &mut [Group],
        output: &mut [f32],
    ) {
        let Resizing { rows, columns, small, grouping, stride, column } = resizing;
        for (index, plane) in input.chunks_exact(small.len()).enumerate() {
            let (channel, count) = grouping.channels(index);
            let first = column + channel;
            for (rows, output) in rows.iter().zip(output.chunks_exact_mut(columns.len() * stride)) {
                let low = &plane[rows.low * small.width..][..small.width];
                let high = &plane[rows.high * small.width..][..small.width];
                for ((mixed, low), high) in row.iter_mut().zip(low).zip(high) {
                    *mixed = mix(low, high, rows.weight);
                }
                for (columns, output) in columns.iter().zip(output.chunks_exact_mut(stride)) {
                    let mixed = mix(&row[columns.low], &row[columns.high], columns.weight);
                    copy_lanes(&mixed.0[..count], &mut output[first..first + count]);
                }
            }
        }
    }
}

multiversion! {
    /// Writes the gradient of the planes of one half, given that of what they were enlarged to.
    pub(super) fn enlarge_gradient<V>(
        resizing: Resizing<'_>,
        gradient: &[f32],
        row: &mut [Group],
        input_gradient: &mut [Group],
    ) {
        let Resizing { rows, columns, small, grouping, stride, column } = resizing;
        let row = &mut row[..small.width];
        for (index, plane) in input_gradient.chunks_exact_mut(small.len()).enumerate() {
            let (channel, count) = grouping.channels(index);
            let first = column + channel;
            plane.fill(Group::ZERO);
            let gradients = gradient.chunks_exact(columns.len() * stride);
            for (rows, gradient) in rows.iter().zip(gradients) {
                row.fill(Group::ZERO);
                for (columns, gradient) in columns.iter().zip(gradient.chunks_exact(stride)) {
                    let mut value = Group::ZERO;
                    copy_lanes(&gradient[first..first + count], &mut value.0[..count]);
                    add_scaled(&mut row[columns.low], &value, 1.0 - columns.weight);
                    add_scaled(&mut row[columns.high], &value, columns.weight);
                }
                for (x, value) in row.iter().enumerate() {
                    let (low, high) = (rows.low * small.width + x, rows.high * small.width + x);
                    add_scaled(&mut plane[low], value, 1.0 - rows.weight);
                    add_scaled(&mut plane[high], value, rows.weight);
                }
            }
        }
    }
}

#[inline(always)]
fn mix(low: &Group, high: &Group, weight: f32) -> Group {
    let mut mixed = Group::ZERO;
    for lane in 0..LANES {
        mixed.0[lane] = low.0[lane] * (1.0 - weight) + high.0[lane] * weight;
    }
    mixed
}

#[inline(always)]
fn add_scaled(sum: &mut Group, value: &Group, weight: f32) {
    for lane in 0..LANES {
        sum.0[lane] += value.0[lane] * weight;
    }
}

#[cfg(test)]
mod tests {
    use super::{Sample, samples};

    #[test]
    fn samples_repeat_at_the_edges() {
        let sample = |low, high, weight| Sample { low, high, weight };
        assert_eq!(samples(2, 4), [sample(0, 1, 0.0), sample(0, 1, 0.25), sample(0, 1, 0.75), sample(1, 1, 0.25)]);
        assert!(samples(1, 3).iter().all(|sample| sample.low == 0 && sample.high == 0));
    }
}
