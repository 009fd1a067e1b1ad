use candle_core::Tensor;
use deltaconv_proto::teacher;

use super::super::Error;
use super::super::ops::{Conv, Padding, join_channels};
use super::Pass;
use super::builder::Builder;
use super::resnet::Resnet;
use super::transformer::Transformer;

/// One block of the way down, the middle, or the way up (`models/unets/unet_2d_blocks.py`).
pub(super) struct Stage {
    resnets: Vec<Resnet>,
    transformers: Vec<Transformer>,
    resample: Option<Conv>,
}

impl Stage {
    pub(super) fn load(builder: &mut Builder<'_>, stage: &teacher::Stage, down: bool) -> Result<Self, Error> {
        let channels = (stage.channels, stage.channels);
        let resample = match &stage.resample {
            None => None,
            Some(path) if down => {
                let padding = match builder.config.downsample_padding {
                    0 => Padding { before: 0, after: 1 },
                    side => Padding { before: side, after: side },
                };
                Some(builder.weights.strided_conv(path, channels, 3, 2, padding)?)
            }
            Some(path) => Some(builder.weights.conv(path, channels, 3)?),
        };
        Ok(Self {
            resnets: stage.resnets.iter().map(|resnet| Resnet::load(builder, resnet)).collect::<Result<_, _>>()?,
            transformers: stage
                .transformers
                .iter()
                .map(|transformer| Transformer::load(builder, transformer))
                .collect::<Result<_, _>>()?,
            resample,
        })
    }

    /// Everything it puts out on the way is kept in `skips` for the way up.
    pub(super) fn down(&self, mut x: Tensor, skips: &mut Vec<Tensor>, pass: &mut Pass<'_>) -> Result<Tensor, Error> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(&x, pass)?;
            if let Some(transformer) = self.transformers.get(i) {
                x = transformer.forward(&x, pass)?;
            }
            skips.push(x.clone());
        }
        if let Some(conv) = &self.resample {
            x = conv.forward(&x)?;
            skips.push(x.clone());
        }
        Ok(x)
    }

    /// The first resnet, then each transformer with the resnet after it.
    pub(super) fn mid(&self, mut x: Tensor, pass: &mut Pass<'_>) -> Result<Tensor, Error> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            if i > 0
                && let Some(transformer) = self.transformers.get(i - 1)
            {
                x = transformer.forward(&x, pass)?;
            }
            x = resnet.forward(&x, pass)?;
        }
        Ok(x)
    }

    /// `follows_skips`: the map is resized to what comes next from the way down instead of to twice its size.
    pub(super) fn up(
        &self,
        mut x: Tensor,
        skips: &mut Vec<Tensor>,
        follows_skips: bool,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor, Error> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            if let Some(skip) = skips.pop() {
                x = join_channels(&x, &skip)?;
            }
            x = resnet.forward(&x, pass)?;
            if let Some(transformer) = self.transformers.get(i) {
                x = transformer.forward(&x, pass)?;
            }
        }
        if let Some(conv) = &self.resample {
            let (_, h, w, _) = x.dims4()?;
            let size = match skips.last() {
                Some(skip) if follows_skips => (skip.dim(1)?, skip.dim(2)?),
                _ => (2 * h, 2 * w),
            };
            x = conv.forward_resized(&x, size)?;
        }
        Ok(x)
    }
}
