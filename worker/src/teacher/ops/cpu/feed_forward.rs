use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::activation::{gelu, gelu_tanh_slice};
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
