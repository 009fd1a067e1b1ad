//! What a teacher is, from its configuration alone: its class, its tensors, its layers, its noise schedule.
//!
//! Everything here reads the JSON that diffusers writes beside the weights, and nothing here computes: the coordinator
//! plans a job and checks a model's safetensors header with it, the worker builds the model from the same walk. A
//! field of the configuration is honoured, or has no effect in diffusers, or is refused by name and value; a model
//! that would be built otherwise than diffusers builds it is never accepted.

mod clip;
mod fields;
mod pixart;
mod scheduler;
mod t5;
mod unet;
mod vae;

pub use clip::{ClipActivation, ClipConfig, ClipPooling};
pub use pixart::PixArtConfig;
pub use scheduler::{BetaSchedule, PredictionType, SOLVERS, Scheduler, TimestepSpacing};
pub use t5::T5Config;
pub use unet::{
    Activation, AddedEmbedding, Attention, MidBlock, Plan, Resnet, Stage, TimeEmbedding, TimeScaleShift, Transformer,
    UNetConfig,
};
pub use vae::{VaeConfig, attention_names};

use crate::brief::Brief;
use crate::code::Code;
use crate::safetensors::{Dtype, TensorInfo};

/// Why a configuration or a file of weights is not one that can be converted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is no JSON.
    #[error("the configuration is not JSON: {}", Brief(.0))]
    Json(#[from] serde_json::Error),
    /// The file is JSON, but no object.
    #[error("the configuration is {found}, not a JSON object")]
    NotAnObject {
        /// The value, shortened.
        found: String,
    },
    /// The model or scheduler is of a class that is not known.
    #[error("_class_name is `{found}`; supported: {supported}")]
    Class {
        /// The class named in the file.
        found: String,
        /// The classes that are known.
        supported: &'static str,
    },
    /// A field that the class does not have, so nobody knows what it would change.
    #[error("unknown field `{field}` = {value}: remove it if it does not change the model")]
    UnknownField {
        /// The field.
        field: String,
        /// Its value, shortened.
        value: String,
    },
    /// A field whose value changes the model in a way that is not implemented.
    #[error("`{field}` = {value} is not supported; supported: {supported}")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// Its value, shortened.
        value: String,
        /// What it may be.
        supported: &'static str,
    },
    /// A field that has a value of the wrong type, out of range, or at odds with another field.
    #[error("`{field}` = {value} is not valid: expected {expected}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// Its value, shortened.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// Latents of this size cannot go through the model.
    #[error("latents of {height}×{width} do not fit the model at `{at}`: {reason}")]
    MapSize {
        /// Latent height.
        height: usize,
        /// Latent width.
        width: usize,
        /// The module that cannot take its input.
        at: String,
        /// Why.
        reason: String,
    },
    /// The weights lack a tensor.
    #[error("the weights have no tensor `{name}`: they are incomplete, or the configuration is of another model")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` has shape {found:?}; the configuration makes it {expected:?}")]
    WrongShape {
        /// The tensor.
        name: String,
        /// The shape that follows from the configuration.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is not of floats.
    #[error("tensor `{name}` is of dtype {found}; weights must be F16, BF16, F32 or F64")]
    WrongDtype {
        /// The tensor.
        name: String,
        /// The dtype in the file.
        found: Dtype,
    },
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Json(_) | Self::NotAnObject { .. } | Self::Invalid { .. } => Code::ConfigDamaged,
            Self::Class { .. } => Code::ModelClass,
            Self::UnknownField { .. } => Code::ConfigField,
            Self::Unsupported { .. } => Code::ConfigUnsupported,
            Self::MapSize { .. } => Code::LatentSize,
            Self::MissingTensor { .. } | Self::WrongShape { .. } => Code::WeightsUnlikeConfig,
            Self::WrongDtype { .. } => Code::WeightsDtype,
        }
    }
}

/// One self-attention layer of a teacher, at one latent size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its diffusers module path, e.g. `down_blocks.0.attentions.0.transformer_blocks.0`.
    pub name: String,
    /// Its place in the order of the forward pass, from 0.
    pub index: usize,
    /// C of its input and output [B, H, W, C].
    pub channels: usize,
    /// Attention heads.
    pub heads: usize,
    /// H of its map.
    pub height: usize,
    /// W of its map.
    pub width: usize,
}

