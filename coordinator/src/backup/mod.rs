//! All that a coordinator must not forget, as objects: its records as a snapshot has them, and what lies beside the database in the
//! state's folder. Made of one that runs and of one that doesn't; `restore` makes a state folder of it.
//!
//! ```text
//! backup-<time>-<identity>/
//!   state.records    every record
//!   files/<name>     what lies beside the database
//!   backup.json      what there is, with sizes and digests: written last, so that what has none is no backup
//! ```
//! Files are read before the records, so that they know of nothing that the records don't have: a webhook that was told of an event
//! too early would be told of none in its place.

mod describe;
mod files;
#[cfg(test)]
mod tests;
mod write;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use deltaconv_proto::code::Code;
use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::v1;
use tokio::sync::mpsc;

use crate::archive::Writer;
use crate::core::{Handle, Unserved};
use crate::snapshot;
use crate::store::{self, Journal, LocalStore, Store, Write};

pub(crate) use describe::{Description, File, Unusable};
pub(crate) use files::{is_name, key};
use write::Place;

/// Every record.
pub(crate) const RECORDS: &str = "state.records";
/// What there is.
pub(crate) const DESCRIPTION: &str = "backup.json";

/// Records that are given to be written together, and how many such pieces may wait.
const PIECE: usize = 1024;
const WAITING: usize = 4;

/// What is backed up of a coordinator that doesn't run, and to where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The state folder.
    pub state: PathBuf,
    /// URL of a folder, in which the backup gets one of its own.
    pub to: String,
    /// Tokens and keys, too, where that isn't a folder that its owner alone can read.
    pub with_secrets: bool,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No URL.
    #[error(
        "nothing says where the backup goes; name a folder or a bucket with --to URL, or start the coordinator with --snapshots"
    )]
    NoPlace,
    /// No state.
    #[error("there is no state in {0}; name the --state that the coordinator is started with")]
    NoState(PathBuf),
    /// A coordinator has it.
    #[error(
        "a coordinator runs on the state in {0}; have it make the backup, by `deltaconv coordinator backup --to URL` without --state"
    )]
    Running(PathBuf),
    /// The object store failed.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// The state can't be read.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The coordinator stops, or can't make anything durable.
    #[error(transparent)]
    Unserved(#[from] Unserved),
    /// The file system failed.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// The thread that reads the state ended early.
    #[error("the state was not read to its end")]
    GivenUp,
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::NoPlace => Code::BackupPlace,
            Self::NoState(_) => Code::NoStateThere,
            Self::Running(_) => Code::StateInUse,
            Self::Objects(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Unserved(error) => error.code(),
            Self::Io { .. } => Code::File,
            Self::GivenUp => Code::Interrupted,
        }
    }
}

impl From<snapshot::Error> for Error {
    fn from(error: snapshot::Error) -> Self {
        match error {
            snapshot::Error::Objects(error) => Self::Objects(error),
            snapshot::Error::Unserved(error) => Self::Unserved(error),
        }
    }
}

/// A backup by the name of its folder, which sorts by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    /// When it was begun.
    unix_ms: u64,
    /// Of the state.
    identity: String,
}

impl Name {
    fn text(&self) -> String {
        format!("backup-{:013}-{}", self.unix_ms, self.identity)
    }

    /// Reads a name. `None` for one that no backup has.
    fn parse(text: &str) -> Option<Self> {
        let (unix_ms, identity) = text.strip_prefix("backup-")?.split_once('-')?;
        let name = Self { unix_ms: unix_ms.parse().ok()?, identity: identity.to_owned() };
        (name.text() == text).then_some(name)
    }

    /// All that lie there, whole or not, the oldest first.
    async fn list(objects: &Objects) -> Result<Vec<Self>, objects::Error> {
        let folders = objects.folders().await?;
        let mut names: Vec<Self> = folders.iter().filter_map(|folder| Self::parse(folder)).collect();
        names.sort();
        Ok(names)
    }

