use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::simd::for_each_level;
use super::slices::{tensor, with_slices};

/// Rows that one thread computes at a time.
const ROWS: usize = 256;

/// Partial sums of a row, added in a fixed order at the end.
const LANES: usize = 16;

/// Layer normalisation over the last dimension.
#[derive(Debug)]
pub(in super::super) struct LayerNorm {
    eps: f32,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl LayerNorm {
    /// `weight` and `bias` [C].
    pub(in super::super) fn new(eps: f32, weight: Vec<f32>, bias: Vec<f32>) -> Self {
        Self { eps, weight, bias }
    }

    /// x [.., C] → the same shape.
    pub(in super::super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let channels = self.weight.len();
        if x.dims().last() != Some(&channels) {
            bail!("a layer norm of {channels} channels cannot take {:?}", x.dims());
        }
        let mut y = vec![0.0; x.elem_count()];
        with_slices([x], |[x]| {
            y.par_chunks_mut(ROWS * channels).zip(x.par_chunks(ROWS * channels)).for_each(|(y, x)| {
                normalise(x, &self.weight, &self.bias, self.eps, y);
            });
            Ok(())
        })?;
        tensor(y, x.dims())
    }
}

/// Σ f(x) over a row, in `LANES` chains and then those.
#[inline(always)]
fn sum(row: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, *x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, *x);
    }
    lanes.iter().sum()
}

for_each_level! {
    fn normalise(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
        let channels = weight.len();
        let n = channels as f32;
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
            let mean = sum(x, |sum, x| sum + x) / n;
            let variance = sum(x, |sum, x| (x - mean).mul_add(x - mean, sum)) / n;
            let inverse = 1.0 / (variance + eps).sqrt();
            for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = ((x - mean) * inverse).mul_add(*weight, *bias);
            }
        }
    }
}
