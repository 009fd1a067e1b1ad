use deltaconv_proto::code::Code;
use deltaconv_proto::safetensors::Dtype;
use deltaconv_proto::{header, images, objects, pipeline, prompts, teacher, weights};

use super::{bytes, data};

/// Why a job can't be planned. Every message names the value and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the spec has a value that no job can have.
    #[error("{field} = {value} is not valid: {expected}")]
    Spec {
        /// The field, as in a job file.
        field: String,
        /// What it says.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// A URL of the spec can't be opened.
    #[error("{field}: {source}")]
    Url {
        /// The field, as in a job file.
        field: &'static str,
        /// What is wrong with it.
        source: Box<objects::Error>,
    },
    /// A file that every job needs is not there.
    #[error("no {key} under {url}: {remedy}")]
    Missing {
        /// The folder that was looked in.
        url: String,
        /// The file.
        key: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The store failed, or an object is larger than it could be.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// A safetensors header can't be trusted.
    #[error(transparent)]
    Header(#[from] header::Error),
    /// The teacher's weights can't be read.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// The teacher is none that can be converted, or its weights are not those of its configuration.
    #[error("{url}/{key}: {source}")]
    Teacher {
        /// The teacher's folder.
        url: String,
        /// The file at fault.
        key: String,
        /// What is wrong.
        source: Box<teacher::Error>,
    },
    /// The teacher predicts something else than one number for each of the latent's.
    #[error(
        "{url}: out_channels = {output} but in_channels = {input}; teachers that predict more than the noise aren't supported"
    )]
    OutputChannels {
        /// The teacher's folder.
        url: String,
        /// Channels that go in.
        input: usize,
        /// Channels that come out.
        output: usize,
    },
    /// A part of the teacher beside the denoiser can't be used.
    #[error(transparent)]
    Pipeline(#[from] Box<pipeline::Error>),
    /// The prompts can't be read.
    #[error(transparent)]
    PromptFile(#[from] prompts::Error),
    /// The images can't be used.
    #[error(transparent)]
    Images(#[from] images::Error),
    /// Nothing turns the teacher's latents into pictures.
    #[error(
        "{url} has no vae/config.json, and latents of {channels} channels are no pictures: the evaluation draws some, so \
         copy the model's vae folder there"
    )]
    NoVae {
        /// The teacher's folder.
        url: String,
        /// Channels of its latents.
        channels: usize,
    },
    /// The teacher has nothing to replace.
    #[error("{url}: the teacher has no self-attention layer, so there is nothing to convert")]
    NoLayers {
        /// The teacher's folder.
        url: String,
    },
    /// A file of the data lacks a tensor.
    #[error("{url}/{key} has no tensor `{tensor}`: it needs {expected}")]
    MissingTensor {
        /// The data's folder.
        url: String,
        /// The file.
        key: &'static str,
        /// The tensor.
        tensor: &'static str,
        /// What it would be.
        expected: String,
    },
    /// A tensor of the data is of another shape or type than the job needs.
    #[error("{url}/{key}: tensor `{tensor}` is {dtype} {shape:?}; expected {expected}")]
    Tensor {
        /// The data's folder.
        url: String,
        /// The file.
        key: &'static str,
        /// The tensor.
        tensor: &'static str,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// What it should be.
        expected: String,
    },
    /// prompts.json is not what it should be.
    #[error("{url}/{key}: {reason}")]
    Prompts {
        /// The data's folder.
        url: String,
        /// The file.
        key: &'static str,
        /// Why, and what to do.
        reason: String,
    },
    /// A latent names a prompt that there is no embedding of.
    #[error(
        "{url}/latents.safetensors: `prompt`[{row}] = {prompt}, but prompt_embeddings.safetensors has rows 0 to {last}; \
         correct the id, or add the embedding"
    )]
    PromptId {
        /// The data's folder.
        url: String,
        /// The latent.
        row: u64,
        /// Its prompt.
        prompt: i64,
        /// The last row that there is.
        last: u64,
    },
    /// A converted model's description can't be read.
    #[error("{url}/{key}: {reason}; the folder is no output of this version's `deltaconv`, or was changed")]
    Description {
        /// The model's folder.
        url: String,
        /// The file.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The job would store more than it may.
    #[error(
        "the job would store {} under {url}, more than max_storage = {}; most of it, {}, is written by stage {stage}: \
         {remedy}",
        bytes::spell(*planned), bytes::spell(*limit), bytes::spell(*written)
    )]
    Storage {
        /// The prefix.
        url: String,
        /// Bytes that would lie there at one time.
        planned: u64,
        /// Bytes that may.
        limit: u64,
        /// The stage that writes the most.
        stage: String,
        /// Bytes that it writes.
        written: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// The output's prefix belongs to something else.
    #[error("{url} holds {found}, {what}: choose another output folder, or empty this one")]
    OutputTaken {
        /// The prefix.
        url: String,
        /// The first object that was found there.
        found: String,
        /// What it is, or isn't.
        what: String,
    },
    /// The spec can't be written.
    #[error("the spec can't be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl From<pipeline::Error> for Error {
    fn from(error: pipeline::Error) -> Self {
        Self::Pipeline(Box::new(error))
    }
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Spec { .. } => Code::JobValue,
            Self::Url { source, .. } => source.code(),
            Self::Missing { key, .. } if data::FILES.contains(key) => Code::DataMissing,
            Self::Missing { .. } => Code::ModelFile,
            Self::Objects(error) => error.code(),
            Self::Header(error) => error.code(),
            Self::Weights(error) => error.code(),
            Self::Teacher { source, .. } => source.code(),
            Self::OutputChannels { .. } => Code::ConfigUnsupported,
            Self::Pipeline(error) => error.code(),
            Self::PromptFile(error) => error.code(),
            Self::Images(error) => error.code(),
            Self::NoVae { .. } => Code::NoVae,
            Self::NoLayers { .. } => Code::NoLayers,
            Self::MissingTensor { .. } | Self::Tensor { .. } => Code::DataTensor,
            Self::Prompts { .. } => Code::PromptsJson,
            Self::PromptId { .. } => Code::PromptId,
            Self::Description { .. } => Code::Description,
            Self::Storage { .. } => Code::Storage,
            Self::OutputTaken { .. } => Code::OutputTaken,
            Self::Json(_) => Code::Fault,
        }
    }

    /// Puts what to do next to an object that is not there; other failures stay as they are.
    pub(super) fn missing(error: objects::Error, key: &'static str, remedy: &'static str) -> Self {
        match error {
            objects::Error::NotFound { url, .. } => Self::Missing { url, key, remedy },
            other => Self::Objects(other),
        }
    }

    pub(super) fn teacher(url: &str, key: impl Into<String>, source: teacher::Error) -> Self {
        Self::Teacher { url: url.to_owned(), key: key.into(), source: Box::new(source) }
    }

    /// As [`Self::missing`], of a header.
    pub(super) fn missing_header(error: header::Error, key: &'static str, remedy: &'static str) -> Self {
        match error {
            header::Error::Objects(error) => Self::missing(error, key, remedy),
            other => Self::Header(other),
        }
    }
}
