use deltaconv_proto::teacher::UNetConfig;

use super::super::ops::{Conv, GroupNorm, LayerNorm, Linear, Padding};
use super::super::{Error, Weights};
use super::LoadOptions;

/// Reads modules by their diffusers paths.
pub(super) struct Builder<'a> {
    pub(super) config: &'a UNetConfig,
    pub(super) weights: &'a mut Weights,
    pub(super) options: LoadOptions,
}

impl Builder<'_> {
    pub(super) fn linear(&mut self, path: &str, input: usize, output: usize) -> Result<Linear, Error> {
        let weight = self.weights.read(&format!("{path}.weight"), &[output, input])?;
        Ok(Linear::new(input, output, &weight, Some(self.bias(path, output)?)))
    }

    /// Linears without bias that share their input, as one: their outputs side by side.
    pub(super) fn linears(&mut self, paths: &[String], input: usize, output: usize) -> Result<Linear, Error> {
        let mut weight = Vec::with_capacity(paths.len() * output * input);
        for path in paths {
            weight.extend(self.weights.read(&format!("{path}.weight"), &[output, input])?);
        }
        Ok(Linear::new(input, paths.len() * output, &weight, None))
    }

    /// A linear that may be kept as a 1×1 convolution.
    pub(super) fn pointwise(&mut self, path: &str, input: usize, output: usize, conv: bool) -> Result<Linear, Error> {
        if !conv {
            return self.linear(path, input, output);
        }
        let weight = self.weights.read(&format!("{path}.weight"), &[output, input, 1, 1])?;
        Ok(Linear::new(input, output, &weight, Some(self.bias(path, output)?)))
    }

    /// A convolution of stride 1, padded by ⌊(kernel − 1) / 2⌋.
    pub(super) fn conv(&mut self, path: &str, channels: (usize, usize), kernel: usize) -> Result<Conv, Error> {
        let side = (kernel - 1) / 2;
        self.strided_conv(path, channels, kernel, 1, Padding { before: side, after: side })
    }

    pub(super) fn strided_conv(
        &mut self,
        path: &str,
        (input, output): (usize, usize),
        kernel: usize,
        stride: usize,
        padding: Padding,
    ) -> Result<Conv, Error> {
        let weight = self.weights.read(&format!("{path}.weight"), &[output, input, kernel, kernel])?;
        Ok(Conv::new((input, output), kernel, stride, padding, &weight, self.bias(path, output)?))
    }

    pub(super) fn group_norm(&mut self, path: &str, channels: usize, eps: f64) -> Result<GroupNorm, Error> {
        let weight = self.weights.read(&format!("{path}.weight"), &[channels])?;
        Ok(GroupNorm::new(self.config.norm_num_groups, eps, weight, self.bias(path, channels)?))
    }

    pub(super) fn layer_norm(&mut self, path: &str, channels: usize) -> Result<LayerNorm, Error> {
        /// diffusers' `BasicTransformerBlock`, whatever the model's `norm_eps`.
        const EPS: f32 = 1e-5;
        let weight = self.weights.read(&format!("{path}.weight"), &[channels])?;
        Ok(LayerNorm::new(EPS, weight, self.bias(path, channels)?))
    }

    fn bias(&mut self, path: &str, channels: usize) -> Result<Vec<f32>, Error> {
        self.weights.read(&format!("{path}.bias"), &[channels])
    }
}
