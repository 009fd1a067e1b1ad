use deltaconv_proto::teacher::UNetConfig;

use super::super::ops::{GroupNorm, LayerNorm, Linear};
use super::super::{Error, Weights};
use super::LoadOptions;

/// Reads modules by their diffusers paths.
pub(super) struct Builder<'a> {
    pub(super) config: &'a UNetConfig,
    pub(super) weights: &'a mut Weights,
    pub(super) options: &'a LoadOptions,
}

impl Builder<'_> {
    /// A linear that may be kept as a 1×1 convolution.
    pub(super) fn pointwise(&mut self, path: &str, input: usize, output: usize, conv: bool) -> Result<Linear, Error> {
        if !conv {
            return self.weights.linear(path, input, output);
        }
        self.weights.pointwise(path, input, output)
    }

    pub(super) fn group_norm(&mut self, path: &str, channels: usize, eps: f64) -> Result<GroupNorm, Error> {
        self.weights.group_norm(path, channels, self.config.norm_num_groups, eps)
    }

    pub(super) fn layer_norm(&mut self, path: &str, channels: usize) -> Result<LayerNorm, Error> {
        /// diffusers' `BasicTransformerBlock`, whatever the model's `norm_eps`.
        const EPS: f32 = 1e-5;
        self.weights.layer_norm(path, channels, EPS)
    }
}
