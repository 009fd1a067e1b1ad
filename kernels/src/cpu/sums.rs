//! Sums over positions, and the residual whose squares are the loss.

use super::instruction_set::multiversion;
use crate::loss::Slope;

/// Columns summed at once: their partial sums stay in registers.
const TILE: usize = 64;

multiversion! {
    /// The sum of every column of row-major `rows` `[n, columns]`, written or, if `accumulate`,
    /// added. Runs of `run` rows are summed first and then their sums, which keeps the rounding of
    /// large maps small.
    pub(super) fn column_sums<V>(
        rows: &[f32],
        columns: usize,
        run: usize,
        accumulate: bool,
        sums: &mut [f32],
    ) {
        for start in (0..columns).step_by(TILE) {
            let width = TILE.min(columns - start);
            let mut total = [0.0f32; TILE];
            for run in rows.chunks(run * columns) {
                let mut part = [0.0f32; TILE];
                for row in run.chunks_exact(columns) {
                    let row = &row[start..start + width];
                    if let Some(row) = row.first_chunk::<TILE>() {
                        for lane in 0..TILE {
                            part[lane] += row[lane];
                        }
                    } else {
                        for (sum, value) in part.iter_mut().zip(row) {
                            *sum += value;
                        }
                    }
                }
                for lane in 0..TILE {
                    total[lane] += part[lane];
                }
            }
            for (sum, total) in sums[start..start + width].iter_mut().zip(total) {
                *sum = if accumulate { *sum + total } else { total };
            }
        }
    }
}

multiversion! {
    /// Adds `bias` `[columns]` to every row of `rows` `[n, columns]`.
    pub(super) fn add_bias<V>(rows: &mut [f32], bias: &[f32]) {
        for row in rows.chunks_exact_mut(bias.len()) {
            for (value, bias) in row.iter_mut().zip(bias) {
                *value += bias;
            }
        }
    }
}

multiversion! {
    /// Turns `rows` `[n, columns]` into `factor` times the slope at rows + bias − target, and returns the sum of
    /// (rows + bias − target)² in f64.
    pub(super) fn residual<V>(
        rows: &mut [f32],
        bias: &[f32],
        target: &[f32],
        slope: Slope,
        factor: f32,
    ) -> f64 {
        const WIDTH: usize = 16;
        let Slope { gain, limit } = slope;
        let columns = bias.len();
        let mut sums = [0.0f64; WIDTH];
        for (row, target) in rows.chunks_exact_mut(columns).zip(target.chunks_exact(columns)) {
            let (row, row_rest) = row.as_chunks_mut::<WIDTH>();
            let (target, target_rest) = target.as_chunks::<WIDTH>();
            let (bias, bias_rest) = bias.as_chunks::<WIDTH>();
            for ((value, target), bias) in row.iter_mut().zip(target).zip(bias) {
                for lane in 0..WIDTH {
                    let difference = value[lane] + bias[lane] - target[lane];
                    sums[lane] += f64::from(difference) * f64::from(difference);
                    value[lane] = factor * (gain * difference).clamp(-limit, limit);
                }
            }
            for ((value, target), bias) in row_rest.iter_mut().zip(target_rest).zip(bias_rest) {
                let difference = *value + bias - target;
                sums[0] += f64::from(difference) * f64::from(difference);
                *value = factor * (gain * difference).clamp(-limit, limit);
            }
        }
        sums.iter().sum()
    }
}

multiversion! {
    /// As [`residual`] with a gate for each column: the sum is that of (gate · difference)², and `rows` turns into
    /// `factor · gate` times the slope at gate · difference.
    pub(super) fn gated_residual<V>(
        rows: &mut [f32],
        bias: &[f32],
        target: &[f32],
        gates: &[f32],
        slope: Slope,
        factor: f32,
    ) -> f64 {
        const WIDTH: usize = 16;
        let Slope { gain, limit } = slope;
        let columns = bias.len();
        let mut sums = [0.0f64; WIDTH];
        for (row, target) in rows.chunks_exact_mut(columns).zip(target.chunks_exact(columns)) {
            let columns = row.chunks_mut(WIDTH).zip(target.chunks(WIDTH)).zip(bias.chunks(WIDTH).zip(gates.chunks(WIDTH)));
            for ((row, target), (bias, gates)) in columns {
                let lanes = row.iter_mut().zip(target).zip(bias.iter().zip(gates)).zip(&mut sums);
                for (((value, target), (bias, gate)), sum) in lanes {
                    let difference = gate * (*value + bias - target);
                    *sum += f64::from(difference) * f64::from(difference);
                    *value = factor * gate * (gain * difference).clamp(-limit, limit);
                }
            }
        }
        sums.iter().sum()
    }
}

multiversion! {
    /// `sum += part`.
    pub(super) fn add<V>(sum: &mut [f32], part: &[f32]) {
        for (sum, part) in sum.iter_mut().zip(part) {
            *sum += part;
        }
    }
}
