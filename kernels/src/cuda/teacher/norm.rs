use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::super::gpu::Source;
use super::super::product::Type;
use super::super::tensor::View;
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
        let (view, kind) = operand(x, "x")?;
        let of = self.read(&view, kind, scale_shift)?;
        let (y, y_at) = self.queue.empty(&view.dims, kind)?;
        let Read { grid, affine, .. } = &of;
        let affine_at = operand(affine, "affine")?.0.at;
        let (c, n) = (self.channels as i32, grid.pixels as i64);
        let (total, activation) = (grid.vectors() as i64, activation as i32);
        let name = format!("group_apply_{}", grid.ending);
        let blocks = blocks_over(grid.vectors());
        // SAFETY: x and y have so many vectors, and the factors those of each sample.
        unsafe {
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

    /// The gradient of x from that of what [`Self::forward`] makes of it, all three [B, H, W, C].
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn input_gradient(
        &self,
        x: &Tensor,
        scale_shift: Option<&Tensor>,
        activation: Activation,
        gradient: &Tensor,
    ) -> Result<Tensor> {
        let (view, kind) = operand(x, "x")?;
        let gradient = expect(&operand(gradient, "gradient")?.0, "gradient", &view.dims, kind)?;
        let of = self.read(&view, kind, scale_shift)?;
        let (out, out_at) = self.queue.empty(&view.dims, kind)?;
        let Read { grid, affine, statistics } = &of;
        let (affine, statistics) = (operand(affine, "affine")?.0.at, operand(statistics, "statistics")?.0.at);
        let (_parts, parts) = self.queue.empty(&[grid.batch, grid.count, 2, self.channels], Type::F32)?;
        let (_means, means) = self.queue.empty(&[grid.batch, self.groups, 2], Type::F32)?;
        let (c, n, per, count) = (self.channels as i32, grid.pixels as i64, grid.per_part as i32, grid.count as i32);
        let (groups, total, activation) = (self.groups as i32, grid.vectors() as i64, activation as i32);
        // SAFETY: the tensors have the sizes that the kernels are told.
        unsafe {
            let name = format!("group_back_sums_{}", grid.ending);
            start!(
                self.queue,
                (Source::Gradients, &name),
                grid.blocks,
                grid.threads,
                grid.shared(),
                [view.at, gradient, affine, statistics, parts, c, n, per, groups, activation]
            )?;
            start!(
                self.queue,
                (Source::Gradients, "group_back_means"),
                (self.groups, grid.batch, 1),
                (128, 1),
                0,
                [parts, affine, means, c, n, count, groups]
            )?;
            let name = format!("group_back_{}", grid.ending);
            let blocks = blocks_over(grid.vectors());
            start!(
                self.queue,
                (Source::Gradients, &name),
                blocks,
                (256, 1),
                0,
                [view.at, gradient, affine, statistics, means, out_at, c, n, total, groups, activation]
            )?;
        }
        Ok(out)
    }

    /// Takes the statistics of x.
    fn read(&self, view: &View, kind: Type, scale_shift: Option<&Tensor>) -> Result<Read> {
        let channels = self.channels;
        let (batch, pixels) = positions(view, "x", channels)?;
        let scale_shift = match scale_shift {
            Some(tensor) => expect(&operand(tensor, "scale_shift")?.0, "scale_shift", &[batch, 2 * channels], kind)?,
            None => 0,
        };
        let grid = GroupGrid::new(&self.queue, kind, [batch, pixels, channels]);
        // Lives until this returns; what is started reads it in the stream's order.
        let (_parts, parts) = self.queue.empty(&[batch, grid.count, 2, channels], Type::F32)?;
        let (affine, affine_at) = self.queue.empty(&[batch, 2, channels], Type::F32)?;
        let (statistics, statistics_at) = self.queue.empty(&[batch, self.groups, 2], Type::F32)?;
        let (weight, bias) = (operand(&self.weight, "weight")?.0.at, operand(&self.bias, "bias")?.0.at);
        let (c, n, per, groups) = (channels as i32, pixels as i64, grid.per_part as i32, self.groups as i32);
        let (count, eps) = (grid.count as i32, self.eps);
        // SAFETY: the tensors have the sizes that the kernels are told.
        unsafe {
            let name = format!("group_sums_{}", grid.ending);
            let (blocks, threads) = (grid.blocks, grid.threads);
            start!(self.queue, (Source::Norms, &name), blocks, threads, grid.shared(), [view.at, parts, c, n, per])?;
            let name = format!("group_affine_{}", suffix(kind));
            let shared = channels / self.groups * 2 * 4;
            let blocks = (self.groups, batch, 1);
            start!(
                self.queue,
                (Source::Norms, &name),
                blocks,
                (128, 1),
                shared,
                [view.at, parts, weight, bias, scale_shift, affine_at, statistics_at, c, n, count, groups, eps]
            )?;
        }
        Ok(Read { grid, affine, statistics })
    }
}

