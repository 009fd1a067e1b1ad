//! Bugs that are planted to show that the simulation finds them. A build without the feature `planted-bugs` has none.

/// A bug. Each changes one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// Answers leave before what they promise is durable.
    AckBeforeDurable,
    /// An output is accepted whose lease is over.
    NoFenceOnComplete,
    /// Leases are counted on the clock that people set.
    LeaseByWallClock,
    /// A task that a leaving worker hands back counts as failed.
    PreemptionCountsAsFailure,
    /// A task whose output is accepted goes on, and its output is accepted again.
    DoubleCommit,
}

impl Planted {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::AckBeforeDurable,
        Self::NoFenceOnComplete,
        Self::LeaseByWallClock,
        Self::PreemptionCountsAsFailure,
        Self::DoubleCommit,
    ];
}
