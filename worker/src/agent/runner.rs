//! What runs attempts, as the agent sees it.

use std::future::Future;
use std::time::Duration;

use deltaconv_proto::v1;
use tokio::sync::mpsc;

pub use crate::task::Stop;

/// How an attempt ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// With an output.
    Done(v1::Done),
    /// By a fault.
    Failed(v1::Failure),
    /// Stopped on request, with what it had reached safely stored.
    Released,
    /// Stopped because its lease was gone; nothing is to be said about it.
    Dropped,
}

/// Tells the agent how an attempt ended.
#[derive(Debug)]
pub struct Ended {
    pub(super) lease: v1::Lease,
    pub(super) outcomes: mpsc::UnboundedSender<(v1::Lease, Outcome)>,
}

impl Ended {
    /// Tells it.
    pub fn tell(self, outcome: Outcome) {
        // The agent is gone only when the process ends.
        let _ = self.outcomes.send((self.lease, outcome));
    }
}

/// Runs attempts beside the agent.
pub trait Runner: Send {
    /// One that runs or has ended.
    type Attempt: Attempt;

    /// Begins an attempt, which makes a checkpoint at least every `checkpoint_interval` and tells `ended` of its end. One
    /// that makes no sense ends at once, as a failure.
    fn start(
        &self,
        lease: &v1::Lease,
        spec: v1::TaskSpec,
        checkpoint_interval: Duration,
        ended: Ended,
    ) -> Self::Attempt;

    /// What this node holds of what tasks read.
    fn cache(&self) -> impl Future<Output = v1::NodeCache> + Send;

    /// Waits until there is something that the coordinator is to know at once: a checkpoint, without which the work before it
    /// is lost with this worker.
    fn news(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// What there is of the logs that are wanted.
    fn logs(&self, wanted: &[v1::LogWanted]) -> Vec<v1::LogPiece> {
        let _ = wanted;
        Vec::new()
    }

    /// How busy this machine is, as far as that is known.
    fn load(&self) -> Option<v1::Load> {
        None
    }

    /// What its device said when it failed for good; none while it works.
    fn device_error(&self) -> Option<String> {
        None
    }
}

/// An attempt, from outside.
pub trait Attempt: Send {
    /// Has it end at its next opportunity.
    fn stop(&self, stop: Stop);

    /// How far it is.
    fn progress(&self) -> v1::Progress;
}
