//! A block's weights as the kernels read them, and the part of its gradients summed sample by sample.

use super::depthwise::group_weights;
use super::grouped::Grouping;
use super::lanes::Group;
use crate::parameters::Parameters;
use crate::shape::BlockShape;

/// The depthwise weights of one scale, grouped.
#[derive(Debug)]
pub(super) struct GroupedKernel {
    /// As they are.
    pub(super) upright: Vec<Group>,
    /// Turned by 180°.
    pub(super) turned: Vec<Group>,
}

impl GroupedKernel {
    pub(super) fn zeros(shape: &BlockShape) -> Self {
        let grouping = Grouping { half: shape.half() };
        let len = 2 * grouping.per_half() * shape.kernel_size() * shape.kernel_size();
        Self { upright: vec![Group::ZERO; len], turned: vec![Group::ZERO; len] }
    }
}

/// The tensors of one block, borrowed from the arena, with its depthwise weights grouped.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub(super) up: &'a [f32],
    pub(super) up_bias: &'a [f32],
    pub(super) kernels: &'a [GroupedKernel],
    pub(super) out: &'a [f32],
    pub(super) out_bias: &'a [f32],
    pub(super) pool: &'a [f32],
    pub(super) pool_bias: &'a [f32],
}

impl<'a> Weights<'a> {
    /// Splits the arena, in the order of [`BlockShape::tensors`], and groups the depthwise weights.
    pub(super) fn new(shape: &BlockShape, parameters: &'a Parameters, kernels: &'a mut [GroupedKernel]) -> Self {
        let (c, d, k) = (shape.channels(), shape.inner(), shape.kernel_size());
        let mut rest = parameters.values();
        let mut take = |len: usize| {
            let (head, tail) = rest.split_at(len);
            rest = tail;
            head
        };
        let (up, up_bias) = (take(d * c), take(d));
        let grouping = Grouping { half: shape.half() };
        for kernel in &mut *kernels {
            let values = take(k * k * d);
            group_weights(values, grouping, k, &mut kernel.upright, &mut kernel.turned);
        }
        let (out, out_bias) = (take(c * shape.features()), take(c));
        let (pool, pool_bias) = (take(c * c), take(c));
        Self { up, up_bias, kernels, out, out_bias, pool, pool_bias }
    }
}

/// The gradients of the tensors before conv_pool, in the order of the arena.
pub(super) struct PartialGradient<'a> {
    pub(super) up: &'a mut [f32],
    pub(super) up_bias: &'a mut [f32],
    /// All scales, `[S, K, K, d]`.
    pub(super) kernels: &'a mut [f32],
    pub(super) out: &'a mut [f32],
    pub(super) out_bias: &'a mut [f32],
}

impl<'a> PartialGradient<'a> {
    /// Values of a partial sum.
    pub(super) fn len(shape: &BlockShape) -> usize {
        let (c, d, k) = (shape.channels(), shape.inner(), shape.kernel_size());
        (d + 1) * c + d + shape.scales().len() * k * k * d + c * shape.features()
    }

    /// Splits a slice of [`PartialGradient::len`] values.
    pub(super) fn split(shape: &BlockShape, values: &'a mut [f32]) -> Self {
        let (c, d, k) = (shape.channels(), shape.inner(), shape.kernel_size());
        let (up, rest) = values.split_at_mut(d * c);
        let (up_bias, rest) = rest.split_at_mut(d);
        let (kernels, rest) = rest.split_at_mut(shape.scales().len() * k * k * d);
        let (out, out_bias) = rest.split_at_mut(c * shape.features());
        debug_assert_eq!(out_bias.len(), c);
        Self { up, up_bias, kernels, out, out_bias }
    }
}
