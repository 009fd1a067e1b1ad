//! conv_out, conv_pool and their biases in closed form: with the gates' features fixed, the block's output is linear in them.

use rayon::prelude::*;

use super::cholesky::Factor;
use super::product::{Matrix, multiply};
use super::{Workspace, features};
use crate::error::{Error, Result, check_length};
use crate::parameters::Parameters;
use crate::shape::BlockShape;

/// Rows of the normal equations that one thread adds to at a time.
const ROWS: usize = 32;

/// The normal equations of the regression of a block's target on what its two last linears see: the gates' features f
/// `[S·d/2]`, the map's mean m `[C]`, and 1.
///
/// ```text
/// minimise  Σ w² |W_out f + W_pool m + b − y|²   over samples and pixels
/// ```
///
/// Both biases act as one. m and 1 are the same in all of a sample's pixels, so that only f is multiplied pixel by pixel.
/// Products and sums are f64, added batch after batch: the same batches give the same bits, whatever the number of threads.
#[derive(Debug, Clone)]
pub struct Ridge {
    shape: BlockShape,
    /// Of all unknowns with the features and the targets, [q, S·d/2 + C].
    products: Vec<f64>,
    /// Of m and 1 with themselves, [C + 1, C + 1].
    shared: Vec<f64>,
    rows: usize,
}

/// What a batch is weighed by and has to become.
#[derive(Debug, Clone, Copy)]
pub struct Aim<'a> {
    /// `[B, H, W, C]`.
    pub target: &'a [f32],
    /// w of each sample, `[B]`: its difference from the target is multiplied by it.
    pub weights: &'a [f64],
}

impl Ridge {
    /// Equations of no rows.
    pub fn new(shape: &BlockShape) -> Self {
        let (features, shared) = (shape.features(), shape.channels() + 1);
        Self {
            shape: shape.clone(),
            products: vec![0.0; (features + shared) * (features + shape.channels())],
            shared: vec![0.0; shared * shared],
            rows: 0,
        }
    }

    /// The unknowns of each channel of the output: S·d/2 + C + 1.
    pub fn unknowns(shape: &BlockShape) -> usize {
        shape.features() + shape.channels() + 1
    }

    /// Adds a batch: `x` `[B, H, W, C]`, for `size` `[B, H, W]`, whose features are those of `parameters`.
    pub fn add(
        &mut self,
        parameters: &Parameters,
        x: &[f32],
        aim: Aim<'_>,
        size: [usize; 3],
        workspace: &mut Workspace,
    ) -> Result<()> {
        let (count, channels) = (self.shape.features(), self.shape.channels());
        let [batch, height, width] = size;
        let Aim { target, weights } = aim;
        check_length("target", x.len(), target.len())?;
        check_length("weights", batch, weights.len())?;
        let mut of_pixels = vec![0.0; x.len() / channels * count];
        let mut means = vec![0.0; batch * channels];
        features(&self.shape, parameters, x, size, &mut of_pixels, &mut means, workspace)?;

        // Features and targets side by side, and their sums over each sample's pixels.
        let (pixels, columns) = (height * width, count + channels);
        let mut rows = vec![0.0; batch * pixels * columns];
        let mut sums = vec![0.0; batch * columns];
        let of_samples = of_pixels.par_chunks_exact(pixels * count).zip(target.par_chunks_exact(pixels * channels));
        let made = rows.par_chunks_exact_mut(pixels * columns).zip(sums.par_chunks_exact_mut(columns));
        of_samples.zip(made).zip(weights).for_each(|(((features, target), (rows, sums)), weight)| {
            let given = features.chunks_exact(count).zip(target.chunks_exact(channels));
            for ((features, target), row) in given.zip(rows.chunks_exact_mut(columns)) {
                for ((value, sum), from) in row.iter_mut().zip(&mut *sums).zip(features.iter().chain(target)) {
                    *value = weight * f64::from(*from);
                    *sum += *value;
                }
            }
        });
        let of_sample = |(mean, weight): (&[f32], &f64)| -> Vec<f64> {
            mean.iter().map(|value| f64::from(*value)).chain([1.0]).map(|value| weight * value).collect()
        };
        let shared: Vec<f64> = means.chunks_exact(channels).zip(weights).flat_map(of_sample).collect();

        let (of_features, of_shared) = self.products.split_at_mut(count * columns);
        add_products(of_features, (&rows, columns), (&rows, columns), 1.0);
        add_products(of_shared, (&shared, channels + 1), (&sums, columns), 1.0);
        add_products(&mut self.shared, (&shared, channels + 1), (&shared, channels + 1), pixels as f64);
        self.rows += batch * pixels;
        Ok(())
    }

