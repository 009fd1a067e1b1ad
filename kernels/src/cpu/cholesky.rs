//! Linear equations with a symmetric positive definite matrix, in f64: a Cholesky factorisation in panels of [`PANEL`]
//! columns. How the work is cut depends on the sizes alone, so the bits don't depend on the number of threads.

use rayon::prelude::*;

use super::product::{Matrix, multiply};

/// Columns that are eliminated at a time.
const PANEL: usize = 64;
/// Rows that one thread updates at a time.
const ROWS: usize = 32;
/// Right-hand sides that one thread solves for at a time.
const SIDES: usize = 32;

/// L of a matrix L·Lᵀ, row-major `[n, n]`; what stands above the diagonal is meaningless.
pub(super) struct Factor {
    values: Vec<f64>,
    n: usize,
}

impl Factor {
    /// Factorises `matrix` `[n, n]`, of which only what stands on and below the diagonal is read.
    ///
    /// # Errors
    /// The first pivot that isn't above `least`, and its value: what is not finite, too, ends here.
    pub(super) fn new(mut matrix: Vec<f64>, n: usize, least: f64) -> Result<Self, (usize, f64)> {
        assert_eq!(matrix.len(), n * n);
        for start in (0..n).step_by(PANEL) {
            let width = PANEL.min(n - start);
            let (head, below) = matrix.split_at_mut((start + width) * n);
            let square = &mut head[start * n..];
            for j in 0..width {
                let (before, rest) = square.split_at_mut(j * n);
                let (row, _) = rest.split_at_mut(n);
                for i in 0..j {
                    let other = &before[i * n + start..][..=i];
                    row[start + i] = (row[start + i] - dot(&row[start..start + i], &other[..i])) / other[i];
                }
                let done = &row[start..start + j];
                let pivot = row[start + j] - dot(done, done);
                if !(pivot > least && pivot.is_finite()) {
                    return Err((start + j, pivot));
                }
                row[start + j] = pivot.sqrt();
            }
            let square = &*square;
            below.par_chunks_exact_mut(n).for_each(|row| {
                for j in 0..width {
                    let other = &square[j * n + start..][..=j];
                    row[start + j] = (row[start + j] - dot(&row[start..start + j], &other[..j])) / other[j];
                }
            });
            // Rows below change while all of them read what was just found.
            let panel: Vec<f64> = below.chunks_exact(n).flat_map(|row| &row[start..start + width]).copied().collect();
            let chunks = below.par_chunks_mut(ROWS * n).enumerate();
            chunks.for_each(|(index, rows)| {
                let count = rows.len() / n;
                let columns = index * ROWS + count;
                let lhs = Matrix { values: &panel[index * ROWS * width..], row: width, column: 1 };
                let rhs = Matrix { values: &panel, row: 1, column: width };
                let target = (&mut rows[start + width..], n);
                multiply([count, columns, width], lhs, rhs, (Some(1.0), -1.0), target);
            });
        }
        Ok(Self { values: matrix, n })
    }

    /// The solutions X `[n, sides]` of L·Lᵀ·X = `sides` `[n, sides]`, row-major.
    pub(super) fn solve(&self, right: &[f64], sides: usize) -> Vec<f64> {
        assert_eq!(right.len(), self.n * sides);
        let chunk = |first: usize| {
            let width = SIDES.min(sides - first);
            let mut x: Vec<f64> =
                right.chunks_exact(sides).flat_map(|row| &row[first..first + width]).copied().collect();
            self.forward(&mut x, width);
            self.backward(&mut x, width);
            x
        };
        let firsts: Vec<usize> = (0..sides).step_by(SIDES).collect();
        let solved: Vec<Vec<f64>> = firsts.into_par_iter().map(chunk).collect();
        let row = |i: usize| solved.iter().flat_map(move |x| &x[i * x.len() / self.n..(i + 1) * x.len() / self.n]);
        (0..self.n).flat_map(row).copied().collect()
    }

    /// Turns `x` `[n, width]` into L⁻¹·x.
    fn forward(&self, x: &mut [f64], width: usize) {
        let n = self.n;
        for start in (0..n).step_by(PANEL) {
            let panel = PANEL.min(n - start);
            let (solved, rest) = x.split_at_mut(start * width);
            if start > 0 {
                let lhs = Matrix { values: &self.values[start * n..], row: n, column: 1 };
                let rhs = Matrix { values: solved, row: width, column: 1 };
                multiply([panel, width, start], lhs, rhs, (Some(1.0), -1.0), (rest, width));
            }
            for i in 0..panel {
                let (before, row) = rest.split_at_mut(i * width);
                let factors = &self.values[(start + i) * n + start..][..=i];
                eliminate(&mut row[..width], before.chunks_exact(width).zip(factors), factors[i]);
            }
        }
    }

    /// Turns `x` `[n, width]` into L⁻ᵀ·x.
    fn backward(&self, x: &mut [f64], width: usize) {
        let n = self.n;
        for start in (0..n).step_by(PANEL).rev() {
            let panel = PANEL.min(n - start);
            let behind = start + panel;
            let (rest, solved) = x.split_at_mut(behind * width);
            let rest = &mut rest[start * width..];
            if behind < n {
                let lhs = Matrix { values: &self.values[behind * n + start..], row: 1, column: n };
                let rhs = Matrix { values: solved, row: width, column: 1 };
                multiply([panel, width, n - behind], lhs, rhs, (Some(1.0), -1.0), (rest, width));
            }
            for i in (0..panel).rev() {
                let (head, after) = rest.split_at_mut((i + 1) * width);
                let column = (i + 1..panel).map(|j| &self.values[(start + j) * n + start + i]);
                let pivot = self.values[(start + i) * n + start + i];
                eliminate(&mut head[i * width..], after.chunks_exact(width).zip(column), pivot);
            }
        }
    }
}

/// `row = (row − Σ factor · other) / pivot`.
fn eliminate<'a>(row: &mut [f64], others: impl Iterator<Item = (&'a [f64], &'a f64)>, pivot: f64) {
    for (other, factor) in others {
        row.iter_mut().zip(other).for_each(|(value, other)| *value -= factor * other);
    }
    row.iter_mut().for_each(|value| *value /= pivot);
}

/// Summed in eight lanes.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut lanes = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes within a panel, at its edge, and over several.
    #[test]
    fn solutions_solve_the_equations() {
        for (n, sides) in [(1, 1), (7, 3), (64, 33), (65, 1), (200, 70)] {
            let bits = |i: usize| {
                (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
            };
            let number = |i: usize| (bits(i) >> 40) as f64 / f64::from(1 << 24) - 0.5;
            let rows: Vec<f64> = (0..2 * n * n).map(number).collect();
            let gram = |i: usize, j: usize| (0..2 * n).map(|r| rows[r * n + i] * rows[r * n + j]).sum::<f64>();
            let matrix: Vec<f64> = (0..n * n).map(|at| gram(at / n, at % n)).collect();
            let expected: Vec<f64> = (0..n * sides).map(|i| number(i + 5)).collect();
            let right: Vec<f64> = (0..n * sides)
                .map(|at| (0..n).map(|k| matrix[at / sides * n + k] * expected[k * sides + at % sides]).sum())
                .collect();
            let found = Factor::new(matrix, n, 0.0).expect("positive definite").solve(&right, sides);
            let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off < 1e-6, "{n}×{n}, {sides} sides: off by {off}");
        }
    }
}
