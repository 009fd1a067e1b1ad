use candle_core::Tensor;
use deltaconv_proto::teacher::{self, TimeScaleShift};

use super::super::Error;
use super::super::ops::{Added, Conv, GroupNorm, Linear};
use super::Pass;
use super::builder::Builder;

/// diffusers' `ResnetBlock2D` (`models/resnet.py`), channels last.
pub(super) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv,
    time: Linear,
    time_scale_shift: TimeScaleShift,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<Linear>,
    divisor: Option<f32>,
}

impl Resnet {
    pub(super) fn load(builder: &mut Builder<'_>, resnet: &teacher::Resnet) -> Result<Self, Error> {
        let teacher::Resnet { name, input, output, scale_factor } = resnet;
        let (input, output) = (*input, *output);
        let (eps, time_scale_shift) = (builder.config.norm_eps, builder.config.time_scale_shift);
        let projected = match time_scale_shift {
            TimeScaleShift::Shift => output,
            TimeScaleShift::ScaleShift => 2 * output,
        };
        Ok(Self {
            norm1: builder.group_norm(&format!("{name}.norm1"), input, eps)?,
            conv1: builder.weights.conv(&format!("{name}.conv1"), (input, output), 3)?,
            time: builder.weights.linear(&format!("{name}.time_emb_proj"), builder.config.time.dim, projected)?,
            time_scale_shift,
            norm2: builder.group_norm(&format!("{name}.norm2"), output, eps)?,
            conv2: builder.weights.conv(&format!("{name}.conv2"), (output, output), 3)?,
            shortcut: if input == output {
                None
            } else {
                Some(builder.pointwise(&format!("{name}.conv_shortcut"), input, output, true)?)
            },
            divisor: (*scale_factor != 1.0).then_some(*scale_factor as f32),
        })
    }

    /// x [B, H, W, input] → [B, H, W, output].
    pub(super) fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor, Error> {
        let activation = pass.activation;
        let time = self.time.forward(&pass.time)?;
        let h = self.norm1.forward(x, Some(activation))?;
        let h = match self.time_scale_shift {
            TimeScaleShift::Shift => {
                let h = self.conv1.forward_adding(&h, Added { shift: Some(&time), ..Added::default() })?;
                self.norm2.forward(&h, Some(activation))?
            }
            TimeScaleShift::ScaleShift => {
                let h = self.conv1.forward(&h)?;
                self.norm2.forward_modulated(&h, &time, activation)?
            }
        };
        let shortcut = self.shortcut.as_ref().map(|shortcut| shortcut.forward(x)).transpose()?;
        let added = Added { residual: Some(shortcut.as_ref().unwrap_or(x)), divisor: self.divisor, shift: None };
        self.conv2.forward_adding(&h, added)
    }
}
