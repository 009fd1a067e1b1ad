use std::sync::OnceLock;

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
    /// W itself, [output, input], from the first gradient on.
    turned: OnceLock<Packed>,
}

impl Linear {
    /// From PyTorch's layout: `weight` [output, input], `bias` [output].
    pub(in super::super) fn new(input: usize, output: usize, weight: &[f32], bias: Option<Vec<f32>>) -> Self {
        let weights = Packed::new(input, output, |k, n| weight[n * input + k]);
        Self { weights, bias, turned: OnceLock::new() }
    }

    /// x [.., input] → [.., output].
    pub(in super::super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, None)
    }

    /// x [.., input] → residual + x Wᵀ + b, both [.., output].
    pub(in super::super) fn forward_onto(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        self.apply(x, Some(residual))
    }

    /// The gradient of x [.., input] from that of y [.., output].
    pub(in super::super) fn input_gradient(&self, gradient: &Tensor) -> Result<Tensor> {
        let turned = self.turned.get_or_init(|| {
            Packed::new(self.weights.n, self.weights.k, |output, input| self.weights.get(input, output))
        });
        product(turned, None, gradient, None)
    }

    fn apply(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        product(&self.weights, self.bias.as_deref(), x, residual)
    }
}

/// x [.., k] times the weights [k, n], and what is added to it.
fn product(weights: &Packed, bias: Option<&[f32]>, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    let (k, n) = (weights.k, weights.n);
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
            let epilogue =
                Epilogue { bias, residual: residual.map(|_| &added[first * n..][..y.len()]), ..Epilogue::default() };
            multiply(Rows::plain(&x[first * k..], k, k), count, weights.view(), epilogue, y, n);
        });
        Ok(())
    })?;
    tensor(y, &shape)
}
