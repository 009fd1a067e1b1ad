//! diffusers' `AutoencoderKL` (`models/autoencoders/autoencoder_kl.py`, `vae.py`), channels last.
//!
//! candle-transformers has one too; it can only sample from the encoder's distribution, with numbers that nobody can draw
//! again, so two workers would write two sets of latents.

use candle_core::{DType, Tensor};
use deltaconv_proto::pipeline::has_old_names;
use deltaconv_proto::teacher::{Activation, VaeConfig, attention_names};

use super::conditions::size_of_sample;
use super::ops::{Added, Conv, GroupNorm, Heads, Linear, Padding, Place, Projected, attention};
use super::{Error, Weights};

/// Of every group norm, whatever the configuration.
const EPS: f64 = 1e-6;

/// A VAE.
#[derive(Debug)]
pub struct Vae {
    place: Place,
    config: VaeConfig,
    encoder: Half,
    quant_conv: Option<Linear>,
    post_quant_conv: Option<Linear>,
    decoder: Half,
}

/// The encoder or the decoder.
#[derive(Debug)]
struct Half {
    conv_in: Conv,
    levels: Vec<Level>,
    mid: Mid,
    norm_out: GroupNorm,
    conv_out: Conv,
}

#[derive(Debug)]
struct Level {
    resnets: Vec<Resnet>,
    /// To half or twice the size.
    resample: Option<Conv>,
}

#[derive(Debug)]
struct Mid {
    first: Resnet,
    attention: Option<MidAttention>,
    second: Resnet,
}

#[derive(Debug)]
struct Resnet {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<Linear>,
}

/// One head over all channels.
#[derive(Debug)]
struct MidAttention {
    norm: GroupNorm,
    /// C → 3C: queries, keys, values.
    projections: Linear,
    to_out: Linear,
    channels: usize,
}

impl Vae {
    /// Loads a model.
    ///
    /// # Errors
    /// Weights that cannot be read, or that are not those of the configuration.
    pub fn load(config: &VaeConfig, weights: &mut Weights) -> Result<Self, Error> {
        let old_names = has_old_names(|name| weights.info(name));
        let mut builder = Builder { config, weights, old_names };
        let latent = config.latent_channels;
        Ok(Self {
            encoder: builder.half("encoder", 3, 2 * latent)?,
            quant_conv: config
                .quant_conv
                .then(|| builder.weights.pointwise("quant_conv", 2 * latent, 2 * latent))
                .transpose()?,
            post_quant_conv: config
                .post_quant_conv
                .then(|| builder.weights.pointwise("post_quant_conv", latent, latent))
                .transpose()?,
            decoder: builder.half("decoder", latent, 3)?,
            place: builder.weights.place().clone(),
            config: config.clone(),
        })
    }

    /// What the model is.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Latents as a denoiser sees them, [B, c, H / f, W / f] f32, of pictures [B, 3, H, W] in [−1, 1], on their device; f is
    /// [`VaeConfig::factor`]. They are the mean of the encoder's distribution, so the same picture has the same latents.
    ///
    /// # Errors
    /// Pictures of another shape, or whose sides are no multiples of f.
    pub fn encode(&self, pictures: &Tensor) -> Result<Tensor, Error> {
        let (_, height, width) = size_of_sample(pictures, 3)?;
        let factor = self.config.factor();
        if height % factor != 0 || width % factor != 0 || height == 0 || width == 0 {
            let problem = format!("sides of {height} and {width} pixels are not multiples of {factor}");
            return Err(Error::Argument { argument: "pictures", problem });
        }
        let mut x = self.encoder.conv_in.forward(&self.place.take(&pictures.permute((0, 2, 3, 1))?)?)?;
        for level in &self.encoder.levels {
            x = level.resnets(x)?;
            if let Some(downsample) = &level.resample {
                x = downsample.forward(&x)?;
            }
        }
        let mut moments = self.encoder.end(&self.encoder.mid.forward(&x)?)?;
        if let Some(conv) = &self.quant_conv {
            moments = conv.forward(&moments)?;
        }
        let mean = moments.narrow(3, 0, self.config.latent_channels)?;
        let latents = mean.affine(self.config.scaling_factor, 0.0)?.permute((0, 3, 1, 2))?.contiguous()?;
        Ok(latents.to_device(pictures.device())?.to_dtype(DType::F32)?)
    }

    /// Pictures [B, 3, H · f, W · f] f32, about in [−1, 1], of latents as a denoiser sees them, [B, c, H, W], on their
    /// device.
    ///
    /// # Errors
    /// Latents of another shape.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor, Error> {
        size_of_sample(latents, self.config.latent_channels)?;
        let mut x = self.place.take(&latents.permute((0, 2, 3, 1))?)?.affine(1.0 / self.config.scaling_factor, 0.0)?;
        if let Some(conv) = &self.post_quant_conv {
            x = conv.forward(&x)?;
        }
        x = self.decoder.mid.forward(&self.decoder.conv_in.forward(&x)?)?;
        for level in &self.decoder.levels {
            x = level.resnets(x)?;
            if let Some(upsample) = &level.resample {
                let (_, height, width, _) = x.dims4()?;
                x = upsample.forward_resized(&x, (2 * height, 2 * width))?;
            }
        }
        let pictures = self.decoder.end(&x)?.permute((0, 3, 1, 2))?.contiguous()?;
        Ok(pictures.to_device(latents.device())?.to_dtype(DType::F32)?)
    }
}

