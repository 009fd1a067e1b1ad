//! Operations on tensors that candle tracks, for training through a model whose weights stay: their results are the same as
//! ever, and their gradients go to what they were computed from, not to weights.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};

use super::{Heads, Projected};

/// The gradient of x from that of y.
type Back = dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync;

/// `y`, computed from `x`, in candle's graph; `back` makes the gradient of x from that of y, both contiguous.
pub(crate) fn attach(
    x: &Tensor,
    y: Tensor,
    back: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    x.apply_op1(Attached { y: Mutex::new(Some(y)), back: Box::new(back) })
}

struct Attached {
    /// Until it was given.
    y: Mutex<Option<Tensor>>,
    back: Box<Back>,
}

impl CustomOp1 for Attached {
    fn name(&self) -> &'static str {
        "attached"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.y.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(y) = y else { bail!("a result was asked for twice") };
        let y = y.force_contiguous()?;
        let (storage, _) = y.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.clone(), y.shape().clone())),
            _ => bail!("a result in host memory was expected"),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, _: &candle_core::CudaStorage, _: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let y = self.y.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(y) = y else { bail!("a result was asked for twice") };
        let (storage, layout) = y.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, y.shape().clone())),
            _ => bail!("a result on the GPU was expected"),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some((self.back)(&gradient.contiguous()?)?))
    }
}

/// Where the queries, keys and values of one attention come from.
#[derive(Clone)]
struct Attended {
    tensors: [Tensor; 3],
    offsets: [usize; 3],
    heads: Heads,
    /// [B, keys].
    bias: Option<Tensor>,
}

/// `y`, the attention of these. Gradients go to the queries, and to keys and values where they are of the queries' own tensor.
pub(super) fn attention(
    y: Tensor,
    projected: [Projected<'_>; 3],
    heads: Heads,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let tracked = projected[0].tensor;
    let is_own = projected.iter().all(|of| of.tensor.id() == tracked.id());
    if !is_own && projected[1..].iter().any(|of| of.tensor.track_op()) {
        bail!("an attention's gradient goes to its queries, or to all that it was projected from");
    }
    let of = Arc::new(Attended {
        tensors: projected.map(|of| of.tensor.detach()),
        offsets: projected.map(|of| of.offset),
        heads,
        bias: bias.cloned(),
    });
    #[cfg(feature = "cuda")]
    if !is_own && tracked.device().is_cuda() && tracked.dim(tracked.rank() - 1)? == heads.count * heads.dim {
        return attach(tracked, y, move |gradient| {
            let Attended { tensors: [query, key, value], offsets, heads, bias } = &*of;
            let projected = |tensor, offset| Projected { tensor, offset };
            let (key, value) = (projected(key, offsets[1]), projected(value, offsets[2]));
            super::cuda::query_gradient(query, key, value, *heads, bias.as_ref(), gradient)
        });
    }
    attach(tracked, y, move |gradient| of.gradient(gradient, is_own))
}

impl Attended {
    /// The gradient of the queries' tensor: with P = softmax(S), S = Q Kᵀ / √d + bias and the gradient G of P V,
    /// that of S is P · (G Vᵀ − row sums of P · G Vᵀ).
    fn gradient(&self, gradient: &Tensor, is_own: bool) -> Result<Tensor> {
        let Heads { count, dim } = self.heads;
        let [q, k, v] = [0, 1, 2].map(|i| self.by_head(&self.tensors[i], self.offsets[i]));
        let (q, k, v) = (q?, k?, v?);
        let scale = 1.0 / (dim as f64).sqrt();
        let scores = q.matmul(&k.t()?)?.affine(scale, 0.0)?;
        let scores = match &self.bias {
            Some(bias) => scores.broadcast_add(&bias.unsqueeze(1)?.unsqueeze(1)?)?,
            None => scores,
        };
        let shares = candle_nn::ops::softmax(&scores, 3)?;
        let gradient = self.by_head(gradient, 0)?;
        let of_shares = gradient.matmul(&v.t()?)?.mul(&shares)?;
        let of_scores = of_shares.sub(&shares.broadcast_mul(&of_shares.sum_keepdim(3)?)?)?.affine(scale, 0.0)?;

        let dims = self.tensors[0].dims();
        let back = |by_head: Tensor| -> Result<Tensor> {
            let (batch, _, positions, _) = by_head.dims4()?;
            by_head.transpose(1, 2)?.reshape((batch, positions, count * dim))
        };
        let of_queries = back(of_scores.matmul(&k)?)?;
        let parts = match is_own {
            false => vec![(self.offsets[0], of_queries)],
            true => {
                let of_keys = back(of_scores.t()?.matmul(&q)?)?;
                let of_values = back(shares.t()?.matmul(&gradient)?)?;
                vec![(self.offsets[0], of_queries), (self.offsets[1], of_keys), (self.offsets[2], of_values)]
            }
        };
        let (batch, positions, _) = parts[0].1.dims3()?;
        let mut whole = Tensor::zeros((batch, positions, dims[dims.len() - 1]), gradient.dtype(), gradient.device())?;
        for (offset, part) in parts {
            whole = whole.slice_assign(&[0..batch, 0..positions, offset..offset + count * dim], &part)?;
        }
        whole.reshape(dims)
    }

    /// [B, .., channels] → [B, heads, positions, d].
    fn by_head(&self, tensor: &Tensor, offset: usize) -> Result<Tensor> {
        let Heads { count, dim } = self.heads;
        let (batch, last) = (tensor.dim(0)?, tensor.rank() - 1);
        let own = tensor.narrow(last, offset, count * dim)?.contiguous()?;
        let positions = own.elem_count() / (batch * count * dim).max(1);
        own.reshape((batch, positions, count, dim))?.transpose(1, 2)?.contiguous()
    }
}
