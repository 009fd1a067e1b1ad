use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::activation::{gelu, gelu_derivative, gelu_tanh_derivative, gelu_tanh_slice};
use super::linear::Linear;
use super::product::{Epilogue, Rows, multiply};
use super::simd::for_each_level;
use super::slices::{tensor, with_slices};

/// Rows that one thread computes at a time; their hidden values, 8C each, should stay in its cache.
const ROWS: usize = 64;

/// What lies between the linears of a feed-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super::super) enum FeedForwardActivation {
    /// h · gelu(g), where the first linear gives [h, g]: diffusers' `geglu`.
    Geglu,
    /// diffusers' `gelu-approximate`.
    GeluTanh,
}

/// y = activation(x Wᵢᵀ + bᵢ) Wₒᵀ + bₒ, added to `onto` where that is given: all [.., C].
pub(in super::super) fn feed_forward(
    activation: FeedForwardActivation,
    up: &Linear,
    down: &Linear,
    x: &Tensor,
    onto: Option<&Tensor>,
) -> Result<Tensor> {
    let (channels, raised, hidden) = (up.weights.k, up.weights.n, down.weights.k);
    let factor = if activation == FeedForwardActivation::Geglu { 2 } else { 1 };
    let residual = onto.unwrap_or(x);
    if x.dims().last() != Some(&channels) || residual.dims() != x.dims() || raised != factor * hidden {
        bail!("a feed-forward of {channels} channels cannot take {:?} onto {:?}", x.dims(), residual.dims());
    }
    let mut y = vec![0.0; x.elem_count()];
    with_slices([x, residual], |[x, residual]| {
        let units = y.par_chunks_mut(ROWS * channels).enumerate();
        units.for_each_init(
            || (vec![0.0; ROWS * raised], vec![0.0; ROWS * (raised - hidden)]),
            |(up_values, gated), (unit, y)| {
                let x = &x[unit * ROWS * channels..][..y.len()];
                let residual = &residual[unit * ROWS * channels..][..y.len()];
                let count = y.len() / channels;
                let raise = Epilogue { bias: up.bias.as_deref(), ..Epilogue::default() };
                multiply(Rows::plain(x, channels, channels), count, up.weights.view(), raise, up_values, raised);
                let activated = match activation {
                    FeedForwardActivation::Geglu => {
                        gate(&up_values[..count * raised], hidden, gated);
                        &*gated
                    }
                    FeedForwardActivation::GeluTanh => {
                        gelu_tanh_slice(&mut up_values[..count * raised]);
                        &*up_values
                    }
                };
                let residual = onto.map(|_| residual);
                let lower = Epilogue { bias: down.bias.as_deref(), residual, ..Epilogue::default() };
                multiply(Rows::plain(activated, hidden, hidden), count, down.weights.view(), lower, y, channels);
            },
        );
        Ok(())
    })?;
    tensor(y, x.dims())
}

/// The gradient of x from that of y, without `onto`: both [.., C].
pub(in super::super) fn feed_forward_gradient(
    activation: FeedForwardActivation,
    up: &Linear,
    down: &Linear,
    x: &Tensor,
    gradient: &Tensor,
) -> Result<Tensor> {
    let hidden = down.weights.k;
    let (raised, lowered) = (up.forward(x)?, down.input_gradient(gradient)?);
    let mut back = vec![0.0; raised.elem_count()];
    with_slices([&raised, &lowered], |[raised, lowered]| {
        let unit = ROWS * up.weights.n;
        let units = back.par_chunks_mut(unit).zip(raised.par_chunks(unit)).zip(lowered.par_chunks(ROWS * hidden));
        units.for_each(|((back, raised), lowered)| match activation {
            FeedForwardActivation::Geglu => gate_gradient(raised, lowered, hidden, back),
            FeedForwardActivation::GeluTanh => gelu_tanh_gradient(raised, lowered, back),
        });
        Ok(())
    })?;
    up.input_gradient(&tensor(back, raised.dims())?)
}

for_each_level! {
    /// From rows [h, g] and the gradient of h · gelu(g), the gradient of [h, g].
    fn gate_gradient(both: &[f32], gradient: &[f32], hidden: usize, back: &mut [f32]) {
        let rows = both.chunks_exact(2 * hidden).zip(back.chunks_exact_mut(2 * hidden));
        for ((both, back), gradient) in rows.zip(gradient.chunks_exact(hidden)) {
            let ((h, g), (of_h, of_g)) = (both.split_at(hidden), back.split_at_mut(hidden));
            for ((h, g), (gradient, (of_h, of_g))) in h.iter().zip(g).zip(gradient.iter().zip(of_h.iter_mut().zip(of_g))) {
                *of_h = gradient * gelu(*g);
                *of_g = gradient * h * gelu_derivative(*g);
            }
        }
    }
}

for_each_level! {
    fn gelu_tanh_gradient(x: &[f32], gradient: &[f32], back: &mut [f32]) {
        for ((back, x), gradient) in back.iter_mut().zip(x).zip(gradient) {
            *back = gradient * gelu_tanh_derivative(*x);
        }
    }
}

for_each_level! {
    /// Rows [h, g] → rows h · gelu(g).
    fn gate(both: &[f32], hidden: usize, gated: &mut [f32]) {
        for (both, gated) in both.chunks_exact(2 * hidden).zip(gated.chunks_exact_mut(hidden)) {
            let (h, g) = both.split_at(hidden);
            for ((gated, h), g) in gated.iter_mut().zip(h).zip(g) {
                *gated = h * gelu(*g);
            }
        }
    }
}
