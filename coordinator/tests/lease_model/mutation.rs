//! Bugs that the checker must find: they show that the properties can be broken.

use crate::model;

/// A bug. Each changes one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// An output is accepted whose lease ended while it was checked.
    NoFenceAtCommit,
    /// Reports are believed whose lease is over.
    NoFenceAtReport,
    /// Answers leave before what they promise is durable.
    AckBeforeDurable,
    /// A new epoch is counted in memory alone.
    EpochNotDurable,
    /// A new lease is known in memory alone.
    LeaseNotDurable,
    /// That an output is accepted is known in memory alone.
    CommitNotDurable,
    /// A coordinator that begins anew takes every lease back.
    RestartDropsLeases,
    /// A committed task may be leased again.
    CommittedGoesOn,
    /// An accepted output leaves the lease beside it standing.
    CommitKeepsSpare,
    /// A straggler is given one spare attempt after another.
    AnyNumberOfSpares,
}

impl Mutation {
    /// All of them.
    pub(crate) const ALL: [Self; 10] = [
        Self::NoFenceAtCommit,
        Self::NoFenceAtReport,
        Self::AckBeforeDurable,
        Self::EpochNotDurable,
        Self::LeaseNotDurable,
        Self::CommitNotDurable,
        Self::RestartDropsLeases,
        Self::CommittedGoesOn,
        Self::CommitKeepsSpare,
        Self::AnyNumberOfSpares,
    ];

    /// The property that it breaks first of all.
    pub(crate) fn breaks(self) -> &'static str {
        match self {
            Self::NoFenceAtCommit | Self::NoFenceAtReport => model::FENCED,
            Self::AckBeforeDurable | Self::LeaseNotDurable | Self::RestartDropsLeases => model::NOTHING_LOST,
            Self::EpochNotDurable => model::EPOCHS,
            Self::CommitNotDurable => model::STAYS_COMMITTED,
            Self::CommittedGoesOn | Self::CommitKeepsSpare => model::COMMITS_ONCE,
            Self::AnyNumberOfSpares => model::TWO_LEASES,
        }
    }
}
