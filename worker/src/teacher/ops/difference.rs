use candle_core::{DType, Tensor};

#[cfg(feature = "cuda")]
use super::{attach, cuda, wrap};
use crate::teacher::Error;

/// The mean square of a tensor, at least f32's smallest normal number: f32 without dimensions, where the tensor is.
pub(crate) fn mean_square(x: &Tensor) -> Result<Tensor, Error> {
    let x = x.detach();
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return Ok(cuda::mean_square(&*cuda::queue(&x)?, &x)?);
    }
    Ok(x.sqr()?.mean_all()?.to_dtype(DType::F32)?.maximum(f64::from(f32::MIN_POSITIVE))?)
}

/// The mean square of x − `of`, both [B, ..], over `energy`, as [`mean_square`] gives it; each sample times its weight, [B]
/// f32. The gradient goes to x.
pub(crate) fn relative_error(x: &Tensor, of: &Tensor, energy: &Tensor, weights: &Tensor) -> Result<Tensor, Error> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        let (given, of, energy, weights) = (x.detach(), of.detach(), energy.detach(), weights.detach());
        let error = cuda::relative_error(&*cuda::queue(x)?, &given, &of, &energy, &weights)?;
        let back = move |gradient: &Tensor| {
            let queue = cuda::Queue::of(given.device()).map_err(wrap)?;
            cuda::relative_error_gradient(&queue, &given, &of, &energy, &weights, gradient).map_err(wrap)
        };
        return Ok(attach(x, error, back)?);
    }
    let squares = x.sub(&of.detach())?.sqr()?.flatten_from(1)?.mean(1)?;
    let error = squares.mul(&weights.detach())?.mean_all()?;
    Ok(error.div(&energy.detach())?)
}
