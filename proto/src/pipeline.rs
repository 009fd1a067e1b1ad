//! The parts of a pipeline beside its denoiser: text encoders and VAE. Nothing here reads a weight.

use serde::Deserialize;

use crate::brief::Brief;
use crate::code::Code;
use crate::objects::{self, Objects};
use crate::safetensors::TensorInfo;
use crate::teacher::{self, ClipConfig, T5Config, Teacher, VaeConfig};
use crate::weights::{self, Files};

/// config.json and its like.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Of `model_index.json`.
const INDEX: &str = "model_index.json";
/// Numbers about the picture that SDXL is told: original size, crop, target size, two each.
pub const TIME_IDS: usize = 6;

/// Why a part can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// The weights can't be found, or their headers not trusted.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// A part is not there.
    #[error("no {key} under {url}: {remedy}")]
    Missing {
        /// The model's folder.
        url: String,
        /// The file.
        key: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A part is of another kind, or its weights are not those of its configuration.
    #[error("{url}/{key}: {source}")]
    Part {
        /// The model's folder.
        url: String,
        /// The file at fault.
        key: String,
        /// What is wrong.
        source: Box<teacher::Error>,
    },
    /// The parts don't fit each other.
    #[error("{url}/{key}: {reason}")]
    Unfit {
        /// The model's folder.
        url: String,
        /// The part.
        key: String,
        /// What doesn't fit.
        reason: String,
    },
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Objects(error) => error.code(),
            Self::Weights(error) => error.code(),
            Self::Missing { .. } => Code::ModelFile,
            Self::Part { source, .. } => source.code(),
            Self::Unfit { .. } => Code::PartsUnfit,
        }
    }
}

/// One part: its folder, what it is, and where its weights are.
#[derive(Debug, Clone)]
pub struct Part<C> {
    /// Its folder in the model's.
    pub folder: &'static str,
    /// What it is.
    pub config: C,
    /// Its weights.
    pub weights: Files,
}

/// The text encoders of a pipeline, each with its tokenizer.
#[derive(Debug, Clone)]
pub enum Text {
    /// Stable Diffusion's: one CLIP encoder, in `text_encoder` with `tokenizer`.
    Clip(Part<ClipConfig>),
    /// SDXL's: two CLIP encoders, the second in `text_encoder_2` with `tokenizer_2`, which gives the pooled embedding.
    ClipPair {
        /// In `text_encoder`.
        first: Part<ClipConfig>,
        /// In `text_encoder_2`.
        second: Part<ClipConfig>,
        /// Whether guidance goes away from zeros instead of from the empty prompt.
        zero_negative: bool,
    },
    /// PixArt's: T5, in `text_encoder` with `tokenizer`.
    T5 {
        /// The encoder.
        part: Part<T5Config>,
        /// Longest text that the pipeline takes, in tokens.
        tokens: usize,
    },
}

/// What of `model_index.json` changes the numbers.
#[derive(Deserialize)]
pub(crate) struct Index {
    #[serde(rename = "_class_name", default)]
    class: String,
    #[serde(default = "yes")]
    force_zeros_for_empty_prompt: bool,
}

/// diffusers' default.
fn yes() -> bool {
    true
}

