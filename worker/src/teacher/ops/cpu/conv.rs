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
    weights: Packed,
    bias: Vec<f32>,
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
        Self { kernel, stride, padding, input, weights, bias }
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
