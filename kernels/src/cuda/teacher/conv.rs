use std::sync::Arc;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::super::gpu::{Address, Source};
use super::super::product::{Epilogue, Type};
use super::super::weights::suffix;
use super::queue::{Multiplication, Queue, blocks_over, expect, operand, start};
use crate::error::{Error, Result};

/// Bytes of gathered rows that one product takes, at most.
const GATHERED: usize = 512 << 20;
/// Output pixels whose rows are gathered together, at least.
const PIXELS: usize = 1024;

/// What a convolution is, beside its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Channels that it takes.
    pub input: usize,
    /// Channels that it gives.
    pub output: usize,
    /// Rows and columns of the kernel.
    pub kernel: usize,
    /// From one output pixel to the next.
    pub stride: usize,
    /// Rows and columns of zeros above and to the left.
    pub before: usize,
    /// Rows and columns of zeros below and to the right.
    pub after: usize,
}

/// A convolution of maps that are channels last: the rows under its kernel are gathered, and multiplied by its weights.
#[derive(Debug)]
pub struct Conv {
    queue: Arc<Queue>,
    shape: ConvShape,
    /// Values of a gathered row: those under the kernel, and zeros up to a multiple of 16 bytes.
    pitch: usize,
    /// [output, pitch].
    weight: Tensor,
    /// [output].
    bias: Tensor,
}

/// What a convolution adds to its result.
#[derive(Debug, Clone, Copy, Default)]
pub struct Added<'a> {
    /// [B, output], to every pixel of a sample.
    pub shift: Option<&'a Tensor>,
    /// [B, H', W', output].
    pub residual: Option<&'a Tensor>,
}

/// Mirrors that of `cuda/teacher/convolution.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Convolution {
    height: i32,
    width: i32,
    channels: i32,
    full_height: i32,
    full_width: i32,
    out_height: i32,
    out_width: i32,
    kernel: i32,
    stride: i32,
    before: i32,
    pitch: i32,
    padding: i32,
}

const _: () = assert!(size_of::<Convolution>() == 48, "cuda/teacher/convolution.cuh says the same");

/// Mirrors `Gather` of `cuda/teacher/gather.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Gather {
    x: Address,
    rows: Address,
    first: i64,
    count: i64,
    of: Convolution,
}

const _: () = assert!(size_of::<Gather>() == 80, "cuda/teacher/gather.cu says the same");

/// Mirrors `Scatter` of `cuda/teacher/gradients.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Scatter {
    rows: Address,
    x: Address,
    samples: i64,
    of: Convolution,
}

const _: () = assert!(size_of::<Scatter>() == 72, "cuda/teacher/gradients.cu says the same");

impl Conv {
    /// From PyTorch's layout: `weight` [output, input, kernel, kernel], `bias` [output]; held in `dtype`, which is that of
    /// its tensors.
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(queue: &Arc<Queue>, dtype: DType, shape: ConvShape, weight: &[f32], bias: &[f32]) -> Result<Self> {
        let ConvShape { input, output, kernel, .. } = shape;
        let taps = kernel * kernel;
        let pitch = (taps * input).next_multiple_of(16 / dtype.size_in_bytes());
        // A row runs over the kernel's rows, columns, then channels.
        let mut packed = vec![0.0; output * pitch];
        packed.par_chunks_mut(pitch).zip(weight.par_chunks(taps * input)).for_each(|(packed, weight)| {
            for (channel, weight) in weight.chunks_exact(taps).enumerate() {
                for (tap, value) in weight.iter().enumerate() {
                    packed[tap * input + channel] = *value;
                }
            }
        });
        Ok(Self {
            weight: queue.parameters(&packed, &[output, pitch], dtype)?,
            bias: queue.parameters(bias, &[output], dtype)?,
            queue: queue.clone(),
            shape,
            pitch,
        })
    }

