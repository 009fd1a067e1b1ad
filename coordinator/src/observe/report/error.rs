use deltaconv_proto::code::Code;
use deltaconv_proto::{images, objects, prompts, safetensors, teacher};

use super::part::PartError;

/// Why a report can't be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An object is missing or broken, or the store failed.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// The prompts can't be read any more.
    #[error(transparent)]
    Prompts(#[from] prompts::Error),
    /// The images can't be read any more.
    #[error(transparent)]
    Images(#[from] images::Error),
    /// The header of a block can't be read any more.
    #[error("{key}: {source}")]
    Block {
        /// The object.
        key: String,
        /// What is wrong with it.
        source: safetensors::Error,
    },
    /// A part of the evaluation, or what a block says of its training, can't be read.
    #[error("{key}: {source}")]
    Part {
        /// The object.
        key: String,
        /// What is wrong with it.
        source: PartError,
    },
    /// A file is no JSON of the expected form.
    #[error("{key}: {source}")]
    File {
        /// The file.
        key: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The output's noise schedule can't be read.
    #[error("{key}: {source}")]
    Scheduler {
        /// The file.
        key: String,
        /// What is wrong with it.
        source: teacher::Error,
    },
    /// Assembly did not write an object that every output has.
    #[error("the output has no {key}: assemble the job again")]
    NotWritten {
        /// The object.
        key: String,
    },
    /// A layer has no block.
    #[error("{layer} has no block: the job's distill stage isn't done")]
    NoBlock {
        /// The layer.
        layer: String,
    },
    /// There is nothing to compare.
    #[error("the evaluation has {found}, so {missing} can't be computed")]
    NothingMeasured {
        /// What is there.
        found: &'static str,
        /// The figure.
        missing: &'static str,
    },
    /// The report can't be written as JSON.
    #[error("the report can't be written as JSON: {0}")]
    Json(serde_json::Error),
    /// The pictures can't be written as PNG.
    #[error("samples.png can't be written: {0}")]
    Png(#[from] png::EncodingError),
    /// The process is ending.
    #[error("rendering was interrupted: {0}")]
    Interrupted(String),
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Objects(error) => error.code(),
            Self::Prompts(error) => error.code(),
            Self::Images(error) => error.code(),
            Self::Block { .. } => Code::BlockTensors,
            Self::Part { source, .. } => source.code(),
            Self::File { .. } | Self::NotWritten { .. } => Code::EvaluationUnreadable,
            Self::Scheduler { source, .. } => source.code(),
            Self::NoBlock { .. } => Code::Blocks,
            Self::NothingMeasured { .. } => Code::NothingMeasured,
            Self::Json(_) | Self::Png(_) => Code::Fault,
            Self::Interrupted(_) => Code::Interrupted,
        }
    }
}
