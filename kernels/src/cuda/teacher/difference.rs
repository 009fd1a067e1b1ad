use candle_core::Tensor;

use super::super::gpu::Source;
use super::super::product::Type;
use super::super::tensor::View;
use super::queue::{Queue, blocks_over, expect, operand, start, vectors};
use crate::error::Result;

/// Blocks that a sum is taken by.
const BLOCKS: usize = 264;

/// The mean square of a tensor, at least f32's smallest normal number: f32, without dimensions, where the tensor is.
///
/// # Errors
/// A tensor of another dtype than a teacher's, or not contiguous.
pub fn mean_square(queue: &Queue, a: &Tensor) -> Result<Tensor> {
    squares(queue, a, None)
}

/// The mean square of a − b, both [B, ..], over `energy`, f32 without dimensions as the result; each sample times its weight,
/// `weights` [B] f32.
///
/// # Errors
/// As [`mean_square`]; tensors of different shapes or dtypes.
pub fn relative_error(queue: &Queue, a: &Tensor, b: &Tensor, energy: &Tensor, weights: &Tensor) -> Result<Tensor> {
    squares(queue, a, Some((b, energy, weights)))
}

fn squares(queue: &Queue, a: &Tensor, other: Option<(&Tensor, &Tensor, &Tensor)>) -> Result<Tensor> {
    let (view, kind) = operand(a, "a")?;
    let (batch, of_sample) = samples(&view);
    let (b, energy, weights) = match other {
        Some((b, energy, weights)) => {
            let energy = expect(&operand(energy, "energy")?.0, "energy", &[], Type::F32)?;
            let weights = expect(&operand(weights, "weights")?.0, "weights", &[batch], Type::F32)?;
            (expect(&operand(b, "b")?.0, "b", &view.dims, kind)?, energy, weights)
        }
        None => (0, 0, 0),
    };
    let values: usize = view.dims.iter().product();
    let (suffix, lanes) = vectors(kind, of_sample);
    let name = format!("squared_difference_{suffix}");
    let total = values / lanes;
    let of_sample = (of_sample / lanes).max(1) as i64;
    let blocks = total.div_ceil(256).clamp(1, BLOCKS);
    // Doubles.
    let (_sums, sums) = queue.empty(&[2 * blocks], Type::F32)?;
    let (out, out_at) = queue.empty(&[], Type::F32)?;
    let (total, count, share) = (total as i64, blocks as i32, 1.0 / values.max(1) as f64);
    // SAFETY: the tensors have so many vectors, and there is a sum for each block.
    unsafe {
        start!(
            queue,
            (Source::Gradients, &name),
            (blocks, 1, 1),
            (256, 1),
            0,
            [view.at, b, weights, of_sample, sums, total]
        )?;
        start!(
            queue,
            (Source::Gradients, "finish_difference"),
            (1, 1, 1),
            (256, 1),
            0,
            [sums, count, share, energy, out_at]
        )?;
    }
    Ok(out)
}

/// The gradient of a from that of [`relative_error`], which is f32 without dimensions.
///
/// # Errors
/// As [`relative_error`].
pub fn relative_error_gradient(
    queue: &Queue,
    a: &Tensor,
    b: &Tensor,
    energy: &Tensor,
    weights: &Tensor,
    gradient: &Tensor,
) -> Result<Tensor> {
    let (view, kind) = operand(a, "a")?;
    let b = expect(&operand(b, "b")?.0, "b", &view.dims, kind)?;
    let [energy, gradient] = [(energy, "energy"), (gradient, "gradient")]
        .map(|(number, what)| expect(&operand(number, what)?.0, what, &[], Type::F32));
    let (energy, gradient) = (energy?, gradient?);
    let (batch, of_sample) = samples(&view);
    let weights = expect(&operand(weights, "weights")?.0, "weights", &[batch], Type::F32)?;
    let (out, out_at) = queue.empty(&view.dims, kind)?;
    let values: usize = view.dims.iter().product();
    let (suffix, lanes) = vectors(kind, of_sample);
    let of_sample = (of_sample / lanes).max(1) as i64;
    let name = format!("difference_back_{suffix}");
    let (total, times) = ((values / lanes) as i64, 2.0 / values.max(1) as f32);
    let blocks = blocks_over(values / lanes);
    // SAFETY: the tensors have so many vectors.
    unsafe {
        start!(
            queue,
            (Source::Gradients, &name),
            blocks,
            (256, 1),
            0,
            [view.at, b, weights, of_sample, gradient, energy, times, out_at, total]
        )?;
    }
    Ok(out)
}

/// B, and the values of a sample.
fn samples(view: &View) -> (usize, usize) {
    let (batch, rest) = view.dims.split_first().map_or((1, &[][..]), |(batch, rest)| (*batch, rest));
    (batch, rest.iter().product())
}
