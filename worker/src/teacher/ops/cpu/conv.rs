use std::sync::{Arc, OnceLock};

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::product::{Epilogue, Packed, Rows, multiply};
use super::slices::{tensor, with_slices};

/// Output pixels that one thread computes at a time, at least: whole lines.
const PIXELS: usize = 256;

/// Rows (and columns) of zeros around a map.
#[derive(Debug, Clone, Copy)]
pub(in super::super::super) struct Padding {
    /// Above and to the left.
    pub(in super::super::super) before: usize,
    /// Below and to the right.
    pub(in super::super::super) after: usize,
}

/// A k×k convolution of maps that are channels last.
#[derive(Debug)]
pub(in super::super::super) struct Conv {
    kernel: usize,
    stride: usize,
    padding: Padding,
    input: usize,
    weights: Arc<Packed>,
    bias: Vec<f32>,
    /// The kernel turned by 180°, from outputs to inputs, from the first gradient on.
    turned: OnceLock<Arc<Packed>>,
}

/// What a convolution adds to its result.
#[derive(Clone, Copy, Default)]
pub(in super::super) struct Added<'a> {
    /// [B, output], to every pixel of a sample.
    pub(in super::super) shift: Option<&'a Tensor>,
    /// [B, H', W', output].
    pub(in super::super) residual: Option<&'a Tensor>,
    /// Divides the sum.
    pub(in super::super) divisor: Option<f32>,
}

impl Conv {
    /// From PyTorch's layout: `weight` [output, input, kernel, kernel], `bias` [output].
    pub(in super::super) fn new(
        (input, output): (usize, usize),
        kernel: usize,
        stride: usize,
        padding: Padding,
        weight: &[f32],
        bias: Vec<f32>,
    ) -> Self {
        // k runs over the kernel's rows, columns, then channels: the order in which a padded map has them.
        let weights = Packed::new(kernel * kernel * input, output, |k, n| {
            let (channel, column, row) = (k % input, k / input % kernel, k / input / kernel);
            weight[((n * input + channel) * kernel + row) * kernel + column]
        });
        Self { kernel, stride, padding, input, weights: Arc::new(weights), bias, turned: OnceLock::new() }
    }

    /// The gradient of x [B, H, W, input], which was resized to `size` before the convolution, from that of the result
    /// [B, H', W', output].
    pub(in super::super) fn input_gradient(
        &self,
        gradient: &Tensor,
        x: (usize, usize),
        size: (usize, usize),
    ) -> Result<Tensor> {
        let (kernel, output) = (self.kernel, self.weights.n);
        let turned = self.turned.get_or_init(|| {
            let of = |k: usize, n: usize| {
                let (channel, column, row) = (k % output, k / output % kernel, k / output / kernel);
                let tap = (kernel - 1 - row) * kernel + kernel - 1 - column;
                self.weights.get(tap * self.input + n, channel)
            };
            Arc::new(Packed::new(kernel * kernel * output, self.input, of))
        });
        let turned = Self {
            kernel,
            stride: 1,
            padding: Padding { before: 0, after: 0 },
            input: output,
            weights: turned.clone(),
            bias: vec![0.0; self.input],
            turned: OnceLock::new(),
        };
        // Where the result's pixels lie between those of the map that it was made of, within what the kernel reaches.
        let padded = (size.0 + kernel - 1, size.1 + kernel - 1);
        let spread = spread(gradient, kernel - 1 - self.padding.before, self.stride, padded)?;
        gather(&turned.forward(&spread, padded, Added::default())?, x)
    }

    /// x [B, H, W, input], first resized to `size` by nearest neighbours, → [B, H', W', output].
    pub(in super::super) fn forward(&self, x: &Tensor, (h, w): (usize, usize), added: Added<'_>) -> Result<Tensor> {
        let (batch, source_h, source_w, channels) = x.dims4()?;
        if channels != self.input {
            bail!("a convolution of {} channels cannot take {:?}", self.input, x.dims());
        }
        let (Some(out_h), Some(out_w)) = (self.side(h), self.side(w)) else {
            bail!("a {0}×{0} convolution has nothing left of a map of {h}×{w}", self.kernel);
        };
        let n = self.weights.n;
        let shape = [batch, out_h, out_w, n];
        if let Some(residual) = added.residual
            && residual.dims() != shape
        {
            bail!("a residual of {:?} cannot be added to {shape:?}", residual.dims());
        }
        if let Some(shift) = added.shift
            && shift.dims() != [batch, n]
        {
            bail!("a shift of {:?} cannot be added to {shape:?}", shift.dims());
        }

        // Where each row and column of the padded map comes from; `None` for the padding.
        let rows = self.sources(source_h, h);
        let columns = self.sources(source_w, w);
        let line = columns.len() * channels;
        // Within a row of the kernel, columns and channels lie next to each other.
        let taps: Vec<usize> = (0..self.kernel).map(|row| row * line).collect();
        let lines = PIXELS.div_ceil(out_w).min(out_h);
        let mut y = vec![0.0; shape.iter().product()];
        with_slices([x, added.residual.unwrap_or(x), added.shift.unwrap_or(x)], |[x, residual, shift]| {
            let units = y.par_chunks_mut(out_h * out_w * n).enumerate().flat_map(|(sample, y)| {
                y.par_chunks_mut(lines * out_w * n).enumerate().map(move |(unit, y)| (sample, unit * lines, y))
            });
            units.for_each_init(Vec::new, |padded, (sample, first, y)| {
                let x = &x[sample * source_h * source_w * channels..][..source_h * source_w * channels];
                let count = y.len() / n;
                let needed = (count / out_w - 1) * self.stride + self.kernel;
                let rows = &rows[first * self.stride..][..needed];
                pad(x, source_w * channels, channels, rows, &columns, padded);
                let epilogue = Epilogue {
                    bias: Some(&self.bias),
                    shift: added.shift.map(|_| &shift[sample * n..][..n]),
                    residual: added.residual.map(|_| &residual[(sample * out_h + first) * out_w * n..][..y.len()]),
                    divisor: added.divisor,
                };
                let product_rows = Rows {
                    elements: padded,
                    width: out_w,
                    line: self.stride * line,
                    pixel: self.stride * channels,
                    taps: &taps,
                    run: self.kernel * channels,
                };
                multiply(product_rows, count, self.weights.view(), epilogue, y, n);
            });
            Ok(())
        })?;
        tensor(y, &shape)
    }