impl Half {
    fn end(&self, x: &Tensor) -> Result<Tensor, Error> {
        self.conv_out.forward(&self.norm_out.forward(x, Some(Activation::Silu))?)
    }
}

impl Level {
    fn resnets(&self, mut x: Tensor) -> Result<Tensor, Error> {
        for resnet in &self.resnets {
            x = resnet.forward(&x)?;
        }
        Ok(x)
    }
}

impl Mid {
    fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        let x = self.first.forward(x)?;
        let x = match &self.attention {
            Some(attention) => attention.forward(&x)?,
            None => x,
        };
        self.second.forward(&x)
    }
}

impl Resnet {
    fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        let h = self.conv1.forward(&self.norm1.forward(x, Some(Activation::Silu))?)?;
        let h = self.norm2.forward(&h, Some(Activation::Silu))?;
        let shortcut = self.shortcut.as_ref().map(|shortcut| shortcut.forward(x)).transpose()?;
        let added = Added { residual: Some(shortcut.as_ref().unwrap_or(x)), ..Added::default() };
        self.conv2.forward_adding(&h, added)
    }
}

impl MidAttention {
    fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        let projected = self.projections.forward(&self.norm.forward(x, None)?)?;
        let [query, key, value] = [0, 1, 2].map(|i| Projected { tensor: &projected, offset: i * self.channels });
        let heads = Heads { count: 1, dim: self.channels };
        let (batch, height, width, _) = x.dims4()?;
        let attended = attention(query, key, value, heads, None)?.reshape((batch, height, width, self.channels))?;
        self.to_out.forward_onto(x, &attended)
    }
}

/// Reads modules by their diffusers paths.
struct Builder<'a> {
    config: &'a VaeConfig,
    weights: &'a mut Weights,
    /// See [`has_old_names`].
    old_names: bool,
}

impl Builder<'_> {
    fn half(&mut self, half: &str, input: usize, output: usize) -> Result<Half, Error> {
        let up = half == "decoder";
        let (blocks, resample, more) = match up {
            false => ("down_blocks", "downsamplers", 0),
            true => ("up_blocks", "upsamplers", 1),
        };
        let mut levels = self.config.channels.clone();
        if up {
            levels.reverse();
        }
        let (first, last) = (levels[0], levels[levels.len() - 1]);
        let deepest = if up { first } else { last };
        let mut channels = first;
        let mut loaded = Vec::with_capacity(levels.len());
        for (i, level) in levels.iter().enumerate() {
            let path = format!("{half}.{blocks}.{i}");
            let mut resnets = Vec::new();
            for resnet in 0..self.config.resnets + more {
                resnets.push(self.resnet(&format!("{path}.resnets.{resnet}"), channels, *level)?);
                channels = *level;
            }
            let conv = format!("{path}.{resample}.0.conv");
            let size = (channels, channels);
            let resample = match (i + 1 < levels.len(), up) {
                (false, _) => None,
                (true, true) => Some(self.weights.conv(&conv, size, 3)?),
                (true, false) => Some(self.weights.strided_conv(&conv, size, 3, 2, Padding { before: 0, after: 1 })?),
            };
            loaded.push(Level { resnets, resample });
        }
        let mid = format!("{half}.mid_block");
        Ok(Half {
            conv_in: self.weights.conv(&format!("{half}.conv_in"), (input, first), 3)?,
            levels: loaded,
            mid: Mid {
                first: self.resnet(&format!("{mid}.resnets.0"), deepest, deepest)?,
                attention: match self.config.mid_attention {
                    true => Some(self.attention(&format!("{mid}.attentions.0"), deepest)?),
                    false => None,
                },
                second: self.resnet(&format!("{mid}.resnets.1"), deepest, deepest)?,
            },
            norm_out: self.norm(&format!("{half}.conv_norm_out"), last)?,
            conv_out: self.weights.conv(&format!("{half}.conv_out"), (last, output), 3)?,
        })
    }

    fn resnet(&mut self, path: &str, input: usize, output: usize) -> Result<Resnet, Error> {
        Ok(Resnet {
            norm1: self.norm(&format!("{path}.norm1"), input)?,
            conv1: self.weights.conv(&format!("{path}.conv1"), (input, output), 3)?,
            norm2: self.norm(&format!("{path}.norm2"), output)?,
            conv2: self.weights.conv(&format!("{path}.conv2"), (output, output), 3)?,
            shortcut: match input == output {
                true => None,
                false => Some(self.weights.pointwise(&format!("{path}.conv_shortcut"), input, output)?),
            },
        })
    }

    fn attention(&mut self, path: &str, channels: usize) -> Result<MidAttention, Error> {
        let [query, key, value, out] = attention_names(self.old_names).map(|name| format!("{path}.{name}"));
        Ok(MidAttention {
            norm: self.norm(&format!("{path}.group_norm"), channels)?,
            projections: self.weights.linears(&[query, key, value], channels, channels, true)?,
            to_out: self.weights.linear(&out, channels, channels)?,
            channels,
        })
    }

    fn norm(&mut self, path: &str, channels: usize) -> Result<GroupNorm, Error> {
        self.weights.group_norm(path, channels, self.config.groups, EPS)
    }
}
