//! diffusers' `UNet2DConditionModel`. Source: `models/unets/unet_2d_condition.py`.

mod builder;
mod resnet;
mod stage;
mod transformer;

use std::collections::BTreeSet;

use candle_core::{DType, Tensor};
use deltaconv_proto::teacher::{Activation, AddedEmbedding, Plan, TimeEmbedding, UNetConfig};

use self::builder::Builder;
use self::stage::Stage;
use super::attention::Layers;
use super::conditions::{Conditions, Text, host_f32, of_each_sample, size_of_sample};
use super::ops::{Conv, GroupNorm, Linear, Place, activate, sinusoids};
use super::{Error, SelfAttention, Weights};

/// How a model is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Names of layers whose own attention is left out: a converted model has no `attn1` weights there, and a
    /// [`SelfAttention`] that asks for the original gets an error.
    pub replaced: BTreeSet<String>,
}

/// A UNet.
pub struct UNet {
    place: Place,
    config: UNetConfig,
    plan: Plan,
    conv_in: Conv,
    time_1: Linear,
    time_2: Linear,
    /// Of the added embedding, where the model has one.
    added: Option<(Linear, Linear)>,
    down: Vec<Stage>,
    mid: Option<Stage>,
    up: Vec<Stage>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

/// What the modules of one forward pass share.
struct Pass<'a> {
    activation: Activation,
    /// The time embedding after the resnets' activation: [B, dim].
    time: Tensor,
    text: Text,
    layers: Layers<'a>,
}

impl UNet {
    /// Loads a model.
    ///
    /// # Errors
    /// Weights that cannot be read, or that are not those of the configuration.
    pub fn load(config: &UNetConfig, weights: &mut Weights, options: &LoadOptions) -> Result<Self, Error> {
        let place = weights.place().clone();
        let plan = config.plan();
        let mut builder = Builder { config, weights, options };
        let first = config.time.channels;
        let stages = |builder: &mut Builder<'_>, stages: &[deltaconv_proto::teacher::Stage], down| {
            stages.iter().map(|stage| Stage::load(builder, stage, down)).collect::<Result<Vec<_>, Error>>()
        };
        Ok(Self {
            conv_in: builder.weights.conv("conv_in", (config.in_channels, first), config.conv_in_kernel)?,
            time_1: builder.weights.linear("time_embedding.linear_1", first, config.time.dim)?,
            time_2: builder.weights.linear("time_embedding.linear_2", config.time.dim, config.time.dim)?,
            added: match config.added {
                Some(added) => Some((
                    builder.weights.linear("add_embedding.linear_1", added.input, config.time.dim)?,
                    builder.weights.linear("add_embedding.linear_2", config.time.dim, config.time.dim)?,
                )),
                None => None,
            },
            down: stages(&mut builder, &plan.down, true)?,
            mid: plan.mid.as_ref().map(|stage| Stage::load(&mut builder, stage, false)).transpose()?,
            up: stages(&mut builder, &plan.up, false)?,
            norm_out: builder.group_norm("conv_norm_out", first, config.norm_eps)?,
            conv_out: builder.weights.conv("conv_out", (first, config.out_channels), config.conv_out_kernel)?,
            config: config.clone(),
            plan,
            place,
        })
    }

    /// Where it is computed.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The configuration that the model was built from.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The modules of the model.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What the model predicts: [B, out_channels, H, W] f32, on the model's device.
    ///
    /// `sample` [B, in_channels, H, W], `timestep` [B] (or one element, for the whole batch; integers or floats),
    /// of `conditions` the text; any float dtype and device. On the processor a sample's result has the same bits whatever
    /// batch it is in and however many threads compute it; on a GPU, in batches of one size on devices of one kind.
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
        let mut pass = Pass {
            activation: self.config.activation,
            time: activate(&self.embed_time(timestep, conditions, batch)?, self.config.activation)?,
            text: conditions.text(batch, &self.place)?,
            layers: Layers { rest: layers.iter(), attention },
        };

        let mut x = self.place.take(&sample.permute((0, 2, 3, 1))?)?;
        if self.config.center_input_sample {
            x = x.affine(2.0, -1.0)?;
        }
        x = self.conv_in.forward(&x)?;
        let mut skips = vec![x.clone()];
        for stage in &self.down {
            x = stage.down(x, &mut skips, &mut pass)?;
        }
        if let Some(stage) = &self.mid {
            x = stage.mid(x, &mut pass)?;
        }
        let follows_skips = self.config.follows_skips(height, width);
        for stage in &self.up {
            x = stage.up(x, &mut skips, follows_skips, &mut pass)?;
        }
        let x = self.norm_out.forward(&x, Some(self.config.activation))?;
        let x = self.conv_out.forward(&x)?;
        Ok(x.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(DType::F32)?)
    }

    /// [B, dim].
    fn embed_time(&self, timestep: &Tensor, conditions: &Conditions, batch: usize) -> Result<Tensor, Error> {
        let timesteps = of_each_sample(timestep, batch, "timestep")?;
        let time = &self.config.time;
        let embedding = self.time_1.forward(&sinusoids(&timesteps, time, &self.place)?)?;
        let mut embedding = self.time_2.forward(&activate(&embedding, self.config.activation)?)?;
        if let Some(activation) = time.post_activation {
            embedding = activate(&embedding, activation)?;
        }
        if let (Some(linears), Some(added)) = (&self.added, self.config.added) {
            embedding = embedding.add(&self.embed_added(linears, added, conditions, batch)?)?;
        }
        Ok(match time.final_activation {
            Some(activation) => activate(&embedding, activation)?,
            None => embedding,
        })
    }

    /// [B, dim], of the pooled text and the numbers about the picture.
    fn embed_added(
        &self,
        (first, second): &(Linear, Linear),
        added: AddedEmbedding,
        conditions: &Conditions,
        batch: usize,
    ) -> Result<Tensor, Error> {
        let given = |tensor: &Option<Tensor>, argument| match tensor {
            Some(tensor) if tensor.rank() == 2 && tensor.dim(0)? == batch => Ok(tensor.clone()),
            Some(tensor) => {
                let problem = format!("expected [{batch}, n], found {:?}", tensor.dims());
                Err(Error::Argument { argument, problem })
            }
            None => {
                let problem =
                    "the model takes it (`addition_embed_type` is text_time), and it was not given".to_owned();
                Err(Error::Argument { argument, problem })
            }
        };
        let text = self.place.take(&given(&conditions.text_embeds, "text_embeds")?)?;
        let numbers = host_f32(&given(&conditions.time_ids, "time_ids")?)?;
        let time = TimeEmbedding { channels: added.time_channels, ..self.config.time };
        let sinusoids = sinusoids(&numbers.flatten_all()?.to_vec1::<f32>()?, &time, &self.place)?;
        let both = Tensor::cat(&[&text, &sinusoids.reshape((batch, numbers.dim(1)? * added.time_channels))?], 1)?;
        if both.dim(1)? != added.input {
            let problem = format!(
                "with the sinusoids of {} numbers they are {} channels, expected {}",
                numbers.dim(1)?,
                both.dim(1)?,
                added.input
            );
            return Err(Error::Argument { argument: "text_embeds", problem });
        }
        // diffusers' `TimestepEmbedding`, whatever the model's activation.
        second.forward(&activate(&first.forward(&both)?, Activation::Silu)?)
    }
}
