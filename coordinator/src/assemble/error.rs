use deltaconv_proto::code::Code;
use deltaconv_proto::{objects, safetensors, weights};

use super::tensors;

/// Why a converted model can't be put together. Nothing that was visible before is lost by a failure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An object is missing or broken, or the store failed.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// The teacher's weights can't be read any more.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// The teacher is not the one that was planned and captured.
    #[error(
        "{url}/{key} changed since the job was planned: the digest of its header was {expected} and is {found}; \
         put the teacher back, or submit a new job for the new one"
    )]
    TeacherChanged {
        /// The teacher's folder.
        url: String,
        /// The file.
        key: String,
        /// From the plan.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The store gave fewer bytes than it was asked for.
    #[error("{url}/{key}: {found} bytes from {start} on, {expected} were asked for; was it replaced just now?")]
    Short {
        /// The folder.
        url: String,
        /// The file.
        key: String,
        /// First byte of the range.
        start: u64,
        /// Bytes asked for.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// There aren't as many blocks as layers, or not the same.
    #[error("the blocks are those of {found:?}; the plan's layers are {expected:?}")]
    Blocks {
        /// Names of the planned layers.
        expected: Vec<String>,
        /// Names of the layers whose blocks were given.
        found: Vec<String>,
    },
    /// The teacher's weights hold nothing that a block would replace.
    #[error("{url}/{key} has no tensor `{prefix}…`, which the block would replace")]
    NothingReplaced {
        /// The teacher's folder.
        url: String,
        /// The file.
        key: String,
        /// Prefix of the attention's tensors.
        prefix: String,
    },
    /// A block is not what its layer's plan says.
    #[error("{key}: {source}")]
    Block {
        /// The block's object.
        key: String,
        /// What is wrong with it.
        source: tensors::Error,
    },
    /// The header of a file to be written can't be.
    #[error("{key} can't be written: {source}")]
    WriteHeader {
        /// The file.
        key: String,
        /// Why.
        source: safetensors::Error,
    },
    /// What was written is not as long as it should be.
    #[error("{url}/{key} was written with {expected} bytes, and the store says it has {found}")]
    WrittenSize {
        /// The job's prefix.
        url: String,
        /// The file.
        key: String,
        /// Bytes written.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// The teacher's folder holds more than a model does.
    #[error("{url} holds more than {limit} files beside the denoiser; is it a model's folder?")]
    TooManyFiles {
        /// The teacher's folder.
        url: String,
        /// The limit.
        limit: usize,
    },
    /// The process is ending.
    #[error("checking {key} was interrupted: {reason}")]
    Interrupted {
        /// The object.
        key: String,
        /// What the runtime says.
        reason: String,
    },
    /// A description can't be written or read.
    #[error("{key}: {source}")]
    Json {
        /// The file.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Objects(error) => error.code(),
            Self::Weights(error) => error.code(),
            Self::TeacherChanged { .. } => Code::InputsChanged,
            Self::Short { .. } | Self::WrittenSize { .. } => Code::ObjectChanged,
            Self::Blocks { .. } | Self::NothingReplaced { .. } => Code::Blocks,
            Self::Block { source, .. } => source.code(),
            Self::WriteHeader { source, .. } => source.code(),
            Self::TooManyFiles { .. } => Code::TooManyFiles,
            Self::Interrupted { .. } => Code::Interrupted,
            Self::Json { .. } => Code::UnexpectedFile,
        }
    }
}
