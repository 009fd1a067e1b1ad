//! What a backup says of itself.

use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::protocol;
use serde::{Deserialize, Serialize};

use super::DESCRIPTION;
use crate::store;

/// Of the description: another one where a field loses its meaning.
const VERSION: u32 = 1;
/// A description has a thousandth of it.
const LARGEST: u64 = 1 << 20;

/// What lies in a backup's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    /// Of this file.
    version: u32,
    /// That wrote it.
    release: String,
    /// Of its records.
    format: u8,
    /// When it was begun.
    pub(crate) unix_ms: u64,
    /// Of the state.
    pub(crate) identity: String,
    /// How many there are.
    pub(crate) records: u64,
    /// What lay beside the database.
    pub(crate) files: Vec<File>,
    /// Names of what lay there, too.
    pub(crate) left_out: Vec<String>,
}

/// A file that lay beside the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct File {
    /// In the state's folder.
    pub(crate) name: String,
    /// In bytes.
    pub(crate) size: u64,
    /// BLAKE3, hex.
    pub(crate) digest: String,
}

/// What is understood of a description of any version.
#[derive(Deserialize)]
struct Head {
    version: u32,
    #[serde(default)]
    release: String,
    #[serde(default)]
    format: u8,
}

/// Why a backup can't be used.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// A later version wrote it. Says which, and what to do.
    Later(String),
    /// It is not as it was written. Says why.
    Broken(String),
    /// The store failed.
    Objects(objects::Error),
}

impl Description {
    /// That of a backup by this release.
    pub(super) fn new(unix_ms: u64, identity: String, records: u64, files: Vec<File>, left_out: Vec<String>) -> Self {
        let (release, format) = (protocol::RELEASE.to_owned(), store::VERSION);
        Self { version: VERSION, release, format, unix_ms, identity, records, files, left_out }
    }

    /// Reads that of the backup that `objects` are.
    pub(crate) async fn read(objects: &Objects) -> Result<Self, Unusable> {
        let json = match objects.get(DESCRIPTION, LARGEST).await {
            Ok(json) => json,
            Err(error) if error.is_missing() => return Err(Unusable::Broken("it was not finished".to_owned())),
            Err(error) => return Err(Unusable::Objects(error)),
        };
        let broken = |error: serde_json::Error| Unusable::Broken(format!("{DESCRIPTION}: {error}"));
        let Head { version, release, format } = serde_json::from_slice(&json).map_err(broken)?;
        if format > store::VERSION {
            return Err(Unusable::Later(store::format::unread("it", format, &release)));
        }
        if version > VERSION {
            let ours = protocol::RELEASE;
            return Err(Unusable::Later(format!(
                "deltaconv {release} wrote it in a way that this is too early for (deltaconv {ours}); install deltaconv \
                 {release} or a later one"
            )));
        }
        serde_json::from_slice(&json).map_err(broken)
    }
}