    /// The side of the result, `None` where nothing is left.
    fn side(&self, side: usize) -> Option<usize> {
        let padded = side + self.padding.before + self.padding.after;
        Some(padded.checked_sub(self.kernel).filter(|_| side > 0)? / self.stride + 1)
    }

    fn sources(&self, source: usize, side: usize) -> Vec<Option<usize>> {
        let before = std::iter::repeat_n(None, self.padding.before);
        let inner = (0..side).map(|i| Some(nearest(i, source, side)));
        before.chain(inner).chain(std::iter::repeat_n(None, self.padding.after)).collect()
    }
}

/// A map [B, h, w, C] with its pixels `stride` apart, the first at (before, before), and zeros between and around them:
/// [B, `size`, C].
fn spread(x: &Tensor, before: usize, stride: usize, size: (usize, usize)) -> Result<Tensor> {
    let (batch, h, w, channels) = x.dims4()?;
    let (rows, columns) = size;
    let reaches = |side: usize, of: usize| before + side.saturating_sub(1) * stride < of.max(1);
    if !reaches(h, rows) || !reaches(w, columns) {
        bail!("the gradient of a map of {h}×{w} does not fit {rows}×{columns}");
    }
    let mut y = vec![0.0; batch * rows * columns * channels];
    with_slices([x], |[x]| {
        y.par_chunks_mut((columns * channels).max(1)).enumerate().for_each(|(line, y)| {
            let (sample, row) = (line / rows, line % rows);
            let Some(row) = row.checked_sub(before).filter(|row| row % stride == 0 && row / stride < h) else { return };
            let x = &x[(sample * h + row / stride) * w * channels..][..w * channels];
            let pixels = y[before * channels..].chunks_mut(stride * channels).zip(x.chunks_exact(channels));
            pixels.for_each(|(y, x)| y[..channels].copy_from_slice(x));
        });
        Ok(())
    })?;
    tensor(y, &[batch, rows, columns, channels])
}

/// The gradient of a map of `size` from that of the map [B, h, w, C] to which it was resized by nearest neighbours.
fn gather(gradient: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let (batch, h, w, channels) = gradient.dims4()?;
    if (h, w) == size {
        return Ok(gradient.clone());
    }
    let (rows, columns) = size;
    let len = rows * columns * channels;
    let mut y = vec![0.0; batch * len];
    with_slices([gradient], |[gradient]| {
        y.par_chunks_mut(len.max(1)).zip(gradient.par_chunks((h * w * channels).max(1))).for_each(|(y, gradient)| {
            for (pixel, gradient) in gradient.chunks_exact(channels).enumerate() {
                let (row, column) = (nearest(pixel / w, rows, h), nearest(pixel % w, columns, w));
                let y = &mut y[(row * columns + column) * channels..][..channels];
                y.iter_mut().zip(gradient).for_each(|(y, gradient)| *y += gradient);
            }
        });
        Ok(())
    })?;
    tensor(y, &[batch, rows, columns, channels])
}

/// PyTorch's nearest neighbour, which scales in f32.
fn nearest(i: usize, source: usize, side: usize) -> usize {
    if source == side {
        return i;
    }
    let scale = source as f32 / side as f32;
    ((i as f32 * scale) as usize).min(source.saturating_sub(1))
}

/// Gathers rows and columns of a map into `padded`, zeros where there is no source.
fn pad(
    x: &[f32],
    line: usize,
    channels: usize,
    rows: &[Option<usize>],
    columns: &[Option<usize>],
    padded: &mut Vec<f32>,
) {
    padded.clear();
    for row in rows {
        let Some(row) = row else {
            padded.resize(padded.len() + columns.len() * channels, 0.0);
            continue;
        };
        let row = &x[row * line..][..line];
        let mut rest = columns;
        while let Some((first, after)) = rest.split_first() {
            let Some(column) = first else {
                padded.resize(padded.len() + channels, 0.0);
                rest = after;
                continue;
            };
            // Neighbours that stay neighbours are copied at once.
            let run = 1 + after.iter().zip(column + 1..).take_while(|(next, i)| **next == Some(*i)).count();
            padded.extend_from_slice(&row[column * channels..][..run * channels]);
            rest = &rest[run..];
        }
    }
}
