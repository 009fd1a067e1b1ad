use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::super::gpu::Source;
use super::super::product::Type;
use super::super::weights::suffix;
use super::pointwise::Activation;
use super::queue::{Queue, blocks_over, expect, operand, positions, start, vectors};
use crate::error::{Error, Result};

/// Threads of a block of the layer norm, and the rows that it takes: for each warp `kRows` of `cuda/teacher/norms.cu`.
const NORM_THREADS: usize = 128;
const ROWS_OF_BLOCK: usize = NORM_THREADS / 32 * 4;

/// Group normalisation of maps that are channels last, and the activation after it.
#[derive(Debug)]
pub struct GroupNorm {
    queue: Arc<Queue>,
    groups: usize,
    eps: f32,
    channels: usize,
    /// f32 [C].
    weight: Tensor,
    bias: Tensor,
}

impl GroupNorm {
    /// `weight` and `bias` [C]; `groups` must divide C.
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(queue: &Arc<Queue>, groups: usize, eps: f64, weight: &[f32], bias: &[f32]) -> Result<Self> {
        let channels = weight.len();
        Ok(Self {
            weight: queue.parameters(weight, &[channels], DType::F32)?,
            bias: queue.parameters(bias, &[channels], DType::F32)?,
            queue: queue.clone(),
            groups,
            eps: eps as f32,
            channels,
        })
    }

    /// x [B, H, W, C] → activation(norm(x)), or activation(norm(x) · (1 + scale) + shift) with `scale_shift` [B, 2C], the
    /// scales first.
    ///
    /// # Errors
    /// Tensors of another shape or dtype, or not contiguous.
    pub fn forward(&self, x: &Tensor, scale_shift: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
        let channels = self.channels;
        let (view, kind) = operand(x, "x")?;
        let (batch, pixels) = positions(&view, "x", channels)?;
        let scale_shift = match scale_shift {
            Some(tensor) => expect(&operand(tensor, "scale_shift")?.0, "scale_shift", &[batch, 2 * channels], kind)?,
            None => 0,
        };
        let (y, y_at) = self.queue.empty(&view.dims, kind)?;
        let (ending, lanes) = vectors(kind, channels);

        // Sums over parts of the pixels, so many that they fill the device.
        let columns = channels / lanes;
        let threads = (columns.clamp(1, 32), 256 / columns.clamp(1, 32).next_power_of_two());
        let across = columns.div_ceil(threads.0);
        let wanted = (4 * self.queue.gpu.multiprocessors).div_ceil((across * batch).max(1));
        let per_part = pixels.div_ceil(wanted).max(threads.1).min(pixels.max(1));
        let count = pixels.div_ceil(per_part).max(1);
        // Both live until this returns; what is started reads them in the stream's order.
        let (_parts, parts_at) = self.queue.empty(&[batch, count, 2, channels], Type::F32)?;
        let (_affine, affine_at) = self.queue.empty(&[batch, 2, channels], Type::F32)?;
        let (weight, bias) = (operand(&self.weight, "weight")?.0.at, operand(&self.bias, "bias")?.0.at);
        let (c, n, per, groups) = (channels as i32, pixels as i64, per_part as i32, self.groups as i32);
        let (count_i, eps, total) = (count as i32, self.eps, (batch * pixels * columns) as i64);
        let activation = activation as i32;
        // SAFETY: the tensors have the sizes that the kernels are told.
        unsafe {
            let name = format!("group_sums_{ending}");
            let shared = threads.0 * threads.1 * 2 * lanes * 4;
            let blocks = (across, count, batch);
            start!(self.queue, (Source::Norms, &name), blocks, threads, shared, [view.at, parts_at, c, n, per])?;
            let name = format!("group_affine_{}", suffix(kind));
            let shared = channels / self.groups * 2 * 4;
            let blocks = (self.groups, batch, 1);
            start!(
                self.queue,
                (Source::Norms, &name),
                blocks,
                (128, 1),
                shared,
                [view.at, parts_at, weight, bias, scale_shift, affine_at, c, n, count_i, groups, eps]
            )?;
            let name = format!("group_apply_{ending}");
            let blocks = blocks_over(batch * pixels * columns);
            start!(
                self.queue,
                (Source::Norms, &name),
                blocks,
                (256, 1),
                0,
                [view.at, affine_at, y_at, c, n, total, activation]
            )?;
        }
        Ok(y)
    }
}

/// Layer normalisation over the last dimension.
#[derive(Debug)]
pub struct LayerNorm {
    queue: Arc<Queue>,
    eps: f32,
    channels: usize,
    /// f32 [C].
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    /// `weight` and `bias` [C].
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(queue: &Arc<Queue>, eps: f32, weight: &[f32], bias: &[f32]) -> Result<Self> {
        let channels = weight.len();
        Ok(Self {
            weight: queue.parameters(weight, &[channels], DType::F32)?,
            bias: queue.parameters(bias, &[channels], DType::F32)?,
            queue: queue.clone(),
            eps,
            channels,
        })
    }

