//! The safetensors container: headers of files that nobody vouches for, and headers for files we stream out.
//!
//! Layout (<https://huggingface.co/docs/safetensors>): eight bytes, the header's length n as a little-endian integer;
//! n bytes of JSON; then the tensors' bytes, without gaps, to the end of the file. Only the first two parts are read
//! here, so a header can come from two range requests and no tensor is ever in memory for its sake.

mod dtype;
mod header;
mod writer;

pub use dtype::Dtype;
pub use header::{Header, TensorInfo, parse, parse_header, parse_length};
pub use writer::serialize_header;

use crate::brief::Brief;
use crate::code::Code;

/// Bytes before the JSON: its length.
pub const LENGTH_BYTES: u64 = 8;

/// The longest JSON header that is read, in bytes; the reference implementation's own limit.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The longest name of a tensor that is read, in bytes; diffusers' have some hundred.
pub const MAX_NAME_BYTES: usize = 1024;

/// The most dimensions of a tensor that is read: PyTorch has no more.
pub const MAX_DIMENSIONS: usize = 64;

/// Why bytes are not a safetensors header, or a header cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file ends before the length does.
    #[error("the file has {file_len} bytes; a safetensors file has at least 8: check that it was downloaded whole")]
    TooShort {
        /// The file's length in bytes.
        file_len: u64,
    },
    /// The length field says more than the format allows.
    #[error("the header claims {length} bytes, more than the limit of {MAX_HEADER_BYTES}: this is no safetensors file")]
    HeaderTooLong {
        /// What the length field says.
        length: u64,
    },
    /// The header would go past the end of the file.
    #[error("the header claims {length} bytes but the file has only {file_len}: it is cut off, or no safetensors file")]
    HeaderCutOff {
        /// What the length field says.
        length: u64,
        /// The file's length in bytes.
        file_len: u64,
    },
    /// The header is no JSON of the expected form.
    #[error("the header is not valid: {}", Brief(.0))]
    Json(#[from] serde_json::Error),
    /// The shape's element count times the dtype's size is no u64.
    #[error("tensor `{}`: shape {shape:?} of {dtype} has more bytes than can be counted", Brief(.name))]
    Overflow {
        /// The tensor.
        name: String,
        /// Its shape as given.
        shape: Vec<usize>,
        /// Its dtype.
        dtype: Dtype,
    },
    /// The offsets do not span the bytes that the shape needs.
    #[error(
        "tensor `{}`: data_offsets {start}..{end} do not hold shape {shape:?} of {dtype}, which is {bytes} bytes",
        Brief(.name)
    )]
    WrongSize {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its dtype.
        dtype: Dtype,
        /// Bytes the shape needs.
        bytes: u64,
        /// First byte, relative to the data section.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// Tensors overlap, or leave a hole.
    #[error(
        "tensor `{}` starts at byte {start} of the data section, but the tensors before it end at {expected}",
        Brief(.name)
    )]
    NotContiguous {
        /// The tensor.
        name: String,
        /// Where it says it starts.
        start: u64,
        /// Where it would have to start.
        expected: u64,
    },
    /// The tensors do not end where the file does.
    #[error(
        "the tensors end at byte {end} of the data section, but the file holds {data_len}: it is cut off, or has bytes appended"
    )]
    WrongEnd {
        /// Where the last tensor ends.
        end: u64,
        /// Bytes of the data section.
        data_len: u64,
    },
    /// A header to be written names one tensor twice.
    #[error("tensor `{}` is named twice: every tensor of a file needs a name of its own", Brief(.name))]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// A header to be written has a tensor with the name that the format keeps for its metadata.
    #[error("a tensor cannot be called `__metadata__`: the format keeps that name for itself")]
    ReservedName,
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::TooShort { .. }
            | Self::HeaderTooLong { .. }
            | Self::HeaderCutOff { .. }
            | Self::Json(_)
            | Self::Overflow { .. }
            | Self::WrongSize { .. }
            | Self::NotContiguous { .. }
            | Self::WrongEnd { .. }
            | Self::DuplicateName { .. }
            | Self::ReservedName => Code::WeightsDamaged,
        }
    }
}
