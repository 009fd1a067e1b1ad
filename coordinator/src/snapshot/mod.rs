//! The whole state as an object, so that a coordinator can be put in place of one whose disk is lost.
//!
//! A snapshot is taken piece by piece while the coordinator serves: the core's thread gives some records at a time, and what
//! becomes durable meanwhile follows them. So it has the state as it was when the last piece was written, whole.

mod keep;
#[cfg(test)]
mod tests;

use deltaconv_proto::code::Code;
use deltaconv_proto::objects::{self, Objects};
use futures::TryStreamExt;

use crate::archive::Writer;
use crate::core::{Handle, Unserved};
use crate::schedule::Export;
use crate::store::Journal;

pub(crate) use keep::Keeper;
pub use keep::Options;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The store failed.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// The coordinator stops.
    #[error(transparent)]
    Unserved(#[from] Unserved),
}

impl Error {
    /// Names the cause, and what helps.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Objects(error) => error.code(),
            Self::Unserved(error) => error.code(),
        }
    }
}

/// A snapshot by its key, which sorts by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Snapshot {
    /// When it was begun.
    pub(crate) unix_ms: u64,
    /// Of the state.
    pub(crate) identity: String,
}

impl Snapshot {
    /// Its key.
    pub(crate) fn key(&self) -> String {
        format!("snapshot-{:013}-{}.records", self.unix_ms, self.identity)
    }

    /// Reads a key. `None` for one that no snapshot has.
    pub(crate) fn parse(key: &str) -> Option<Self> {
        let (unix_ms, identity) = key.strip_prefix("snapshot-")?.strip_suffix(".records")?.split_once('-')?;
        let snapshot = Self { unix_ms: unix_ms.parse().ok()?, identity: identity.to_owned() };
        (snapshot.key() == key).then_some(snapshot)
    }

    /// All that lie there, the oldest first.
    pub(crate) async fn list(objects: &Objects) -> Result<Vec<Self>, objects::Error> {
        let keys = objects.listing().try_filter_map(|(key, _)| async move { Ok(Self::parse(&key)) });
        let mut snapshots: Vec<Self> = keys.try_collect().await?;
        snapshots.sort();
        Ok(snapshots)
    }
}

/// Writes everything that is durable to an object, and says how many records and bytes it has.
pub(crate) async fn take(core: &Handle, journal: &Journal, objects: &Objects, key: &str) -> Result<(u64, u64), Error> {
    let mut changes = journal.listen();
    let mut writer = Writer::new(objects, key).await?;
    let mut export = Export::default();
    loop {
        let piece = core.call(move |state, _, _| state.export(&mut export).map(|writes| (writes, export))).await?;
        let Some((writes, next)) = piece else { break };
        export = next;
        writer.write(&writes).await?;
        while let Ok(writes) = changes.try_recv() {
            writer.write(&writes).await?;
        }
    }
    // The last answer came after what it saw was durable, so that the changes are complete up to here.
    while let Ok(writes) = changes.try_recv() {
        writer.write(&writes).await?;
    }
    Ok(writer.finish().await?)
}
