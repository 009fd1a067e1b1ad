//! One task: what it is, who works on it, what came of it.

use std::collections::BTreeMap;
use std::time::Duration;

use deltaconv_proto::ids::{AttemptId, JobId, TaskId, WorkerId};
use deltaconv_proto::v1;

/// What a task does.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Makes one range of the job's latents.
    Synthesise {
        /// The latents.
        range: v1::SampleRange,
    },
    /// Records the activations of all layers for one range of samples.
    Capture {
        /// The round.
        round: u32,
        /// The samples.
        range: v1::SampleRange,
    },
    /// Trains the block of one layer.
    Distill {
        /// The round.
        round: u32,
        /// Index into the plan's layers.
        layer: usize,
    },
    /// Trains all blocks together.
    Finetune,
    /// Compares teacher and student on one part of the evaluation.
    Evaluate(v1::evaluate_task::Part),
}

/// A task that somebody works on.
#[derive(Clone, Debug)]
pub struct Leased {
    /// Part of the keys that the attempt writes.
    pub attempt: AttemptId,
    /// Fences earlier attempts off.
    pub epoch: u64,
    /// Who works on it.
    pub worker: WorkerId,
    /// When the lease ends unless it is renewed, as [`super::Now::monotonic`].
    pub deadline: Duration,
    /// The share of its shards' bytes that the worker's node held when it was leased. Unknown of other tasks than distill
    /// ones, and after a restart.
    pub held: Option<f64>,
    /// The last report.
    pub progress: Option<v1::Progress>,
    /// Whether the reported output is being checked.
    pub verifying: bool,
}

/// Where a task stands.
#[derive(Clone, Debug)]
pub enum Phase {
    /// Nobody works on it.
    Pending,
    /// Somebody does.
    Leased(Leased),
    /// Its output is accepted.
    Committed,
}

/// One unit of work that a worker leases.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// The job it belongs to.
    pub job: JobId,
    /// What it does.
    pub kind: Kind,
    /// Where it stands.
    pub phase: Phase,
    /// Leases so far.
    pub attempts: u32,
    /// How many of them failed by the task's own fault.
    pub failures: u32,
    /// What the last failure said.
    pub last_failure: String,
    /// How often a range of it was found broken.
    pub recaptures: u32,
    /// Where the next attempt can go on.
    pub checkpoint: Option<v1::Checkpoint>,
    /// Of a capture task: the shards that stand, by layer.
    pub shards: BTreeMap<String, v1::ObjectRef>,
    /// Of a synthesise task, once committed.
    pub synthesised: Option<v1::SynthesiseOutput>,
    /// Of a distill task, once committed.
    pub distilled: Option<v1::DistillOutput>,
    /// Of a finetune task, once committed.
    pub finetuned: Option<v1::FinetuneOutput>,
    /// Of an evaluate task, once committed.
    pub evaluated: Option<v1::EvaluateOutput>,
    /// Time that workers spent on accepted work.
    pub busy_seconds: f64,
    /// Of it, by workers with a GPU.
    pub gpu_seconds: f64,
    /// Samples of accepted work.
    pub samples: u64,
}

impl Task {
    pub(super) fn new(id: TaskId, job: JobId, kind: Kind) -> Self {
        Self {
            id,
            job,
            kind,
            phase: Phase::Pending,
            attempts: 0,
            failures: 0,
            last_failure: String::new(),
            recaptures: 0,
            checkpoint: None,
            shards: BTreeMap::new(),
            synthesised: None,
            distilled: None,
            finetuned: None,
            evaluated: None,
            busy_seconds: 0.0,
            gpu_seconds: 0.0,
            samples: 0,
        }
    }

    /// The latents of a committed synthesise task.
    pub fn latents(&self) -> Option<&v1::ObjectRef> {
        self.synthesised.as_ref()?.latents.as_ref()
    }

    /// Whether its output is accepted.
    pub fn is_committed(&self) -> bool {
        matches!(self.phase, Phase::Committed)
    }

    /// The lease, if somebody works on it.
    pub fn leased(&self) -> Option<&Leased> {
        match &self.phase {
            Phase::Leased(leased) => Some(leased),
            Phase::Pending | Phase::Committed => None,
        }
    }

    /// The lease as messages carry it.
    pub fn lease(&self) -> Option<v1::Lease> {
        self.leased().map(|leased| v1::Lease {
            task_id: self.id.to_string(),
            attempt_id: leased.attempt.to_string(),
            epoch: leased.epoch,
        })
    }

    /// Whether `lease` is the current one.
    pub fn holds(&self, lease: &v1::Lease) -> bool {
        self.leased().is_some_and(|l| l.attempt.as_str() == lease.attempt_id && l.epoch == lease.epoch)
    }
}
