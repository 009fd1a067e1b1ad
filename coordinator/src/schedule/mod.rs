//! The scheduling state machine: plain data and synchronous transitions. Time and events go in, durable writes and
//! commands come out; it has no IO, clock or randomness of its own.
//!
//! Whoever drives it must make the [`Effects::writes`] of a transition durable before its answer leaves the process,
//! and before its [`Effects::commands`] are carried out.

mod access;
mod blame;
mod bounded;
mod budget;
mod demand;
mod event;
mod events;
mod explain;
mod export;
mod history;
mod job;
mod lease;
mod offer;
mod operate;
mod placement;
mod queue;
mod read_only;
mod record;
mod restore;
mod retention;
mod shards;
mod since;
mod spare;
mod status;
mod step;
mod still;
mod task;
mod tasks;
mod totals;
mod width;
mod work;
mod worker;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use deltaconv_proto::code::Code;
use deltaconv_proto::ids::{JobId, TaskId, WorkerId};
use deltaconv_proto::v1;

pub use access::Enrolment;
pub(crate) use access::LOCAL;
pub use event::{Command, Effects, Now, Turn};
pub(crate) use events::KEPT;
pub use explain::Explanation;
pub use export::{Export, Over};
pub use job::{Job, JobState};
pub use restore::Restoring;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use restore::counts_almost_too_far;
pub use retention::Fate;
pub use status::Attempts;
pub use step::{Stage, Step};
pub use task::{Failed, Kind, Leased, Phase, Task};
pub use totals::{Census, Totals};
pub use worker::Worker;

use crate::planted::Planted;
use crate::store::Write;
use access::Access;
use blame::Node;
use events::Events;
use lease::Deadline;
use operate::Requests;
use placement::Placement;
use queue::Queue;
use tasks::{Slot, Tasks};

/// What an operator's or a worker's request is refused for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No job of this id.
    #[error("there is no job {0}; `deltaconv jobs` lists them")]
    UnknownJob(JobId),
    /// No task of this id.
    #[error("there is no task {0}; `deltaconv status JOB -o wide` lists a job's")]
    UnknownTask(TaskId),
    /// No worker of this id, name or machine.
    #[error("there is no worker {0:?}; `deltaconv workers` lists them with their names and machines")]
    UnknownWorker(String),
    /// Another job writes there.
    #[error("job {job} already writes to {url}; give this one another output, or wait for that one")]
    OutputInUse {
        /// The job that is there.
        job: JobId,
        /// Its output.
        url: String,
    },
    /// The job was asked to end, and has ended otherwise.
    #[error("job {job} is {state} already")]
    Ended {
        /// The job.
        job: JobId,
        /// How it ended.
        state: &'static str,
    },
    /// The name can't stand in ids and keys.
    #[error(transparent)]
    InvalidId(#[from] deltaconv_proto::ids::InvalidId),
    /// Nothing that could be revoked.
    #[error("there is no invitation or identity {0:?}; `deltaconv workers invitations` lists them")]
    UnknownIdentity(String),
    /// An invitation that is not made.
    #[error("no invitation was made: {0}")]
    Invitation(String),
    /// An invitation that is not taken.
    #[error("{0}; make another with `deltaconv workers invite`")]
    InvitationOver(String),
    /// An identity that is accepted no more.
    #[error("{0} was revoked, or ran out: the worker has to be invited again")]
    Revoked(String),
    /// A record from the store isn't one.
    #[error("the state holds a record that can't be read ({0}); restore it from a copy")]
    Record(String),
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::UnknownJob(_) | Self::UnknownTask(_) => Code::UnknownJob,
            Self::UnknownWorker(_) => Code::UnknownWorker,
            Self::OutputInUse { .. } => Code::OutputInUse,
            Self::Ended { .. } => Code::JobEnded,
            Self::UnknownIdentity(_) => Code::UnknownWorker,
            Self::Invitation(_) => Code::TooMany,
            Self::InvitationOver(_) => Code::InvitationOver,
            Self::Revoked(_) => Code::Revoked,
            Self::InvalidId(error) => error.code(),
            Self::Record(_) => Code::StateRecord,
        }
    }
}

/// How the state machine decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A lease that no report renews ends after this time.
    pub lease_ttl: Duration,
    /// A task that failed on this many machines, or so often where there is no other, is given to nobody any more; and so is a
    /// machine on which this many different tasks failed one after the other.
    pub max_failures: u32,
    /// A task that lost this many workers before its next checkpoint is given to nobody any more.
    pub max_lost: u32,
    /// A range that had to be captured again this often fails its job.
    pub max_recaptures: u32,
    /// A lost worker is forgotten after this time.
    pub forget_workers: Duration,
    /// Part of every attempt id; differs between coordinators with different states.
    pub identity: String,
    /// A bug, to see whether the simulation finds it.
    #[cfg(feature = "planted-bugs")]
    pub planted: Option<Planted>,
}

impl Settings {
    /// Those of a coordinator on the state of this identity.
    pub fn new(identity: impl Into<String>, lease_ttl: Duration) -> Self {
        Self {
            lease_ttl,
            max_failures: 3,
            max_lost: 5,
            max_recaptures: 3,
            forget_workers: Duration::from_secs(600),
            identity: identity.into(),
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }
}

/// Everything the coordinator knows.
#[derive(Debug)]
pub struct State {
    settings: Settings,
    meta: v1::MetaRecord,
    jobs: BTreeMap<JobId, Job>,
    tasks: Tasks,
    workers: BTreeMap<WorkerId, Worker>,
    /// By name; those of which nothing is to be said are not among them.
    nodes: BTreeMap<String, Node>,
    placement: Placement,
    queue: Queue,
    deadlines: BTreeSet<Deadline>,
    /// Workers that asked last and were given nothing.
    idle: BTreeSet<WorkerId>,
    /// Tasks whose attempts take too long, as last looked.
    stragglers: BTreeSet<Slot>,
    looked_for_stragglers: Duration,
    looked_for_still_jobs: Duration,
    requests: Requests,
    access: Access,
    events: Events,
    totals: Totals,
    /// What time it is for people, as last heard.
    unix_ms: u64,
    /// Why nothing can be made durable, while it can't.
    read_only: Option<Arc<str>>,
}

impl State {
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn is_planted(&self, bug: Planted) -> bool {
        self.settings.planted == Some(bug)
    }

    #[cfg(not(feature = "planted-bugs"))]
    pub(crate) fn is_planted(&self, _: Planted) -> bool {
        false
    }

    fn write_task(&self, slot: Slot, effects: &mut Effects) {
        effects.writes.push(Write::Task(Box::new(self.tasks[slot].record())));
    }

    fn write_job(&self, id: &JobId, effects: &mut Effects) {
        effects.writes.push(Write::Job(Box::new(bounded::fitting(self.jobs[id].record()))));
    }

    fn tasks_of<'a>(&'a self, job: &'a Job) -> impl Iterator<Item = &'a Task> {
        job.slots.iter().map(|slot| &self.tasks[slot])
    }
}
