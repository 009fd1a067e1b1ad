//! diffusers' `PixArtTransformer2DModel`. Source: `models/transformers/pixart_transformer_2d.py`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use deltaconv_proto::teacher::{Attention, PixArtConfig, TimeEmbedding};

use super::attention::{CrossAttention, Layers, OwnAttention};
use super::conditions::{Conditions, Text, host_f32, of_each_sample, size_of_sample};
use super::ops::{
    Conv, FeedForward, FeedForwardActivation, Linear, Padding, Place, Row, activate, activate_gelu_tanh, add_gated,
    modulated_norm, sinusoids,
};
use super::unet::LoadOptions;
use super::{Error, SelfAttention, Weights};

/// ε of the last norm, whatever the model's `norm_eps`.
const EPS_OUT: f32 = 1e-6;
/// Pixels of a picture for one of its latents, in height and in width.
const VAE_SCALE: f32 = 8.0;

/// A PixArt transformer.
pub struct PixArt {
    place: Place,
    config: PixArtConfig,
    patches: Conv,
    timestep: Embedder,
    /// Of resolution and aspect ratio.
    additional: Option<[Embedder; 2]>,
    modulation: Linear,
    caption: Option<(Linear, Linear)>,
    blocks: Vec<Block>,
    /// Shift and scale, [2, C] f32.
    shift_and_scale: Tensor,
    proj_out: Linear,
    /// The embeddings of the positions of maps, [H, W, C], by the sizes that were seen.
    positions: Mutex<HashMap<(usize, usize), Tensor>>,
}

/// Sinusoids and two linears with SiLU between them.
struct Embedder(Linear, Linear);

/// diffusers' `BasicTransformerBlock` with `ada_norm_single`.
struct Block {
    /// [6, C] f32: shift, scale and gate of attention, then of the feed-forward.
    table: Tensor,
    /// Absent in a student.
    attn1: Option<OwnAttention>,
    attn2: CrossAttention,
    feed_forward: FeedForward,
}

impl Embedder {
    fn load(weights: &mut Weights, name: &str, channels: usize) -> Result<Self, Error> {
        let path = |linear| format!("adaln_single.emb.{name}_embedder.{linear}");
        Ok(Self(
            weights.linear(&path("linear_1"), sinusoid_kind().channels, channels)?,
            weights.linear(&path("linear_2"), channels, channels)?,
        ))
    }

    /// Numbers [n] → [n, channels].
    fn forward(&self, numbers: &[f32], place: &Place) -> Result<Tensor, Error> {
        let hidden = self.0.forward(&sinusoids(numbers, &sinusoid_kind(), place)?)?;
        self.1.forward(&activate(&hidden, deltaconv_proto::teacher::Activation::Silu)?)
    }
}

/// The sinusoids of timestep, resolution and aspect ratio.
fn sinusoid_kind() -> TimeEmbedding {
    TimeEmbedding {
        channels: 256,
        dim: 256,
        flip_sin_to_cos: true,
        freq_shift: 0.0,
        post_activation: None,
        final_activation: None,
    }
}

impl Block {
    fn load(weights: &mut Weights, config: &PixArtConfig, path: &str, options: &LoadOptions) -> Result<Self, Error> {
        let inner = config.inner();
        let attention = Attention {
            heads: config.heads,
            head_dim: config.head_dim,
            context: config.context,
            only_cross_attention: false,
        };
        let bias = config.attention_bias;
        let attn1 = match options.replaced.contains(path) {
            true => None,
            false => Some(OwnAttention::load(weights, &format!("{path}.attn1"), attention, bias)?),
        };
        let table = weights.read(&format!("{path}.scale_shift_table"), &[6, inner])?;
        Ok(Self {
            table: weights.place().f32(table, &[6, inner])?,
            attn1,
            attn2: CrossAttention::load(weights, &format!("{path}.attn2"), attention, bias)?,
            feed_forward: FeedForward {
                activation: FeedForwardActivation::GeluTanh,
                up: weights.linear(&format!("{path}.ff.net.0.proj"), inner, 4 * inner)?,
                down: weights.linear(&format!("{path}.ff.net.2"), 4 * inner, inner)?,
            },
        })
    }

