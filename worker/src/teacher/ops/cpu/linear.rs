use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::product::{Epilogue, Packed, Rows, multiply};
use super::slices::{tensor, with_slices};

/// Rows that one thread computes at a time.
const ROWS: usize = 128;

/// y = x Wᵀ + b over the last dimension; a 1×1 convolution of maps that are channels last.
#[derive(Debug)]
pub(in super::super::super) struct Linear {
    pub(super) weights: Packed,
    pub(super) bias: Option<Vec<f32>>,
}

impl Linear {
    /// From PyTorch's layout: `weight` [output, input], `bias` [output].
    pub(in super::super) fn new(input: usize, output: usize, weight: &[f32], bias: Option<Vec<f32>>) -> Self {
        Self { weights: Packed::new(input, output, |k, n| weight[n * input + k]), bias }
    }

    /// x [.., input] → [.., output].
    pub(in super::super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, None)
    }

    /// x [.., input] → residual + x Wᵀ + b, both [.., output].
    pub(in super::super) fn forward_onto(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        self.apply(x, Some(residual))
    }

    fn apply(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let (k, n) = (self.weights.k, self.weights.n);
        let mut shape = x.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == k => *last = n,
            _ => bail!("a linear of {k} channels cannot take {:?}", x.dims()),
        }
        if let Some(residual) = residual
            && residual.dims() != shape
        {
            bail!("a residual of {:?} cannot be added to {shape:?}", residual.dims());
        }
        let mut y = vec![0.0; shape.iter().product()];
        with_slices([x, residual.unwrap_or(x)], |[x, added]| {
            y.par_chunks_mut(ROWS * n).enumerate().for_each(|(unit, y)| {
                let first = unit * ROWS;
                let count = y.len() / n;
                let epilogue = Epilogue {
                    bias: self.bias.as_deref(),
                    residual: residual.map(|_| &added[first * n..][..y.len()]),
                    ..Epilogue::default()
                };
                multiply(Rows::plain(&x[first * k..], k, k), count, self.weights.view(), epilogue, y, n);
            });
            Ok(())
        })?;
        tensor(y, &shape)
    }
}