    /// x [B, H, W, input], first resized to `size` by nearest neighbours as PyTorch's `interpolate` does, →
    /// [B, H', W', output].
    ///
    /// # Errors
    /// Tensors of another shape or dtype, or not contiguous; a map of which nothing is left.
    pub fn forward(&self, x: &Tensor, size: (usize, usize), added: Added<'_>) -> Result<Tensor> {
        let ConvShape { input, output, .. } = self.shape;
        let (view, kind) = operand(x, "x")?;
        let [batch, height, width] = view.size(input)?;
        let (Some(out_height), Some(out_width)) = (self.side(size.0), self.side(size.1)) else {
            return Err(Error::MapTooSmall { height: size.0, width: size.1, scale: 1.0 });
        };
        let dims = [batch, out_height, out_width, output];
        let (y, y_at) = self.queue.empty(&dims, kind)?;
        let residual = added.residual.map(|residual| operand(residual, "residual")).transpose()?;
        let residual = residual.map(|(view, _)| expect(&view, "residual", &dims, kind)).transpose()?;
        // A bias for each sample where a shift is added.
        let shifted = added.shift.map(|shift| self.shifted(shift, batch, kind)).transpose()?;
        let bias = operand(shifted.as_ref().unwrap_or(&self.bias), "bias")?.0.address(kind)?;

        let pixels = out_height * out_width;
        let row = self.pitch * kind.bytes();
        // Whole samples, or parts of one where it is large.
        let whole = (GATHERED / (pixels * row).max(1)).clamp(1, batch.max(1));
        let part = (GATHERED / row).clamp(PIXELS.min(pixels), pixels.max(1));
        let (_rows, rows_at) = self.queue.empty(&[whole * part * self.pitch], kind)?;
        let mut gather = Gather {
            x: view.at,
            rows: rows_at,
            first: 0,
            count: 0,
            of: self.convolution((height, width), size, (out_height, out_width)),
        };
        let weight = operand(&self.weight, "weight")?.0.address(kind)?;
        for sample in (0..batch).step_by(whole) {
            let samples = whole.min(batch - sample);
            for first in (0..pixels).step_by(part) {
                let count = part.min(pixels - first);
                (gather.first, gather.count) = ((sample * pixels + first) as i64, (samples * count) as i64);
                self.gather(&gather, kind)?;
                let offset = ((sample * pixels + first) * output * kind.bytes()) as u64;
                let (batch, rows) = if shifted.is_some() { (samples, count) } else { (1, samples * count) };
                let of_samples = if shifted.is_some() { (sample * output * kind.bytes()) as u64 } else { 0 };
                let multiplication = Multiplication {
                    kind,
                    batch,
                    rows,
                    input: self.pitch,
                    output,
                    epilogue: Epilogue::Bias,
                    back: false,
                    x: gather.rows,
                    weight,
                    bias: bias + of_samples,
                    residual: residual.map(|residual| residual + offset),
                    y: y_at + offset,
                };
                // SAFETY: the rows were gathered for so many pixels, and the other tensors have all of them.
                unsafe { self.queue.multiply(&multiplication)? };
            }
        }
        Ok(y)
    }

