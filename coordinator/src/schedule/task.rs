//! One task: what it is, who works on it, what came of it.

use std::time::Duration;

use deltaconv_proto::ids::{AttemptId, JobId, TaskId, WorkerId};
use deltaconv_proto::v1;

use super::shards::Shards;

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
    /// When it was given, as [`super::Now::monotonic`]; when the coordinator began, where that was later.
    pub since: Duration,
    /// When the lease ends unless it is renewed, as [`super::Now::monotonic`].
    pub deadline: Duration,
    /// The share of its shards' bytes that the worker's node held when it was leased. Unknown of other tasks than distill
    /// ones, and after a restart.
    pub held: Option<f64>,
    /// The step of the checkpoint that it was to go on from; 0 where there was none, and after a restart.
    pub(super) from: u64,
    /// The part of the task that was done when its first report came.
    pub began_at: Option<f64>,
    /// The last report.
    pub progress: Option<Box<v1::Progress>>,
    /// Whether the reported output is being checked.
    pub verifying: bool,
}

/// Where a task stands.
#[derive(Clone, Debug)]
pub enum Phase {
    /// Nobody works on it.
    Pending,
    /// Somebody does: one attempt, or a spare one beside it that came later.
    Leased(Vec<Leased>),
    /// Its output is accepted.
    Committed,
    /// It failed too often, and is given to nobody until an operator says so.
    Quarantined,
}

/// Why an attempt at a task ended without an output, by its own fault.
#[derive(Clone, Debug, PartialEq)]
pub struct Failed {
    /// Where it ran; empty where that isn't known any more.
    pub node: String,
    /// What it said.
    pub message: String,
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
    /// Those of them that failed by the task's own fault, as it seems, since an operator last had it tried again.
    pub failures: Vec<Failed>,
    /// How many of them ended with their worker, since the last checkpoint.
    pub lost: u32,
    /// What was last wrong with it.
    pub last_failure: String,
    /// How often a range of it was found broken.
    pub recaptures: u32,
    /// Where the next attempt can go on.
    pub checkpoint: Option<Box<v1::Checkpoint>>,
    /// Of a capture task: the shards that stand, by layer.
    pub(super) shards: Shards,
    /// Of a synthesise task, once committed.
    pub synthesised: Option<Box<v1::SynthesiseOutput>>,
    /// Of a distill task, once committed.
    pub distilled: Option<Box<v1::DistillOutput>>,
    /// Of a finetune task, once committed.
    pub finetuned: Option<Box<v1::FinetuneOutput>>,
    /// Of an evaluate task, once committed.
    pub evaluated: Option<Box<v1::EvaluateOutput>>,
    /// Time that workers spent on accepted work.
    pub busy_seconds: f64,
    /// Of it, by workers with a GPU.
    pub gpu_seconds: f64,
    /// Samples of accepted work.
    pub samples: u64,
    /// What it costs beside its peers, in no unit: the longest begin first, so that none is left alone at the end.
    pub(super) rank: u64,
}

impl Task {
    pub(super) fn new(id: TaskId, job: JobId, kind: Kind) -> Self {
        Self {
            id,
            job,
            kind,
            phase: Phase::Pending,
            attempts: 0,
            failures: Vec::new(),
            lost: 0,
            last_failure: String::new(),
            recaptures: 0,
            checkpoint: None,
            shards: Shards::default(),
            synthesised: None,
            distilled: None,
            finetuned: None,
            evaluated: None,
            busy_seconds: 0.0,
            gpu_seconds: 0.0,
            samples: 0,
            rank: 0,
        }
    }

    /// The latents of a committed synthesise task.
    pub fn latents(&self) -> Option<&v1::ObjectRef> {
        self.synthesised.as_ref()?.latents.as_ref()
    }

    /// Whether it trains the block of this layer, by its position in the plan.
    pub(super) fn is_of_layer(&self, index: usize) -> bool {
        matches!(self.kind, Kind::Distill { layer, .. } if layer == index)
    }

    /// Whether its output is accepted.
    pub fn is_committed(&self) -> bool {
        matches!(self.phase, Phase::Committed)
    }

    /// The leases that stand.
    pub fn leases(&self) -> &[Leased] {
        match &self.phase {
            Phase::Leased(leases) => leases,
            Phase::Pending | Phase::Committed | Phase::Quarantined => &[],
        }
    }

    /// The first lease, if somebody works on it.
    pub fn leased(&self) -> Option<&Leased> {
        self.leases().first()
    }

    /// The standing lease that a message names.
    pub fn held_by(&self, lease: &v1::Lease) -> Option<&Leased> {
        self.leases().iter().find(|leased| leased.is(lease))
    }

    pub(super) fn held_by_mut(&mut self, lease: &v1::Lease) -> Option<&mut Leased> {
        match &mut self.phase {
            Phase::Leased(leases) => leases.iter_mut().find(|leased| leased.is(lease)),
            Phase::Pending | Phase::Committed | Phase::Quarantined => None,
        }
    }

    /// A lease as messages carry it.
    pub(super) fn message(&self, leased: &Leased) -> v1::Lease {
        v1::Lease { task_id: self.id.to_string(), attempt_id: leased.attempt.to_string(), epoch: leased.epoch }
    }

    /// Whether nobody works on it and somebody may.
    pub(super) fn is_pending(&self) -> bool {
        matches!(self.phase, Phase::Pending)
    }

    /// Whether it is given to nobody.
    pub fn is_quarantined(&self) -> bool {
        matches!(self.phase, Phase::Quarantined)
    }
}

impl Leased {
    /// Whether a message names this lease.
    pub(super) fn is(&self, lease: &v1::Lease) -> bool {
        self.attempt.as_str() == lease.attempt_id && self.epoch == lease.epoch
    }

    /// Takes what the worker reported.
    pub(super) fn report(&mut self, progress: &v1::Progress) {
        if self.began_at.is_none() && progress.steps > 0 {
            self.began_at = Some(progress.step as f64 / progress.steps as f64);
        }
        self.progress = Some(Box::new(progress.clone()));
    }
}