/// How a batch's group statistics are taken: as sums over parts of the pixels, so many that they fill the device.
struct GroupGrid {
    batch: usize,
    pixels: usize,
    /// Of the kernels' names, and the values of one of their vectors.
    ending: String,
    lanes: usize,
    /// Vectors of a pixel.
    columns: usize,
    threads: (usize, usize),
    blocks: (usize, usize, usize),
    /// Pixels of a part, and parts of a sample.
    per_part: usize,
    count: usize,
}

impl GroupGrid {
    fn new(queue: &Queue, kind: Type, [batch, pixels, channels]: [usize; 3]) -> Self {
        let (ending, lanes) = vectors(kind, channels);
        let columns = channels / lanes;
        let threads = (columns.clamp(1, 32), 256 / columns.clamp(1, 32).next_power_of_two());
        let across = columns.div_ceil(threads.0);
        let wanted = (4 * queue.gpu.multiprocessors).div_ceil((across * batch).max(1));
        let per_part = pixels.div_ceil(wanted).max(threads.1).min(pixels.max(1));
        let count = pixels.div_ceil(per_part).max(1);
        Self { batch, pixels, ending, lanes, columns, threads, blocks: (across, count, batch), per_part, count }
    }

    /// Bytes of shared memory of a block.
    fn shared(&self) -> usize {
        self.threads.0 * self.threads.1 * 2 * self.lanes * 4
    }

    /// Vectors of the batch.
    fn vectors(&self) -> usize {
        self.batch * self.pixels * self.columns
    }
}

/// What the groups of a batch are like.
struct Read {
    grid: GroupGrid,
    /// Factors and offsets, f32 [B, 2, C].
    affine: Tensor,
    /// Means and inverse deviations, f32 [B, groups, 2].
    statistics: Tensor,
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

    /// The gradient of x from that of what [`Self::forward`] makes of it, all three [.., C].
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn input_gradient(&self, x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let factors = operand(&self.weight, "weight")?.0.at;
        let affine = Affine { factors, offsets: 0, of_sample: 0, add: 0.0 };
        normalise_back(&self.queue, x, self.channels, affine, self.eps, gradient)
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

/// The gradient of x from that of [`modulated_norm`] of it, all three [B, .., C].
///
/// # Errors
/// As [`modulated_norm`].
pub fn modulated_norm_gradient(
    queue: &Queue,
    x: &Tensor,
    eps: f32,
    scale: Row<'_>,
    gradient: &Tensor,
) -> Result<Tensor> {
    let batch = x.dims().first().copied().unwrap_or(0);
    let channels = x.dims().last().copied().unwrap_or(0);
    let (factors, of_sample) = scale.place(batch, channels)?;
    normalise_back(queue, x, channels, Affine { factors, offsets: 0, of_sample, add: 1.0 }, eps, gradient)
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

/// The gradient of x from that of what `normalise` makes of it; offsets are not read.
fn normalise_back(
    queue: &Queue,
    x: &Tensor,
    channels: usize,
    affine: Affine,
    eps: f32,
    gradient: &Tensor,
) -> Result<Tensor> {
    let Affine { factors, of_sample, add, .. } = affine;
    let (view, kind) = operand(x, "x")?;
    let (batch, of_each) = positions(&view, "x", channels)?;
    let gradient = expect(&operand(gradient, "gradient")?.0, "gradient", &view.dims, kind)?;
    let (out, out_at) = queue.empty(&view.dims, kind)?;
    let name = format!("layer_norm_back_{}", vectors(kind, channels).0);
    let (c, rows, rows_of_sample) = (channels as i32, (batch * of_each) as i64, of_each as i64);
    let blocks = ((batch * of_each).div_ceil(NORM_THREADS / 32).max(1), 1, 1);
    // SAFETY: all three maps have so many rows, and the factors those of each sample.
    unsafe {
        start!(
            queue,
            (Source::Gradients, &name),
            blocks,
            (NORM_THREADS, 1),
            0,
            [view.at, gradient, factors, out_at, c, rows, rows_of_sample, of_sample, add, eps]
        )?;
    }
    Ok(out)
}

/// residual + gate · x: both [B, .., C].
///
/// # Errors
/// Tensors of another shape or dtype, or not contiguous.
pub fn add_gated(queue: &Queue, residual: &Tensor, gate: Row<'_>, x: &Tensor) -> Result<Tensor> {
    gate_onto(queue, Some(residual), gate, x)
}

/// gate · x, [B, .., C]; and the gradient of x from that of gate · x.
///
/// # Errors
/// As [`add_gated`].
pub fn gated(queue: &Queue, gate: Row<'_>, x: &Tensor) -> Result<Tensor> {
    gate_onto(queue, None, gate, x)
}

fn gate_onto(queue: &Queue, residual: Option<&Tensor>, gate: Row<'_>, x: &Tensor) -> Result<Tensor> {
    let (view, kind) = operand(x, "x")?;
    let channels = view.dims.last().copied().unwrap_or(0);
    let (batch, of_each) = positions(&view, "x", channels)?;
    let residual = match residual {
        Some(residual) => expect(&operand(residual, "residual")?.0, "residual", &view.dims, kind)?,
        None => 0,
    };
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
