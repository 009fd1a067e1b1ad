use candle_core::{Result, Tensor, bail};
use deltaconv_proto::teacher::Activation;
use rayon::prelude::*;

use super::activation::activate_slice;
use super::simd::for_each_level;
use super::slices::{tensor, with_slices};

/// Pixels whose sum is kept in f32 before it goes to f64.
const PIXELS: usize = 32;

/// Group normalisation of maps that are channels last, and the activation after it.
#[derive(Debug)]
pub(in super::super::super) struct GroupNorm {
    groups: usize,
    eps: f64,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl GroupNorm {
    /// `weight` and `bias` [C]; `groups` must divide C.
    pub(in super::super) fn new(groups: usize, eps: f64, weight: Vec<f32>, bias: Vec<f32>) -> Self {
        Self { groups, eps, weight, bias }
    }

    /// x [B, H, W, C] → the same shape.
    pub(in super::super) fn forward(&self, x: &Tensor, activation: Option<Activation>) -> Result<Tensor> {
        self.apply(x, None, activation)
    }

    /// norm(x) · (1 + scale) + shift, then the activation; `scale_shift` [B, 2C] has the scales first.
    pub(in super::super) fn forward_modulated(
        &self,
        x: &Tensor,
        scale_shift: &Tensor,
        activation: Activation,
    ) -> Result<Tensor> {
        self.apply(x, Some(scale_shift), Some(activation))
    }

    fn apply(&self, x: &Tensor, scale_shift: Option<&Tensor>, activation: Option<Activation>) -> Result<Tensor> {
        let (batch, h, w, channels) = x.dims4()?;
        if channels != self.weight.len() {
            bail!("a group norm of {} channels cannot take {:?}", self.weight.len(), x.dims());
        }
        if let Some(scale_shift) = scale_shift
            && scale_shift.dims() != [batch, 2 * channels]
        {
            bail!("scales and shifts of {:?} do not fit {:?}", scale_shift.dims(), x.dims());
        }
        let mut y = vec![0.0; x.elem_count()];
        with_slices([x, scale_shift.unwrap_or(x)], |[x, scale_shift_elements]| {
            let len = h * w * channels;
            y.par_chunks_mut(len.max(1)).enumerate().for_each(|(sample, y)| {
                let x = &x[sample * len..][..len];
                let (mut scale, mut shift) = self.affine(x);
                if scale_shift.is_some() {
                    let (scales, shifts) =
                        scale_shift_elements[sample * 2 * channels..][..2 * channels].split_at(channels);
                    for c in 0..channels {
                        scale[c] *= 1.0 + scales[c];
                        shift[c] = shift[c].mul_add(1.0 + scales[c], shifts[c]);
                    }
                }
                scale_and_shift(x, &scale, &shift, y);
                if let Some(activation) = activation {
                    activate_slice(activation, y);
                }
            });
            Ok(())
        })?;
        tensor(y, x.dims())
    }

    /// The normalisation of one sample [H·W, C] as y = x · scale + shift, both [C].
    fn affine(&self, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let channels = self.weight.len();
        let width = channels / self.groups;
        let count = (x.len() / self.groups) as f64;
        let by_group = |sums: &[f64]| -> Vec<f64> {
            sums.chunks(width).flat_map(|sums| std::iter::repeat_n(sums.iter().sum::<f64>() / count, width)).collect()
        };
        let mut sums = vec![0.0; channels];
        sum_channels(x, &mut sums);
        let mean = by_group(&sums);
        let centre: Vec<f32> = mean.iter().map(|mean| *mean as f32).collect();
        sums.fill(0.0);
        sum_squares(x, &centre, &mut sums);
        let variance = by_group(&sums);
        (0..channels)
            .map(|c| {
                let scale = f64::from(self.weight[c]) / (variance[c] + self.eps).sqrt();
                (scale as f32, (f64::from(self.bias[c]) - mean[c] * scale) as f32)
            })
            .unzip()
    }
}

for_each_level! {
    /// Adds every channel's sum over the pixels of `x` [pixels, C] to `sums` [C].
    fn sum_channels(x: &[f32], sums: &mut [f64]) {
        let channels = sums.len();
        let mut part = vec![0.0_f32; channels];
        for pixels in x.chunks(PIXELS * channels) {
            part.fill(0.0);
            for pixel in pixels.chunks_exact(channels) {
                for (part, x) in part.iter_mut().zip(pixel) {
                    *part += x;
                }
            }
            for (sum, part) in sums.iter_mut().zip(&part) {
                *sum += f64::from(*part);
            }
        }
    }
}

for_each_level! {
    /// Adds every channel's sum of (x − centre)² over the pixels of `x` [pixels, C] to `sums` [C].
    fn sum_squares(x: &[f32], centre: &[f32], sums: &mut [f64]) {
        let channels = sums.len();
        let mut part = vec![0.0_f32; channels];
        for pixels in x.chunks(PIXELS * channels) {
            part.fill(0.0);
            for pixel in pixels.chunks_exact(channels) {
                for ((part, x), centre) in part.iter_mut().zip(pixel).zip(centre) {
                    let d = x - centre;
                    *part = d.mul_add(d, *part);
                }
            }
            for (sum, part) in sums.iter_mut().zip(&part) {
                *sum += f64::from(*part);
            }
        }
    }
}

for_each_level! {
    fn scale_and_shift(x: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) {
        let channels = scale.len();
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
            for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                *y = x.mul_add(*scale, *shift);
            }
        }
    }
}