    /// One that comes after those that lie there, whatever the clock says.
    async fn next(objects: &Objects, identity: &str) -> Result<Self, objects::Error> {
        let newest = Self::list(objects).await?.last().map_or(0, |newest| newest.unix_ms);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        Ok(Self { unix_ms: now.max(newest + 1), identity: identity.to_owned() })
    }
}

/// The backups that lie at a URL, the oldest first; or the one that the URL itself names.
pub(crate) async fn find(url: &str) -> Result<Vec<Objects>, objects::Error> {
    let objects = Objects::open(url)?;
    match objects.size(DESCRIPTION).await {
        Ok(_) => return Ok(vec![objects]),
        Err(error) if error.is_missing() => {}
        Err(error) => return Err(error),
    }
    Name::list(&objects).await?.iter().map(|name| objects.below(&name.text())).collect()
}

/// Backs a state up on which no coordinator runs.
///
/// # Errors
/// A state that is in use or none, or of a later version; what a store said. What was begun has no description then, and is no backup.
pub async fn backup(options: Options) -> Result<v1::BackupResponse, Error> {
    let Options { state, to, with_secrets } = options;
    if !state.join(store::IDENTITY).exists() {
        return Err(Error::NoState(state));
    }
    // Nobody else has it from here on.
    let store = LocalStore::open(&state, 0).map_err(|error| match error {
        store::Error::InUse(folder) => Error::Running(folder),
        error => Error::Store(error),
    })?;
    let begun = Place::begin(&to, store.identity(), &state, with_secrets).await;
    match begun {
        Ok(place) => {
            let (records, bytes) = stored(store, place.objects()).await?;
            place.finish(records, bytes).await
        }
        Err(error) => {
            store.close()?;
            Err(error)
        }
    }
}

/// Writes what is stored, and closes the store. Says how many records and bytes that are.
async fn stored(store: LocalStore, objects: &Objects) -> Result<(u64, u64), Error> {
    let (sender, mut pieces) = mpsc::channel::<Vec<Write>>(WAITING);
    let reading = tokio::task::spawn_blocking(move || {
        let (mut store, mut piece) = (store, Vec::new());
        let read = store.each(&mut |write| {
            piece.push(write);
            if piece.len() == PIECE {
                // Who gave up writing has said why.
                let _ = sender.blocking_send(std::mem::take(&mut piece));
            }
        });
        let _ = sender.blocking_send(piece);
        read.and(store.close())
    });
    let mut writer = Writer::new(objects, RECORDS).await?;
    while let Some(writes) = pieces.recv().await {
        writer.write(&writes).await?;
    }
    reading.await.map_err(|_| Error::GivenUp)??;
    Ok(writer.finish().await?)
}

/// Backs a coordinator up that runs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Backups {
    core: Handle,
    journal: Journal,
    state: PathBuf,
    identity: String,
    /// Where backups go of which nothing is said.
    snapshots: Option<String>,
}

impl Backups {
    /// Of the state that lies in the folder `state`, that `core` has and `journal` tells of.
    pub(crate) fn new(
        core: Handle,
        journal: Journal,
        state: PathBuf,
        identity: String,
        snapshots: Option<String>,
    ) -> Self {
        Self { core, journal, state, identity, snapshots }
    }

    /// Makes one. It has the state as it was when its last record was written.
    ///
    /// # Errors
    /// As [`backup`], and that the coordinator stops.
    pub(crate) async fn take(&self, request: v1::BackupRequest) -> Result<v1::BackupResponse, Error> {
        let v1::BackupRequest { url, with_secrets } = request;
        let to = match (url.as_str(), &self.snapshots) {
            ("", None) => return Err(Error::NoPlace),
            ("", Some(snapshots)) => snapshots.clone(),
            _ => url,
        };
        let place = Place::begin(&to, &self.identity, &self.state, with_secrets).await?;
        let (records, bytes) = snapshot::take(&self.core, &self.journal, place.objects(), RECORDS).await?;
        place.finish(records, bytes).await
    }
}