/// A pre-trained model, as its `config.json` describes it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Teacher {
    /// diffusers' `UNet2DConditionModel`, in the folder `unet`.
    UNet(UNetConfig),
    /// diffusers' `PixArtTransformer2DModel`, in the folder `transformer`.
    PixArt(PixArtConfig),
}

/// The classes that [`Teacher::parse`] knows.
const CLASSES: &str = "UNet2DConditionModel, PixArtTransformer2DModel";

impl Teacher {
    /// Reads a model's `config.json`.
    ///
    /// # Errors
    /// [`Error::Class`] for a class that is not known, and whatever is wrong with the configuration.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let fields = fields::Fields::parse(json)?;
        match fields.class()?.as_str() {
            "UNet2DConditionModel" => Ok(Self::UNet(UNetConfig::from_fields(fields)?)),
            // The second is what older files call it, and what diffusers then makes of them; it was other models' too,
            // and the fields tell.
            "PixArtTransformer2DModel" | "Transformer2DModel" => Ok(Self::PixArt(PixArtConfig::from_fields(fields)?)),
            found => Err(Error::Class { found: found.to_owned(), supported: CLASSES }),
        }
    }

    /// The name of diffusers' class.
    pub fn class(&self) -> &'static str {
        match self {
            Self::UNet(_) => "UNet2DConditionModel",
            Self::PixArt(_) => "PixArtTransformer2DModel",
        }
    }

    /// Width of the text embeddings that it attends to; none in a model without cross-attention.
    pub fn text_channels(&self) -> Option<usize> {
        match self {
            Self::UNet(config) => {
                let plan = config.plan();
                let mut transformers = plan.stages().flat_map(|stage| &stage.transformers);
                transformers.next().map(|transformer| transformer.attention.context)
            }
            Self::PixArt(config) => Some(config.text_channels()),
        }
    }

    /// Channels of what the model predicts.
    pub fn out_channels(&self) -> usize {
        match self {
            Self::UNet(config) => config.out_channels,
            Self::PixArt(config) => config.out_channels,
        }
    }

    /// Name and shape of every tensor that the model's weights must have.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        match self {
            Self::UNet(config) => config.tensors(),
            Self::PixArt(config) => config.tensors(),
        }
    }

    /// The layers in the order of the forward pass, for latents of `height` × `width`.
    ///
    /// # Errors
    /// [`Error::MapSize`] where latents of that size cannot go through the model.
    pub fn layers(&self, height: usize, width: usize) -> Result<Vec<Layer>, Error> {
        match self {
            Self::UNet(config) => config.layers(height, width),
            Self::PixArt(config) => config.layers(height, width),
        }
    }

    /// Whether the layers' projections to queries, keys and values have biases.
    pub fn attention_bias(&self) -> bool {
        match self {
            Self::UNet(_) => false,
            Self::PixArt(config) => config.attention_bias,
        }
    }

    /// Channels of the latents that go in.
    pub fn latent_channels(&self) -> usize {
        match self {
            Self::UNet(config) => config.in_channels,
            Self::PixArt(config) => config.in_channels,
        }
    }

    /// Height and width of the latents that the model was trained at, where the configuration says so.
    pub fn sample_size(&self) -> Option<(usize, usize)> {
        match self {
            Self::UNet(config) => config.sample_size,
            Self::PixArt(config) => Some((config.sample_size, config.sample_size)),
        }
    }

    /// Checks the model's weights, given by their headers' entries, against the configuration.
    ///
    /// Tensors that the model has no place for are not looked at, as in diffusers.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::WrongShape`] or [`Error::WrongDtype`] for the first tensor at fault.
    pub fn check<'a>(&self, find: impl Fn(&str) -> Option<&'a TensorInfo>) -> Result<(), Error> {
        check(find, self.tensors())
    }
}

/// Checks that what `find` looks up has these tensors, of floats.
///
/// # Errors
/// [`Error::MissingTensor`], [`Error::WrongShape`] or [`Error::WrongDtype`] for the first tensor at fault.
pub fn check<'a>(
    find: impl Fn(&str) -> Option<&'a TensorInfo>,
    tensors: impl IntoIterator<Item = (String, Vec<usize>)>,
) -> Result<(), Error> {
    for (name, expected) in tensors {
        let Some(found) = find(&name) else {
            return Err(Error::MissingTensor { name });
        };
        if found.shape != expected {
            return Err(Error::WrongShape { name, expected, found: found.shape.clone() });
        }
        if !found.dtype.is_weight() {
            return Err(Error::WrongDtype { name, found: found.dtype });
        }
    }
    Ok(())
}
