//! What goes in beside the events themselves, and what comes out.

use std::time::Duration;

use deltaconv_proto::ids::{AttemptId, JobId, TaskId, WorkerId};
use deltaconv_proto::v1;

use crate::store::Write;

/// The time of an event.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Since the process began; never goes back. Leases are counted on it.
    pub monotonic: Duration,
    /// For people. May jump.
    pub unix_ms: u64,
}

/// What must be done once the writes are durable.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Check what an attempt says it wrote, then call `verified`.
    Verify {
        /// The task whose output it is.
        task: TaskId,
        /// The lease under which it was reported.
        lease: v1::Lease,
        /// What the attempt was told to do, but for what the task reads.
        spec: Box<v1::TaskSpec>,
        /// Part of the keys that it may write.
        attempt: AttemptId,
        /// What was reported.
        done: Box<v1::Done>,
    },
    /// Put the blocks and the frozen rest together, then call `assembled`.
    Assemble(Turn),
    /// Write the report, then call `reported`.
    Report(Turn),
    /// Remove an object of the job that another took the place of.
    Discard {
        /// The job.
        job: JobId,
        /// Its key.
        key: String,
    },
    /// Write the manifests of what of the job is over and has none yet.
    Manifest(JobId),
    /// Remove what the job's retention doesn't keep, then call `reclaimed`.
    Reclaim(JobId),
    /// Tell people why nothing of a job moves.
    Say {
        /// The job.
        job: JobId,
        /// Why, and what would help.
        waiting: String,
    },
    /// Answer the worker's held Sync: there is something to say.
    Wake(WorkerId),
}

/// A job that failed may go on, and then has the same done again: what came of it before counts no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The job.
    pub job: JobId,
    /// How often it was had go on before.
    pub retries: u32,
}

/// The outcome of a transition.
#[derive(Debug, Default)]
pub struct Effects {
    /// To be made durable in one transaction before anything else.
    pub writes: Vec<Write>,
    /// To be carried out after that.
    pub commands: Vec<Command>,
}
