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
pub(in super::super::super) struct LayerNorm {
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

impl LayerNorm {
    /// The gradient of x from that of the result, both [.., C].
    pub(in super::super) fn input_gradient(&self, x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let channels = self.weight.len();
        if gradient.dims() != x.dims() || x.dims().last() != Some(&channels) {
            bail!("a gradient of {:?} is none of a layer norm of {:?}", gradient.dims(), x.dims());
        }
        let mut back = vec![0.0; x.elem_count()];
        with_slices([x, gradient], |[x, gradient]| {
            let unit = ROWS * channels;
            let units = back.par_chunks_mut(unit).zip(x.par_chunks(unit)).zip(gradient.par_chunks(unit));
            units.for_each(|((back, x), gradient)| normalise_gradient(x, &self.weight, self.eps, gradient, back));
            Ok(())
        })?;
        tensor(back, x.dims())
    }
}

/// The gradient of x from that of [`modulated_norm`], both [B, .., C]; scale [B, C].
pub(in super::super) fn modulated_norm_gradient(
    x: &Tensor,
    eps: f32,
    scale: &[f32],
    gradient: &Tensor,
) -> Result<Tensor> {
    let (batch, channels) = match x.dims() {
        [batch, .., channels] if batch * channels == scale.len() && gradient.dims() == x.dims() => (*batch, *channels),
        other => bail!("a gradient of {:?} is none of a modulated norm of {other:?}", gradient.dims()),
    };
    let factors: Vec<f32> = scale.iter().map(|scale| 1.0 + scale).collect();
    let mut back = vec![0.0; x.elem_count()];
    let sample = (back.len() / batch.max(1)).max(1);
    with_slices([x, gradient], |[x, gradient]| {
        let samples = back.par_chunks_mut(sample).zip(x.par_chunks(sample)).zip(gradient.par_chunks(sample));
        samples.zip(factors.par_chunks(channels.max(1))).for_each(|(((back, x), gradient), factors)| {
            normalise_gradient(x, factors, eps, gradient, back);
        });
        Ok(())
    })?;
    tensor(back, x.dims())
}

/// Layer normalisation over the last dimension without weights of its own, then x · (1 + scale) + shift with a scale and
/// a shift for each sample: x [B, .., C]; scale and shift [B, C].
pub(in super::super) fn modulated_norm(x: &Tensor, eps: f32, scale: &[f32], shift: &[f32]) -> Result<Tensor> {
    let (batch, channels) = match x.dims() {
        [batch, .., channels] if batch * channels == scale.len() && scale.len() == shift.len() => (*batch, *channels),
        other => bail!("a norm modulated by {} scales and {} shifts cannot take {other:?}", scale.len(), shift.len()),
    };
    let factors: Vec<f32> = scale.iter().map(|scale| 1.0 + scale).collect();
    let mut y = vec![0.0; x.elem_count()];
    let sample_len = y.len() / batch.max(1);
    with_slices([x], |[x]| {
        let samples = y.par_chunks_mut(sample_len.max(1)).zip(x.par_chunks(sample_len.max(1))).enumerate();
        samples.for_each(|(sample, (y, x))| {
            let own = sample * channels..(sample + 1) * channels;
            y.par_chunks_mut(ROWS * channels).zip(x.par_chunks(ROWS * channels)).for_each(|(y, x)| {
                normalise(x, &factors[own.clone()], &shift[own.clone()], eps, y);
            });
        });
        Ok(())
    })?;
    tensor(y, x.dims())
}

/// residual + gate · x, with a gate for each sample: residual and x [B, .., C], gate [B, C].
pub(in super::super) fn add_gated(residual: &Tensor, gate: &[f32], x: &Tensor) -> Result<Tensor> {
    let (batch, channels) = match x.dims() {
        [batch, .., channels] if batch * channels == gate.len() && residual.dims() == x.dims() => (*batch, *channels),
        other => bail!("{} gates cannot be applied to {other:?} onto {:?}", gate.len(), residual.dims()),
    };
    let mut y = vec![0.0; x.elem_count()];
    let sample_len = y.len() / batch.max(1);
    with_slices([residual, x], |[residual, x]| {
        let rows = y.par_chunks_mut(channels.max(1)).enumerate();
        rows.for_each(|(row, y)| {
            let at = row * channels;
            let gate = &gate[at / sample_len * channels..][..channels];
            let both = residual[at..].iter().zip(&x[at..]);
            for ((y, gate), (residual, x)) in y.iter_mut().zip(gate).zip(both) {
                *y = gate.mul_add(*x, *residual);
            }
        });
        Ok(())
    })?;
    tensor(y, x.dims())
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

for_each_level! {
    /// With x̂ = (x − mean) / σ and the gradient g of x̂ · weight + bias: (g·w − mean(g·w) − x̂ · mean(g·w·x̂)) / σ.
    fn normalise_gradient(x: &[f32], weight: &[f32], eps: f32, gradient: &[f32], back: &mut [f32]) {
        let channels = weight.len();
        let n = channels as f32;
        let rows = x.chunks_exact(channels).zip(gradient.chunks_exact(channels));
        for ((x, gradient), back) in rows.zip(back.chunks_exact_mut(channels)) {
            let mean = sum(x, |sum, x| sum + x) / n;
            let variance = sum(x, |sum, x| (x - mean).mul_add(x - mean, sum)) / n;
            let inverse = 1.0 / (variance + eps).sqrt();
            for ((back, gradient), weight) in back.iter_mut().zip(gradient).zip(weight) {
                *back = gradient * weight;
            }
            let shared = sum(back, |sum, g| sum + g) / n;
            let (mut along, mut rest) = ([0.0_f32; LANES], 0.0);
            let ((gs, g_rest), (xs, x_rest)) = (back.as_chunks::<LANES>(), x.as_chunks::<LANES>());
            for (g, x) in gs.iter().zip(xs) {
                for (along, (g, x)) in along.iter_mut().zip(g.iter().zip(x)) {
                    *along = g.mul_add((x - mean) * inverse, *along);
                }
            }
            for (g, x) in g_rest.iter().zip(x_rest) {
                rest = g.mul_add((x - mean) * inverse, rest);
            }
            let along = (along.iter().sum::<f32>() + rest) / n;
            for (back, x) in back.iter_mut().zip(x) {
                *back = (*back - shared - (x - mean) * inverse * along) * inverse;
            }
        }
    }
}
