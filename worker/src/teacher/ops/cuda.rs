//! What the kernels' crate calls its own.

use std::sync::Arc;

use candle_core::Tensor;
use deltaconv_kernels::cuda::teacher::{self};
pub(super) use deltaconv_kernels::cuda::teacher::{
    Activation, Added, Conv, ConvShape, GroupNorm, LayerNorm, Linear, Queue, Row, activate, add, add_gated, gated,
    geglu, join_channels, mean_square, modulated_norm, modulated_norm_gradient, relative_error,
    relative_error_gradient,
};
use deltaconv_proto::teacher::Activation as Configured;

use super::super::Error;
use super::{FeedForwardActivation, Heads, Projected, wrap};

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

/// The gradient of the queries, all of their tensor, from that of their attention to keys and values that are given.
pub(super) fn query_gradient(
    query: &Tensor,
    key: Projected<'_>,
    value: Projected<'_>,
    heads: Heads,
    bias: Option<&Tensor>,
    gradient: &Tensor,
) -> candle_core::Result<Tensor> {
    let queue = Queue::of(query.device()).map_err(wrap)?;
    let [key, value] = [key, value].map(|Projected { tensor, offset }| teacher::Projected { tensor, offset });
    let heads = teacher::Heads { count: heads.count, dim: heads.dim };
    teacher::query_gradient(&queue, query, key, value, heads, bias, gradient).map_err(wrap)
}

/// The gradient of a feed-forward's x from that of its result.
pub(super) fn feed_forward_gradient(
    activation: FeedForwardActivation,
    up: &Linear,
    down: &Linear,
    x: &Tensor,
    gradient: &Tensor,
) -> candle_core::Result<Tensor> {
    let queue = Queue::of(x.device()).map_err(wrap)?;
    let of_hidden = down.input_gradient(gradient).map_err(wrap)?;
    let before = up.forward(x).map_err(wrap)?;
    let of_before = match activation {
        FeedForwardActivation::Geglu => teacher::geglu_gradient(&queue, &before, &of_hidden),
        FeedForwardActivation::GeluTanh => {
            teacher::activation_gradient(&queue, &before, Activation::GeluTanh, &of_hidden)
        }
    };
    up.input_gradient(&of_before.map_err(wrap)?).map_err(wrap)
}
