//! What the kernels' crate calls its own.

use std::sync::Arc;

use candle_core::Tensor;
use deltaconv_kernels::cuda::teacher::{self};
pub(super) use deltaconv_kernels::cuda::teacher::{
    Activation, Added, Conv, ConvShape, GroupNorm, LayerNorm, Linear, Queue, Row, activate, add, add_gated, geglu,
    join_channels, modulated_norm,
};
use deltaconv_proto::teacher::Activation as Configured;

use super::super::Error;
use super::{Heads, Projected};

/// The queue of a tensor's device.
pub(super) fn queue(tensor: &Tensor) -> Result<Arc<Queue>, Error> {
    Ok(Queue::of(tensor.device())?)
}

pub(super) fn activation(activation: Option<Configured>) -> Activation {
    match activation {
        None => Activation::None,
        Some(Configured::Silu) => Activation::Silu,
        Some(Configured::Gelu) => Activation::Gelu,
        Some(Configured::Mish) => Activation::Mish,
        Some(Configured::Relu) => Activation::Relu,
    }
}

pub(super) fn attention(
    query: Projected<'_>,
    key: Projected<'_>,
    value: Projected<'_>,
    heads: Heads,
    bias: Option<&Tensor>,
) -> Result<Tensor, Error> {
    let queue = queue(query.tensor)?;
    let [query, key, value] =
        [query, key, value].map(|Projected { tensor, offset }| teacher::Projected { tensor, offset });
    let heads = teacher::Heads { count: heads.count, dim: heads.dim };
    Ok(teacher::attention(&queue, query, key, value, heads, bias)?)
}