    /// The gradient of x [B, height, width, input], which was resized to `size` before the convolution, from that of the
    /// result [B, H', W', output].
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn input_gradient(
        &self,
        gradient: &Tensor,
        (height, width): (usize, usize),
        size: (usize, usize),
    ) -> Result<Tensor> {
        let ConvShape { input, output, .. } = self.shape;
        let (view, kind) = operand(gradient, "gradient")?;
        let [batch, out_height, out_width] = view.size(output)?;
        if self.side(size.0) != Some(out_height) || self.side(size.1) != Some(out_width) {
            let found = format!("{:?}", view.dims);
            let expected = format!("what a map of {}×{} gives", size.0, size.1);
            return Err(Error::Tensor { what: "gradient", found, expected });
        }
        let (x, x_at) = self.queue.empty(&[batch, height, width, input], kind)?;
        let pixels = out_height * out_width;
        let samples = (GATHERED / (pixels * self.pitch * kind.bytes()).max(1)).clamp(1, batch.max(1));
        let (_rows, rows_at) = self.queue.empty(&[samples * pixels * self.pitch], kind)?;
        let weight = operand(&self.weight, "weight")?.0.address(kind)?;
        let lanes = 16 / kind.bytes();
        // Rows are so many vectors long that a pixel's channels may end within one.
        let (ending, lanes) = match input.is_multiple_of(lanes) {
            true => ("", lanes),
            false => ("_single", 1),
        };
        let name = format!("scatter_{}{ending}", suffix(kind));
        let of = self.convolution((height, width), size, (out_height, out_width));
        for first in (0..batch).step_by(samples) {
            let samples = samples.min(batch - first);
            let offset = |values: usize| (first * values * kind.bytes()) as u64;
            let multiplication = Multiplication {
                kind,
                batch: 1,
                rows: samples * pixels,
                input: output,
                output: self.pitch,
                epilogue: Epilogue::None,
                back: true,
                x: view.at + offset(pixels * output),
                weight,
                bias: 0,
                residual: None,
                y: rows_at,
            };
            let scatter =
                Scatter { rows: rows_at, x: x_at + offset(height * width * input), samples: samples as i64, of };
            let blocks = blocks_over(samples * height * width * input / lanes);
            // SAFETY: there is room for as many rows as are multiplied, and x has the map's pixels.
            unsafe {
                self.queue.multiply(&multiplication)?;
                start!(self.queue, (Source::Gradients, &name), blocks, (256, 1), 0, [scatter])?;
            }
        }
        Ok(x)
    }

    /// Of maps of these heights and widths: what goes in, that resized, and what comes out.
    fn convolution(&self, map: (usize, usize), full: (usize, usize), out: (usize, usize)) -> Convolution {
        Convolution {
            height: map.0 as i32,
            width: map.1 as i32,
            channels: self.shape.input as i32,
            full_height: full.0 as i32,
            full_width: full.1 as i32,
            out_height: out.0 as i32,
            out_width: out.1 as i32,
            kernel: self.shape.kernel as i32,
            stride: self.shape.stride as i32,
            before: self.shape.before as i32,
            pitch: self.pitch as i32,
            padding: 0,
        }
    }

    /// The side of the result, `None` where nothing is left.
    fn side(&self, side: usize) -> Option<usize> {
        let padded = side + self.shape.before + self.shape.after;
        Some(padded.checked_sub(self.shape.kernel).filter(|_| side > 0)? / self.shape.stride + 1)
    }

    /// bias + shift, [B, output].
    fn shifted(&self, shift: &Tensor, batch: usize, kind: Type) -> Result<Tensor> {
        let output = self.shape.output;
        let shift = expect(&operand(shift, "shift")?.0, "shift", &[batch, output], kind)?;
        let bias = operand(&self.bias, "bias")?.0.address(kind)?;
        let (sum, at) = self.queue.empty(&[batch, output], kind)?;
        let name = format!("add_bias_{}", suffix(kind));
        let (channels, total) = (output as i32, (batch * output) as i32);
        let blocks = blocks_over(batch * output);
        // SAFETY: the tensors have [B, output] and [output] values.
        unsafe {
            start!(self.queue, (Source::Norms, &name), blocks, (256, 1), 0, [shift, bias, at, channels, total])?;
        }
        Ok(sum)
    }

    fn gather(&self, gather: &Gather, kind: Type) -> Result<()> {
        // The widest vector that a pixel's channels are made of.
        let (name, bytes) = match self.shape.input * kind.bytes() {
            bytes if bytes.is_multiple_of(16) => ("gather_16", 16),
            bytes if bytes.is_multiple_of(4) => ("gather_4", 4),
            _ => ("gather_2", 2),
        };
        let lanes = (bytes / kind.bytes()) as i32;
        let threads = if self.pitch * kind.bytes() / bytes > 32 { (128, 2) } else { (32, 8) };
        let blocks = ((gather.count as usize).div_ceil(threads.1).clamp(1, 1 << 20), 1, 1);
        // SAFETY: x has the map's pixels, and there is room for as many rows as are gathered.
        unsafe { start!(self.queue, (Source::Gather, name), blocks, threads, 0, [*gather, lanes]) }
    }
}