    /// x [.., C] → the same shape.
    ///
    /// # Errors
    /// A tensor of other channels or another dtype, or not contiguous.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let factors = operand(&self.weight, "weight")?.0.at;
        let offsets = operand(&self.bias, "bias")?.0.at;
        normalise(&self.queue, x, self.channels, Affine { factors, offsets, of_sample: 0, add: 0.0 }, self.eps)
    }
}

/// One row of a table [B, n, C] f32: numbers for each channel of each sample.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The table.
    pub table: &'a Tensor,
    /// Which of its n rows.
    pub index: usize,
}

impl Row<'_> {
    /// Where the first sample's row lies, and the values from one sample's to the next.
    fn place(self, batch: usize, channels: usize) -> Result<(u64, i64)> {
        let (view, _) = operand(self.table, "table")?;
        match *view.dims {
            [b, rows, c] if b == batch && c == channels && self.index < rows => {
                let at = view.address(Type::F32)? + (self.index * channels * size_of::<f32>()) as u64;
                Ok((at, (rows * channels) as i64))
            }
            ref dims => {
                let expected = format!("[{batch}, more than {}, {channels}]", self.index);
                Err(Error::Tensor { what: "table", found: format!("{dims:?}"), expected })
            }
        }
    }
}

/// Layer normalisation over the last dimension without weights of its own, then x · (1 + scale) + shift:
/// x [B, .., C] → the same shape.
///
/// # Errors
/// Tensors of another shape or dtype, or not contiguous.
pub fn modulated_norm(queue: &Queue, x: &Tensor, eps: f32, scale: Row<'_>, shift: Row<'_>) -> Result<Tensor> {
    let batch = x.dims().first().copied().unwrap_or(0);
    let channels = x.dims().last().copied().unwrap_or(0);
    let (factors, of_sample) = scale.place(batch, channels)?;
    let (offsets, of_shift) = shift.place(batch, channels)?;
    if of_sample != of_shift {
        let (found, expected) = ("two tables".to_owned(), "scale and shift in one".to_owned());
        return Err(Error::Tensor { what: "table", found, expected });
    }
    normalise(queue, x, channels, Affine { factors, offsets, of_sample, add: 1.0 }, eps)
}

/// What a normalised row is multiplied by and what is added to it: (add + factors) and offsets, [C] from each sample's
/// `of_sample` values on.
struct Affine {
    factors: u64,
    offsets: u64,
    of_sample: i64,
    add: f32,
}

fn normalise(queue: &Queue, x: &Tensor, channels: usize, affine: Affine, eps: f32) -> Result<Tensor> {
    let Affine { factors, offsets, of_sample, add } = affine;
    let (view, kind) = operand(x, "x")?;
    let (batch, of_each) = positions(&view, "x", channels)?;
    let (y, y_at) = queue.empty(&view.dims, kind)?;
    let name = format!("layer_norm_{}", vectors(kind, channels).0);
    let (c, rows, rows_of_sample) = (channels as i32, (batch * of_each) as i64, of_each as i64);
    let blocks = ((batch * of_each).div_ceil(ROWS_OF_BLOCK).max(1), 1, 1);
    // SAFETY: x and y have so many rows, and the factors and offsets those of each sample.
    unsafe {
        start!(
            queue,
            (Source::Norms, &name),
            blocks,
            (NORM_THREADS, 1),
            0,
            [view.at, factors, offsets, y_at, c, rows, rows_of_sample, of_sample, add, eps]
        )?;
    }
    Ok(y)
}

/// residual + gate · x: both [B, .., C].
///
/// # Errors
/// Tensors of another shape or dtype, or not contiguous.
pub fn add_gated(queue: &Queue, residual: &Tensor, gate: Row<'_>, x: &Tensor) -> Result<Tensor> {
    let (view, kind) = operand(x, "x")?;
    let channels = view.dims.last().copied().unwrap_or(0);
    let (batch, of_each) = positions(&view, "x", channels)?;
    let residual = expect(&operand(residual, "residual")?.0, "residual", &view.dims, kind)?;
    let (gates, of_sample) = gate.place(batch, channels)?;
    let (y, y_at) = queue.empty(&view.dims, kind)?;
    let (suffix, lanes) = vectors(kind, channels);
    let name = format!("add_gated_{suffix}");
    let total = batch * of_each * channels / lanes;
    let (c, of_each, total_i) = (channels as i32, (of_each * channels / lanes) as i64, total as i64);
    // SAFETY: all three have so many vectors, and the gates those of each sample.
    unsafe {
        start!(
            queue,
            (Source::Norms, &name),
            blocks_over(total),
            (256, 1),
            0,
            [residual, gates, view.at, y_at, c, of_each, of_sample, total_i]
        )?;
    }
    Ok(y)
}
