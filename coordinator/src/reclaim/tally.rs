//! What a removal came to.

use std::fmt::Display;

use deltaconv_proto::{keys, v1};

use crate::schedule::Fate;

/// What is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Activations,
    Latents,
    Checkpoints,
    Logs,
    OrphanedAttempts,
    InterruptedUploads,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Activations,
        Self::Latents,
        Self::Checkpoints,
        Self::Logs,
        Self::OrphanedAttempts,
        Self::InterruptedUploads,
    ];

    /// As what an object of this kind and fate is removed; `None` if it stays.
    pub(super) fn of(kind: keys::Kind, fate: Fate) -> Option<Self> {
        match (fate, kind) {
            (Fate::Stays, _) => None,
            (Fate::Orphaned, _) => Some(Self::OrphanedAttempts),
            (Fate::Spent, keys::Kind::Activations) => Some(Self::Activations),
            (Fate::Spent, keys::Kind::Latents) => Some(Self::Latents),
            (Fate::Spent, keys::Kind::Checkpoint) => Some(Self::Checkpoints),
            (Fate::Spent, keys::Kind::Log) => Some(Self::Logs),
            (Fate::Spent, keys::Kind::Block | keys::Kind::Start | keys::Kind::Evaluation) => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Activations => "activations",
            Self::Latents => "latents",
            Self::Checkpoints => "checkpoints",
            Self::Logs => "logs",
            Self::OrphanedAttempts => "orphaned attempts",
            Self::InterruptedUploads => "interrupted uploads",
        }
    }
}

/// How much was removed, and what wasn't.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Objects and bytes, by [`Kind`].
    removed: [(u64, u64); Kind::ALL.len()],
    /// A job that writes there is running, so that only what is orphaned went.
    pub(super) running: bool,
    /// Objects that are none of the job's.
    pub(super) unknown: u64,
    /// Objects that could not be removed.
    pub(crate) failed: u64,
    /// Why the first of them could not.
    pub(crate) failure: String,
}

impl Tally {
    pub(super) fn add(&mut self, kind: Kind, size: u64) {
        let (objects, bytes) = &mut self.removed[kind as usize];
        *objects += 1;
        *bytes += size;
    }

    pub(super) fn fail(&mut self, reason: &impl Display) {
        self.failed += 1;
        if self.failure.is_empty() {
            self.failure = reason.to_string();
        }
    }

    /// Objects and bytes of all kinds.
    pub(crate) fn total(&self) -> (u64, u64) {
        self.removed.iter().fold((0, 0), |sum, of_kind| (sum.0 + of_kind.0, sum.1 + of_kind.1))
    }

    /// As operators see it.
    pub(crate) fn message(self) -> v1::CollectGarbageResponse {
        let garbage = |kind: Kind| {
            let (objects, bytes) = self.removed[kind as usize];
            v1::Garbage { kind: kind.name().to_owned(), objects, bytes }
        };
        v1::CollectGarbageResponse {
            removed: Kind::ALL.map(garbage).to_vec(),
            running: self.running,
            unknown_objects: self.unknown,
            failed_objects: self.failed,
            failure: self.failure,
        }
    }
}