    /// h [B, H, W, C] → the same shape; `modulation` [B, 6, C] f32.
    fn forward(
        &self,
        h: &Tensor,
        modulation: &Tensor,
        eps: f32,
        text: &Text,
        layers: &mut Layers<'_>,
    ) -> Result<Tensor, Error> {
        let table = modulation.broadcast_add(&self.table)?;
        let row = |index| Row { table: &table, index };
        let input = modulated_norm(h, eps, row(1), row(0))?;
        let output = layers.next(self.attn1.as_ref(), &input, h, Some(row(2)))?;
        let h = add_gated(h, row(2), &output)?;
        // Without a norm before it.
        let h = self.attn2.forward_onto(&h, &h, text)?;
        let input = modulated_norm(&h, eps, row(4), row(3))?;
        add_gated(&h, row(5), &self.feed_forward.forward(&input)?)
    }
}

impl PixArt {
    /// Loads a model.
    ///
    /// # Errors
    /// Weights that cannot be read, or that are not those of the configuration.
    pub fn load(config: &PixArtConfig, weights: &mut Weights, options: &LoadOptions) -> Result<Self, Error> {
        let (inner, patch) = (config.inner(), config.patch_size);
        let none = Padding { before: 0, after: 0 };
        let caption = match config.caption_channels {
            Some(channels) => Some((
                weights.linear("caption_projection.linear_1", channels, inner)?,
                weights.linear("caption_projection.linear_2", inner, inner)?,
            )),
            None => None,
        };
        let additional = match config.additional_conditions {
            true => Some([
                Embedder::load(weights, "resolution", inner / 3)?,
                Embedder::load(weights, "aspect_ratio", inner / 3)?,
            ]),
            false => None,
        };
        let blocks = config.blocks().map(|path| Block::load(weights, config, &path, options));
        let blocks = blocks.collect::<Result<Vec<Block>, Error>>()?;
        Ok(Self {
            patches: weights.strided_conv("pos_embed.proj", (config.in_channels, inner), patch, patch, none)?,
            timestep: Embedder::load(weights, "timestep", inner)?,
            additional,
            modulation: weights.linear("adaln_single.linear", inner, 6 * inner)?,
            caption,
            blocks,
            shift_and_scale: {
                let values = weights.read("scale_shift_table", &[2, inner])?;
                weights.place().f32(values, &[2, inner])?
            },
            proj_out: weights.linear("proj_out", inner, patch * patch * config.out_channels)?,
            positions: Mutex::default(),
            place: weights.place().clone(),
            config: config.clone(),
        })
    }

    /// Where it is computed.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The configuration that the model was built from.
    pub fn config(&self) -> &PixArtConfig {
        &self.config
    }

    /// What the model predicts: [B, out_channels, H, W] f32, on the model's device.
    ///
    /// `sample` [B, in_channels, H, W], `timestep` [B] (or one element, for the whole batch; integers or floats); any float
    /// dtype and device. Bits are as reproducible as [`super::UNet::forward`]'s.
    ///
    /// # Errors
    /// Arguments of other shapes, and whatever `attention` returns.
    pub fn forward(
        &self,
        sample: &Tensor,
        timestep: &Tensor,
        conditions: &Conditions,
        attention: &mut dyn SelfAttention,
    ) -> Result<Tensor, Error> {
        let (batch, height, width) = size_of_sample(sample, self.config.in_channels)?;
        let layers = self.config.layers(height, width)?;
        let mut layers = Layers { rest: layers.iter(), attention };
        let embedded = self.embed(timestep, conditions, batch, (height, width))?;
        let silu = activate(&embedded, deltaconv_proto::teacher::Activation::Silu)?;
        let channels = self.config.inner();
        let modulation = self.modulation.forward(&silu)?.to_dtype(DType::F32)?.reshape((batch, 6, channels))?;
        let mut text = conditions.text(batch, &self.place)?;
        if let Some((first, second)) = &self.caption {
            text.states = second.forward(&activate_gelu_tanh(&first.forward(&text.states)?)?)?;
        }

        let patch = self.config.patch_size;
        let x = self.patches.forward(&self.place.take(&sample.permute((0, 2, 3, 1))?)?)?;
        let mut h = x.broadcast_add(&self.positions(height / patch, width / patch)?)?;
        for block in &self.blocks {
            h = block.forward(&h, &modulation, self.config.norm_eps as f32, &text, &mut layers)?;
        }

        let embedded = embedded.to_dtype(DType::F32)?.reshape((batch, 1, channels))?;
        let table = embedded.broadcast_add(&self.shift_and_scale)?;
        let row = |index| Row { table: &table, index };
        let h = self.proj_out.forward(&modulated_norm(&h, EPS_OUT, row(1), row(0))?)?;
        // [B, h, w, p, q, c] → [B, c, h·p, w·q]
        let (rows, columns, out) = (height / patch, width / patch, self.config.out_channels);
        let pixels = h.reshape(&[batch, rows, columns, patch, patch, out][..])?.permute([0, 5, 1, 3, 2, 4])?;
        Ok(pixels.contiguous()?.reshape((batch, out, height, width))?.to_dtype(DType::F32)?)
    }

