use candle_core::Tensor;

use super::super::gpu::Source;
use super::queue::{Queue, blocks_over, expect, operand, start, vectors};
use crate::error::{Error, Result};

/// What is applied to every element. The numbers are those of `cuda/teacher/norms.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Activation {
    /// x.
    None = 0,
    /// x · sigmoid(x).
    Silu = 1,
    /// x · Φ(x).
    Gelu = 2,
    /// x · tanh(ln(1 + eˣ)).
    Mish = 3,
    /// max(x, 0).
    Relu = 4,
    /// x · Φ(x), approximated with tanh.
    GeluTanh = 5,
}

/// An activation of a tensor of any shape.
///
/// # Errors
/// A tensor of another dtype than a teacher's, or not contiguous.
pub fn activate(queue: &Queue, x: &Tensor, activation: Activation) -> Result<Tensor> {
    let (view, kind) = operand(x, "x")?;
    let (y, y_at) = queue.empty(&view.dims, kind)?;
    let values: usize = view.dims.iter().product();
    let (suffix, lanes) = vectors(kind, values);
    let name = format!("activate_{suffix}");
    let (total, code) = ((values / lanes) as i64, activation as i32);
    let blocks = blocks_over(values / lanes);
    // SAFETY: both tensors have so many vectors.
    unsafe { start!(queue, (Source::Norms, &name), blocks, (256, 1), 0, [view.at, y_at, total, code])? };
    Ok(y)
}

/// [.., 2n] of [h, g] → h · gelu(g), [.., n].
///
/// # Errors
/// A tensor with an odd last dimension or of another dtype, or not contiguous.
pub fn geglu(queue: &Queue, x: &Tensor) -> Result<Tensor> {
    let (view, kind) = operand(x, "x")?;
    let mut dims = view.dims.clone();
    let width = match dims.last_mut() {
        Some(last) if last.is_multiple_of(2) => {
            *last /= 2;
            *last
        }
        _ => {
            let (found, expected) = (format!("{dims:?}"), "an even last dimension".to_owned());
            return Err(Error::Tensor { what: "x", found, expected });
        }
    };
    let (y, y_at) = queue.empty(&dims, kind)?;
    let (suffix, lanes) = vectors(kind, width);
    let name = format!("geglu_{suffix}");
    let vectors = dims.iter().product::<usize>() / lanes;
    let (width, total) = (width as i32, vectors as i64);
    let blocks = blocks_over(vectors);
    // SAFETY: y has so many vectors, and x twice as many.
    unsafe { start!(queue, (Source::Norms, &name), blocks, (256, 1), 0, [view.at, y_at, width, total])? };
    Ok(y)
}

/// The gradient of x from that of its activation, of one shape.
///
/// # Errors
/// Tensors of different shapes or dtypes, or not contiguous.
pub fn activation_gradient(queue: &Queue, x: &Tensor, activation: Activation, gradient: &Tensor) -> Result<Tensor> {
    let (view, kind) = operand(x, "x")?;
    let gradient = expect(&operand(gradient, "gradient")?.0, "gradient", &view.dims, kind)?;
    let (out, out_at) = queue.empty(&view.dims, kind)?;
    let values: usize = view.dims.iter().product();
    let (suffix, lanes) = vectors(kind, values);
    let name = format!("activate_back_{suffix}");
    let (total, code) = ((values / lanes) as i64, activation as i32);
    let blocks = blocks_over(values / lanes);
    // SAFETY: all three tensors have so many vectors.
    unsafe {
        start!(queue, (Source::Gradients, &name), blocks, (256, 1), 0, [view.at, gradient, out_at, total, code])?;
    }
    Ok(out)
}

/// The gradient of x [.., 2n] from that of [`geglu`] of it, [.., n].
///
/// # Errors
/// As [`activation_gradient`].
pub fn geglu_gradient(queue: &Queue, x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let (view, kind) = operand(x, "x")?;
    let mut dims = view.dims.clone();
    let width = dims.last_mut().map_or(0, |last| {
        *last /= 2;
        *last
    });
    let gradient = expect(&operand(gradient, "gradient")?.0, "gradient", &dims, kind)?;
    let (out, out_at) = queue.empty(&view.dims, kind)?;
    let (suffix, lanes) = vectors(kind, width);
    let name = format!("geglu_back_{suffix}");
    let vectors = dims.iter().product::<usize>() / lanes;
    let (width, total) = (width as i32, vectors as i64);
    let blocks = blocks_over(vectors);
    // SAFETY: the gradient has so many vectors, and x and the result twice as many.
    unsafe {
        start!(queue, (Source::Gradients, &name), blocks, (256, 1), 0, [view.at, gradient, out_at, width, total])?;
    }
    Ok(out)
}

/// a + b, of one shape.
///
/// # Errors
/// Tensors of different shapes or dtypes, or not contiguous.
pub fn add(queue: &Queue, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (view, kind) = operand(a, "a")?;
    let b = expect(&operand(b, "b")?.0, "b", &view.dims, kind)?;
    let (y, y_at) = queue.empty(&view.dims, kind)?;
    let values: usize = view.dims.iter().product();
    let (suffix, lanes) = vectors(kind, values);
    let name = format!("add_{suffix}");
    let total = (values / lanes) as i64;
    let blocks = blocks_over(values / lanes);
    // SAFETY: all three tensors have so many vectors.
    unsafe { start!(queue, (Source::Norms, &name), blocks, (256, 1), 0, [view.at, b, y_at, total])? };
    Ok(y)
}

/// [B, H, W, C₁] and [B, H, W, C₂] → [B, H, W, C₁ + C₂].
///
/// # Errors
/// Maps of different sizes or dtypes, or not contiguous.
pub fn join_channels(queue: &Queue, first: &Tensor, second: &Tensor) -> Result<Tensor> {
    let (view, kind) = operand(first, "first")?;
    let (other, _) = operand(second, "second")?;
    let other_at = other.address(kind)?;
    let (Some((&c1, leading)), Some((&c2, other_leading))) = (view.dims.split_last(), other.dims.split_last()) else {
        return Err(Error::Tensor { what: "first", found: "a number".to_owned(), expected: "a map".to_owned() });
    };
    if leading != other_leading {
        let (found, expected) = (format!("{:?}", other.dims), format!("{leading:?} and channels"));
        return Err(Error::Tensor { what: "second", found, expected });
    }
    let (joined, joined_at) = queue.empty(&[leading, &[c1 + c2]].concat(), kind)?;
    // Vectors must divide both.
    let (suffix, lanes) = match (vectors(kind, c1), vectors(kind, c2)) {
        (single @ (_, 1), _) | (_, single) => single,
    };
    let name = format!("join_{suffix}");
    let vectors = leading.iter().product::<usize>() * (c1 + c2) / lanes;
    let (of_first, of_second, total) = ((c1 / lanes) as i32, (c2 / lanes) as i32, vectors as i64);
    let blocks = blocks_over(vectors);
    // SAFETY: the three tensors have so many vectors.
    unsafe {
        start!(
            queue,
            (Source::Norms, &name),
            blocks,
            (256, 1),
            0,
            [view.at, other_at, joined_at, of_first, of_second, total]
        )?;
    }
    Ok(joined)
}