    /// Writes the solution into `parameters`, whose gates are left as they are: conv_out takes the whole bias, and conv_pool's
    /// becomes zero.
    ///
    /// `lambda` penalises the unknowns, each taken of its column scaled to the mean square of all: so it is relative to the
    /// mean of the diagonal.
    ///
    /// # Errors
    /// [`Error::Singular`] where there are many solutions, or numbers that are not finite: `parameters` are as they were.
    pub fn solve(&self, lambda: f64, parameters: &mut Parameters) -> Result<()> {
        parameters.check_shape("parameters", &self.shape)?;
        let (count, channels) = (self.shape.features(), self.shape.channels());
        let (columns, n) = (count + channels, Self::unknowns(&self.shape));
        let product = |i: usize, j: usize| match j < count {
            true => self.products[i * columns + j],
            false => self.shared[(i - count) * (channels + 1) + j - count],
        };
        let scale = |i: usize| match product(i, i) {
            // A column of zeros stays one.
            0.0 => 1.0,
            square => square.sqrt().recip(),
        };
        let scales: Vec<f64> = (0..n).map(scale).collect();
        let mut matrix = vec![0.0; n * n];
        for (i, row) in matrix.chunks_exact_mut(n).enumerate() {
            for j in 0..=i {
                row[j] = scales[i] * scales[j] * product(i, j);
            }
            row[i] += lambda;
        }
        // Rounding leaves that much of a pivot that should be none.
        let least = n as f64 * f64::EPSILON;
        let factor = Factor::new(matrix, n, least).map_err(|(unknown, pivot)| {
            let (rows, unknowns) = (self.rows, n);
            Error::Singular { unknown, unknowns, rows, pivot }
        })?;
        let of_row = |(row, scale): (&[f64], &f64)| row[count..].iter().map(|value| value * scale).collect::<Vec<_>>();
        let right: Vec<f64> = self.products.chunks_exact(columns).zip(&scales).flat_map(of_row).collect();
        let solution = factor.solve(&right, channels);

        let number = |unknown: usize, channel: usize| (scales[unknown] * solution[unknown * channels + channel]) as f32;
        let linear = |unknowns: std::ops::Range<usize>| -> Vec<f32> {
            (0..channels).flat_map(|channel| unknowns.clone().map(move |unknown| number(unknown, channel))).collect()
        };
        parameters.set("conv_out.weight", &linear(0..count))?;
        parameters.set("conv_pool.weight", &linear(count..n - 1))?;
        parameters.set("conv_out.bias", &linear(n - 1..n))?;
        parameters.get_mut("conv_pool.bias")?.fill(0.0);
        Ok(())
    }
}

/// `sums [m, n] += scale · lhsᵀ · rhs`, for `lhs` [rows, ≥ m] and `rhs` [rows, n] with so many columns each.
fn add_products(sums: &mut [f64], (lhs, stride): (&[f64], usize), (rhs, n): (&[f64], usize), scale: f64) {
    let count = rhs.len() / n;
    sums.par_chunks_mut(ROWS * n).enumerate().for_each(|(index, sums)| {
        let lhs = Matrix { values: &lhs[index * ROWS..], row: 1, column: stride };
        let rhs = Matrix { values: rhs, row: n, column: 1 };
        multiply([sums.len() / n, n, count], lhs, rhs, (Some(1.0), scale), (sums, n));
    });
}