impl Text {
    /// The text encoders that a denoiser's embeddings come from.
    ///
    /// # Errors
    /// A part that is missing, of another kind, or does not fit the denoiser.
    pub async fn read(folder: &Objects, denoiser: &Teacher) -> Result<Self, Error> {
        const FIRST: &str = "text_encoder";
        const SECOND: &str = "text_encoder_2";
        let unfit =
            |key: &str, reason: String| Error::Unfit { url: folder.url().to_owned(), key: key.to_owned(), reason };
        let expect = |key: &str, found: usize| match denoiser.text_channels() {
            Some(expected) if expected != found => {
                Err(unfit(key, format!("it makes embeddings of {found} channels, and the denoiser takes {expected}")))
            }
            _ => Ok(()),
        };
        match denoiser {
            Teacher::PixArt(_) => {
                let part = part(folder, FIRST, T5Config::parse, |config, _| config.tensors()).await?;
                expect(FIRST, part.config.channels)?;
                // The default of max_sequence_length of each pipeline's `__call__`.
                let alpha = read_index(folder).await?.is_some_and(|index| index.class == "PixArtAlphaPipeline");
                Ok(Self::T5 { part, tokens: if alpha { 120 } else { 300 } })
            }
            Teacher::UNet(unet) => {
                let clip = |config: &ClipConfig, _: &Files| config.tensors();
                let first = part(folder, FIRST, ClipConfig::parse, clip).await?;
                let Some(added) = unet.added else {
                    expect(FIRST, first.config.channels)?;
                    return Ok(Self::Clip(first));
                };
                let second = part(folder, SECOND, ClipConfig::parse, clip).await?;
                expect(SECOND, first.config.channels + second.config.channels)?;
                let Some(pooled) = second.config.projection else {
                    let reason = "it is a CLIPTextModel; the pooled embedding needs a CLIPTextModelWithProjection";
                    return Err(unfit(SECOND, reason.to_owned()));
                };
                if pooled + TIME_IDS * added.time_channels != added.input {
                    let reason = format!(
                        "its pooled embedding has {pooled} channels; with {TIME_IDS} numbers about the picture that is not \
                         the {} that the denoiser takes (projection_class_embeddings_input_dim)",
                        added.input
                    );
                    return Err(unfit(SECOND, reason));
                }
                let index = read_index(folder).await?;
                let zero_negative = index.map_or_else(yes, |index| index.force_zeros_for_empty_prompt);
                Ok(Self::ClipPair { first, second, zero_negative })
            }
        }
    }
}

/// The VAE of a pipeline whose latents are not the pictures themselves; `None` where there is no `vae` folder.
///
/// # Errors
/// A VAE of another kind, or that does not fit the denoiser.
pub async fn read_vae(folder: &Objects, denoiser: &Teacher) -> Result<Option<Part<VaeConfig>>, Error> {
    const VAE: &str = "vae";
    let tensors = |config: &VaeConfig, weights: &Files| config.tensors(has_old_names(|name| weights.tensor(name)));
    let part = match part(folder, VAE, VaeConfig::parse, tensors).await {
        Err(Error::Missing { .. }) => return Ok(None),
        part => part?,
    };
    let (found, expected) = (part.config.latent_channels, denoiser.latent_channels());
    if found != expected {
        let reason = format!("its latents have {found} channels, and the denoiser takes {expected}");
        return Err(Error::Unfit { url: folder.url().to_owned(), key: VAE.to_owned(), reason });
    }
    Ok(Some(part))
}

/// Whether a VAE's attention is called as diffusers called it before 0.17.
pub fn has_old_names<'a>(find: impl Fn(&str) -> Option<&'a TensorInfo>) -> bool {
    find("encoder.mid_block.attentions.0.query.weight").is_some()
}

/// None where there is no file.
pub(crate) async fn read_index(folder: &Objects) -> Result<Option<Index>, Error> {
    let json = match folder.get(INDEX, MAX_CONFIG_BYTES).await {
        Ok(json) => json,
        Err(objects::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    serde_json::from_slice(&json).map(Some).map_err(|error| Error::Unfit {
        url: folder.url().to_owned(),
        key: INDEX.to_owned(),
        reason: format!("it is not what diffusers writes ({})", Brief(&error)),
    })
}

async fn part<C>(
    folder: &Objects,
    name: &'static str,
    parse: impl Fn(&[u8]) -> Result<C, teacher::Error>,
    tensors: impl Fn(&C, &Files) -> Vec<(String, Vec<usize>)>,
) -> Result<Part<C>, Error> {
    let key = format!("{name}/config.json");
    let json = folder.get(&key, MAX_CONFIG_BYTES).await.map_err(|error| match error {
        objects::Error::NotFound { url, .. } => {
            let remedy = "the model's folder must hold it, or the job's data must come as latents with embeddings";
            Error::Missing { url, key: key.clone(), remedy }
        }
        other => other.into(),
    })?;
    let at =
        |key: &str, source| Error::Part { url: folder.url().to_owned(), key: key.to_owned(), source: Box::new(source) };
    let config = parse(&json).map_err(|source| at(&key, source))?;
    let stem = if name == "vae" { weights::DIFFUSERS } else { weights::TRANSFORMERS };
    let weights = Files::find(folder, name, stem).await?;
    teacher::check(|tensor| weights.tensor(tensor), tensors(&config, &weights))
        .map_err(|source| at(&weights.key, source))?;
    Ok(Part { folder: name, config, weights })
}
