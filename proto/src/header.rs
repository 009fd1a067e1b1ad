//! The header of a safetensors object in a store, by range requests: no tensor is read for its sake.

use bytes::Bytes;

use crate::code::Code;
use crate::objects::{self, Objects};
use crate::safetensors::{self, Header, LENGTH_BYTES, parse_header, parse_length};

/// Why a header can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object is missing, or the store failed.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// The bytes are no header, or one that lies.
    #[error("{url}/{key}: {source}")]
    Format {
        /// The prefix.
        url: String,
        /// The key below it.
        key: String,
        /// What is wrong with it.
        source: Box<safetensors::Error>,
    },
    /// The header is longer than what the object is meant to hold could need.
    #[error("{url}/{key}: the header claims {length} bytes, and at most {limit} are expected there")]
    TooLong {
        /// The prefix.
        url: String,
        /// The key below it.
        key: String,
        /// What the length field says.
        length: u64,
        /// The limit.
        limit: u64,
    },
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Objects(error) => error.code(),
            Self::Format { source, .. } => source.code(),
            Self::TooLong { .. } => Code::WeightsDamaged,
        }
    }
}

/// A header, and the file that it describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// The file's key.
    pub key: String,
    /// Where every tensor lies.
    pub header: Header,
    /// BLAKE3 of the header's bytes, those of its length included, in hex.
    pub digest: String,
    /// The file's length in bytes.
    pub file_len: u64,
}

/// Reads the header of an object, if it has at most `limit` bytes.
///
/// # Errors
/// [`Error`]: nothing of an object's size or header is believed unchecked.
pub async fn read(objects: &Objects, key: &str, limit: u64) -> Result<FileHeader, Error> {
    let at = || (objects.url().to_owned(), key.to_owned());
    let format = |source| {
        let (url, key) = at();
        Error::Format { url, key, source: Box::new(source) }
    };
    let file_len = objects.size(key).await?;
    let first = objects.get_range(key, 0, file_len.min(LENGTH_BYTES)).await?;
    let too_short = |_| format(safetensors::Error::TooShort { file_len });
    let first: [u8; 8] = first.as_ref().try_into().map_err(too_short)?;
    let length = parse_length(&first, file_len).map_err(format)?;
    if length > limit {
        let (url, key) = at();
        return Err(Error::TooLong { url, key, length, limit });
    }
    let json: Bytes = objects.get_range(key, LENGTH_BYTES, LENGTH_BYTES + length).await?;
    if json.len() as u64 != length {
        return Err(format(safetensors::Error::HeaderCutOff { length, file_len: LENGTH_BYTES + json.len() as u64 }));
    }
    let header = parse_header(&json, file_len).map_err(format)?;
    let digest = blake3::Hasher::new().update(&first).update(&json).finalize().to_hex().to_string();
    Ok(FileHeader { key: key.to_owned(), header, digest, file_len })
}