    /// The embedding of the timestep and, where the model takes them, of resolution and aspect ratio: [B, C].
    fn embed(
        &self,
        timestep: &Tensor,
        conditions: &Conditions,
        batch: usize,
        (height, width): (usize, usize),
    ) -> Result<Tensor, Error> {
        let embedded = self.timestep.forward(&of_each_sample(timestep, batch, "timestep")?, &self.place)?;
        let Some([resolution, aspect_ratio]) = &self.additional else { return Ok(embedded) };
        let (rows, columns) = (height as f32, width as f32);
        let pixels = match &conditions.resolution {
            Some(given) if given.dims() == [batch, 2] => host_f32(given)?.flatten_all()?.to_vec1::<f32>()?,
            Some(other) => {
                let problem = format!("expected [{batch}, 2], found {:?}", other.dims());
                return Err(Error::Argument { argument: "resolution", problem });
            }
            None => [rows * VAE_SCALE, columns * VAE_SCALE].repeat(batch),
        };
        let ratios = match &conditions.aspect_ratio {
            Some(given) => of_each_sample(given, batch, "aspect_ratio")?,
            None => vec![rows / columns; batch],
        };
        let third = self.config.inner() / 3;
        let resolution = resolution.forward(&pixels, &self.place)?.reshape((batch, 2 * third))?;
        let both = Tensor::cat(&[&resolution, &aspect_ratio.forward(&ratios, &self.place)?], 1)?;
        Ok(embedded.add(&both)?)
    }

    /// The embeddings of the positions of a map, [H, W, C]: sinusoids of the column in the first half of the channels, of
    /// the row in the second. Source: diffusers `get_2d_sincos_pos_embed`.
    fn positions(&self, height: usize, width: usize) -> Result<Tensor, Error> {
        // A panic elsewhere leaves a map that was not added.
        let mut known = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(positions) = known.get(&(height, width)) {
            return Ok(positions.clone());
        }
        let positions = self.place.take(&self.compute_positions(height, width)?)?;
        known.insert((height, width), positions.clone());
        Ok(positions)
    }

    fn compute_positions(&self, height: usize, width: usize) -> Result<Tensor, Error> {
        let base = (self.config.sample_size / self.config.patch_size) as f32;
        let quarter = self.config.inner() / 4;
        let sinusoids = |position: usize, positions: usize| -> Vec<f32> {
            let position = position as f32 / (positions as f32 / base) / self.config.interpolation_scale as f32;
            let angle = |i: usize| f64::from(position) / 10_000_f64.powf(i as f64 / quarter as f64);
            let sines = (0..quarter).map(|i| angle(i).sin() as f32);
            sines.chain((0..quarter).map(|i| angle(i).cos() as f32)).collect()
        };
        let columns: Vec<Vec<f32>> = (0..width).map(|column| sinusoids(column, width)).collect();
        let mut values: Vec<f32> = Vec::with_capacity(height * width * 4 * quarter);
        for row in 0..height {
            let of_row = sinusoids(row, height);
            for of_column in &columns {
                values.extend(of_column);
                values.extend(&of_row);
            }
        }
        Ok(Tensor::from_vec(values, (height, width, 4 * quarter), &Device::Cpu)?)
    }
}
