use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::activation::gelu;
use super::linear::Linear;
use super::product::{Epilogue, Rows, multiply};
use super::simd::for_each_level;
use super::slices::{tensor, with_slices};

/// Rows that one thread computes at a time; their hidden values, 8C each, should stay in its cache.
const ROWS: usize = 64;

/// The transformer's feed-forward with diffusers' GEGLU: y = (h · gelu(g)) Wₒᵀ + bₒ, where [h, g] = x Wᵢᵀ + bᵢ.
#[derive(Debug)]
pub(in super::super) struct FeedForward {
    /// C → 8C: `ff.net.0.proj`.
    pub(in super::super) up: Linear,
    /// 4C → C: `ff.net.2`.
    pub(in super::super) down: Linear,
}

impl FeedForward {
    /// x [.., C] → residual + y, both [.., C].
    pub(in super::super) fn forward_onto(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        let (channels, doubled, hidden) = (self.up.weights.k, self.up.weights.n, self.down.weights.k);
        if x.dims().last() != Some(&channels) || residual.dims() != x.dims() || doubled != 2 * hidden {
            bail!("a feed-forward of {channels} channels cannot take {:?} onto {:?}", x.dims(), residual.dims());
        }
        let mut y = vec![0.0; x.elem_count()];
        with_slices([x, residual], |[x, residual]| {
            let units = y.par_chunks_mut(ROWS * channels).enumerate();
            units.for_each_init(
                || (vec![0.0; ROWS * doubled], vec![0.0; ROWS * hidden]),
                |(both, gated), (unit, y)| {
                    let x = &x[unit * ROWS * channels..][..y.len()];
                    let residual = &residual[unit * ROWS * channels..][..y.len()];
                    let count = y.len() / channels;
                    let up = Epilogue { bias: self.up.bias.as_deref(), ..Epilogue::default() };
                    multiply(Rows::plain(x, channels, channels), count, self.up.weights.view(), up, both, doubled);
                    gate(&both[..count * doubled], hidden, gated);
                    let down =
                        Epilogue { bias: self.down.bias.as_deref(), residual: Some(residual), ..Epilogue::default() };
                    multiply(Rows::plain(gated, hidden, hidden), count, self.down.weights.view(), down, y, channels);
                },
            );
            Ok(())
        })?;
        tensor(y, x.dims())
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
