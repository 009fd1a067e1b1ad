//! Records of the state as one object: what snapshots and manifests are.
//!
//! ```text
//! "deltaconv records\n"  version byte
//! as a record:           key "release", a version byte and the release that wrote it; archives of before it was said have none
//! for each record:       length of its key, key, 0 if it was removed or 1 + length of its value, value
//! 0                      after the last
//! BLAKE3 of all before   32 bytes
//! ```
//! Lengths are varints, as protobuf has them; keys and values are those of the state folder. A record that comes again takes the
//! place of the one before, so that records can be written while they change. Written and read in pieces: neither side holds
//! all of them at a time.

mod decode;
mod read;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
mod write;

use deltaconv_proto::code::Code;

use crate::store;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use decode::Decoder;
pub(crate) use read::{ReadError, read};
pub(crate) use write::Writer;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use write::encode;

pub(crate) const MAGIC: &[u8] = b"deltaconv records\n";
const DIGEST: usize = blake3::OUT_LEN;
/// Keys are tables and ids.
const LONGEST_KEY: usize = 1024;

/// Why an object's records can't be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something else.
    #[error("it is none of deltaconv's: it begins with {0:?}")]
    Foreign(String),
    /// Written by a later version, or by one that is too old.
    #[error("{}", store::format::unread("it", *found, by))]
    Version {
        /// The version byte.
        found: u8,
        /// The release that wrote it; empty where that isn't known.
        by: String,
    },
    /// It ends early.
    #[error("it ends after {0} bytes, in the middle")]
    Truncated(u64),
    /// Its bytes are not those that were written.
    #[error("its digest is not that of its bytes: it was altered")]
    Altered,
    /// A part of it can't be what was written.
    #[error("it is broken at byte {at}: {reason}")]
    Broken {
        /// Where.
        at: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A record of it isn't one.
    #[error(transparent)]
    Record(store::Error),
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        if self.is_later() { Code::LaterVersion } else { Code::ArchiveBroken }
    }

    /// Whether another version can read it.
    pub(crate) fn is_later(&self) -> bool {
        matches!(self, Self::Version { .. } | Self::Record(store::Error::Version { .. }))
    }
}
