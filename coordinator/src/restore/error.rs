//! What keeps a state from being restored.

use std::convert::Infallible;
use std::path::PathBuf;

use deltaconv_proto::code::Code;
use deltaconv_proto::objects;

use crate::archive::ReadError;
use crate::{schedule, store};

/// Why there is no restored state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither snapshots nor jobs.
    #[error(
        "nothing is named to restore from: give --backup URL, --snapshots URL, or --job URL with the output of each job"
    )]
    NothingNamed,
    /// There is a state already.
    #[error("{folder} has a state ({found:?} is in it); give another --state, or move that one away")]
    State {
        /// The folder.
        folder: PathBuf,
        /// What was found first.
        found: String,
    },
    /// No snapshot lies there.
    #[error("{}", no_snapshot(url, named.as_deref()))]
    NoSnapshot {
        /// Where it was looked for.
        url: String,
        /// The key that was asked for.
        named: Option<String>,
    },
    /// No backup lies there.
    #[error(
        "{url} has no backups; give --backup the URL that `deltaconv coordinator backup` printed, or the folder above it"
    )]
    NoBackup {
        /// Where it was looked for.
        url: String,
    },
    /// A backup is not as it was written, or was never finished.
    #[error("the backup at {url} can't be used: {reason}")]
    Backup {
        /// Its folder.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A later version wrote the backup.
    #[error("the backup at {url} can't be used: {reason}")]
    LaterBackup {
        /// Its folder.
        url: String,
        /// Which version, and what helps.
        reason: String,
    },
    /// No manifests lie there.
    #[error(
        "{url} has no manifests of a job; --job takes a job's output, as its job file has it; a job of an earlier version \
         has none"
    )]
    NoManifests {
        /// The output.
        url: String,
    },
    /// Two outputs have a job of one name.
    #[error("{url} has job {job}, which {other} has, too; restore one of them alone")]
    Twice {
        /// The job.
        job: String,
        /// The one output.
        url: String,
        /// The other.
        other: String,
    },
    /// A snapshot or a manifest is not as it was written.
    #[error("{url}/{key} can't be read: {source}")]
    Archive {
        /// Where it lies.
        url: String,
        /// Its key there.
        key: String,
        /// What is wrong.
        source: crate::archive::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// The new state can't be written.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The records don't fit together.
    #[error(transparent)]
    Records(#[from] schedule::Error),
    /// The file system failed.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// The system has no random numbers.
    #[error("no random numbers: {0}")]
    Random(String),
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::NothingNamed => Code::NothingNamed,
            Self::State { .. } => Code::RestoreTaken,
            Self::NoBackup { .. } | Self::NoSnapshot { .. } | Self::NoManifests { .. } => Code::NothingToRestore,
            Self::Backup { .. } => Code::ArchiveBroken,
            Self::LaterBackup { .. } => Code::LaterVersion,
            Self::Twice { .. } => Code::JobTwice,
            Self::Archive { source, .. } => source.code(),
            Self::Objects(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Records(error) => error.code(),
            Self::Io { .. } => Code::File,
            Self::Random(_) => Code::NotStarted,
        }
    }

    /// Whether a backup is not what was written. One of a later version can still be read, by that version.
    pub(super) fn is_of_broken_backup(&self) -> bool {
        match self {
            Self::Backup { .. } => true,
            Self::Archive { source, .. } => !source.is_later(),
            Self::Objects(error) => error.is_missing(),
            _ => false,
        }
    }
}

fn no_snapshot(url: &str, named: Option<&str>) -> String {
    match named {
        Some(key) => format!("{url} has no snapshot {key:?}; without --snapshot the newest is taken"),
        None => format!(
            "{url} has no snapshots; give --snapshots as the coordinator had it, or restore from the jobs' manifests with \
             --job URL"
        ),
    }
}

impl From<ReadError<Self>> for Error {
    fn from(error: ReadError<Self>) -> Self {
        match error {
            ReadError::Objects(error) => error.into(),
            ReadError::Archive { url, key, source } => Self::Archive { url, key, source },
            ReadError::Taker(error) => error,
        }
    }
}

impl From<ReadError<store::Error>> for Error {
    fn from(error: ReadError<store::Error>) -> Self {
        match error {
            ReadError::Objects(error) => error.into(),
            ReadError::Archive { url, key, source } => Self::Archive { url, key, source },
            ReadError::Taker(error) => error.into(),
        }
    }
}

impl From<ReadError<Infallible>> for Error {
    fn from(error: ReadError<Infallible>) -> Self {
        match error {
            ReadError::Objects(error) => error.into(),
            ReadError::Archive { url, key, source } => Self::Archive { url, key, source },
        }
    }
}
