use candle_core::{Result, Tensor, bail};
use deltaconv_proto::teacher::Activation;
use rayon::prelude::*;

use super::activation::{activate_slice, activation_gradient};
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

    /// The gradient of x [B, H, W, C] from that of [`Self::forward`] or, with `scale_shift`, of [`Self::forward_modulated`].
    pub(in super::super) fn input_gradient(
        &self,
        x: &Tensor,
        scale_shift: Option<&Tensor>,
        activation: Option<Activation>,
        gradient: &Tensor,
    ) -> Result<Tensor> {
        let (_, h, w, channels) = x.dims4()?;
        if gradient.dims() != x.dims() || channels != self.weight.len() {
            bail!("a gradient of {:?} is none of a group norm of {:?}", gradient.dims(), x.dims());
        }
        let normalised = self.apply(x, scale_shift, None)?;
        let mut back = vec![0.0; x.elem_count()];
        with_slices(
            [x, &normalised, gradient, scale_shift.unwrap_or(x)],
            |[x, normalised, gradient, scale_shift_elements]| {
                let len = h * w * channels;
                back.par_chunks_mut(len.max(1)).enumerate().for_each(|(sample, back)| {
                    let own = sample * len..(sample + 1) * len;
                    let x = &x[own.clone()];
                    back.copy_from_slice(&gradient[own.clone()]);
                    if let Some(activation) = activation {
                        activation_gradient(activation, &normalised[own], back);
                    }
                    let mut weight = self.weight.clone();
                    if scale_shift.is_some() {
                        let scales = &scale_shift_elements[sample * 2 * channels..][..channels];
                        weight.iter_mut().zip(scales).for_each(|(weight, scale)| *weight *= 1.0 + scale);
                    }
                    let (mean, deviation) = self.statistics(x);
                    let mean: Vec<f32> = mean.iter().map(|mean| *mean as f32).collect();
                    let inverse: Vec<f32> = deviation.iter().map(|deviation| (1.0 / deviation) as f32).collect();
                    let (mut shared, mut along) = (vec![0.0; channels], vec![0.0; channels]);
                    sum_gradients(x, (&mean, &inverse), &weight, back, (&mut shared, &mut along));
                    let [shared, along] = [shared, along].map(|sums| self.by_group(&sums, x.len()));
                    centre_gradients(x, (&mean, &inverse), &weight, (&shared, &along), back);
                });
                Ok(())
            },
        )?;
        tensor(back, x.dims())
    }

    /// By channel, a group's sums over the values of the group in one sample of `len` values.
    fn by_group(&self, sums: &[f64], len: usize) -> Vec<f64> {
        let (width, count) = (sums.len() / self.groups, (len / self.groups) as f64);
        sums.chunks(width).flat_map(|sums| std::iter::repeat_n(sums.iter().sum::<f64>() / count, width)).collect()
    }

    /// Of one sample [H·W, C], by channel: its group's mean and standard deviation.
    fn statistics(&self, x: &[f32]) -> (Vec<f64>, Vec<f64>) {
        let mut sums = vec![0.0; self.weight.len()];
        sum_channels(x, &mut sums);
        let mean = self.by_group(&sums, x.len());
        let centre: Vec<f32> = mean.iter().map(|mean| *mean as f32).collect();
        sums.fill(0.0);
        sum_squares(x, &centre, &mut sums);
        let variance = self.by_group(&sums, x.len());
        (mean, variance.into_iter().map(|variance| (variance + self.eps).sqrt()).collect())
    }

    /// The normalisation of one sample [H·W, C] as y = x · scale + shift, both [C].
    fn affine(&self, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (mean, deviation) = self.statistics(x);
        (0..self.weight.len())
            .map(|c| {
                let scale = f64::from(self.weight[c]) / deviation[c];
                (scale as f32, (f64::from(self.bias[c]) - mean[c] * scale) as f32)
            })
            .unzip()
    }
}

for_each_level! {
    /// Adds, of every channel, the sums over the pixels of g·w and of g·w·x̂ to `sums`, with the gradient g of x̂ · w + b.
    fn sum_gradients(
        x: &[f32],
        statistics: (&[f32], &[f32]),
        weight: &[f32],
        gradient: &[f32],
        sums: (&mut [f64], &mut [f64]),
    ) {
        let ((mean, inverse), (shared, along)) = (statistics, sums);
        let channels = weight.len();
        let (mut part, mut part_along) = (vec![0.0_f32; channels], vec![0.0_f32; channels]);
        for (x, gradient) in x.chunks(PIXELS * channels).zip(gradient.chunks(PIXELS * channels)) {
            part.fill(0.0);
            part_along.fill(0.0);
            for (x, gradient) in x.chunks_exact(channels).zip(gradient.chunks_exact(channels)) {
                for c in 0..channels {
                    let g = gradient[c] * weight[c];
                    part[c] += g;
                    part_along[c] = g.mul_add((x[c] - mean[c]) * inverse[c], part_along[c]);
                }
            }
            for c in 0..channels {
                shared[c] += f64::from(part[c]);
                along[c] += f64::from(part_along[c]);
            }
        }
    }
}

for_each_level! {
    /// Turns the gradient g of x̂ · w + b into that of x: (g·w − mean(g·w) − x̂ · mean(g·w·x̂)) / σ.
    fn centre_gradients(
        x: &[f32],
        statistics: (&[f32], &[f32]),
        weight: &[f32],
        means: (&[f64], &[f64]),
        gradient: &mut [f32],
    ) {
        let ((mean, inverse), (shared, along)) = (statistics, means);
        let channels = weight.len();
        for (x, gradient) in x.chunks_exact(channels).zip(gradient.chunks_exact_mut(channels)) {
            for c in 0..channels {
                let normalised = (x[c] - mean[c]) * inverse[c];
                gradient[c] = (gradient[c] * weight[c] - shared[c] as f32 - normalised * along[c] as f32) * inverse[c];
            }
        }
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
