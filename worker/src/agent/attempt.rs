//! One attempt at a task, on a thread of its own.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deltaconv_proto::ids::{AttemptId, TaskId};
use deltaconv_proto::objects::Objects;
use deltaconv_proto::v1::{self, attempt_report};
use tokio::sync::mpsc;

use crate::accelerator::Accelerator;
use crate::models::Models;
use crate::shards::Cache;
use crate::task::{self, Context, Stop, Supervision};

/// How an attempt ended.
pub(super) enum Outcome {
    Done(v1::Done),
    Failed(v1::Failure),
    /// Stopped on request, with what it had reached safely stored.
    Released,
    /// Stopped because its lease was gone; nothing is to be said about it.
    Dropped,
}

/// An attempt, running or ended.
pub(super) struct Attempt {
    pub(super) lease: v1::Lease,
    supervision: Arc<Supervision>,
    pub(super) outcome: Option<Outcome>,
}

/// What attempts of one process share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) models: Arc<Models>,
    pub(super) accelerator: Accelerator,
    pub(super) cache: Cache,
    pub(super) checkpoint_interval: Duration,
    pub(super) ended: mpsc::UnboundedSender<(v1::Lease, Outcome)>,
}

impl Attempt {
    /// Begins the attempt. A start that makes no sense ends at once, as a failure.
    pub(super) fn start(lease: v1::Lease, spec: v1::TaskSpec, shared: &Shared) -> Self {
        let supervision = Arc::new(Supervision::default());
        let attempt = Self { lease: lease.clone(), supervision: supervision.clone(), outcome: None };
        let (shared, runtime) = (shared.clone(), tokio::runtime::Handle::current());
        let thread = std::thread::Builder::new().name("attempt".into()).spawn({
            let (lease, shared) = (lease.clone(), shared.clone());
            move || {
                let began = Instant::now();
                // A fault in one attempt must not take the others with it.
                let result =
                    std::panic::catch_unwind(AssertUnwindSafe(|| run(&lease, spec, supervision, &shared, runtime)));
                let outcome = outcome(result, began.elapsed());
                // The agent is gone only when the process ends.
                let _ = shared.ended.send((lease, outcome));
            }
        });
        if let Err(error) = thread {
            let message = format!("no thread for the attempt: {error}");
            let _ = shared.ended.send((lease, Outcome::Failed(v1::Failure { message, ..v1::Failure::default() })));
        }
        attempt
    }

    /// Has the attempt end at its next opportunity.
    pub(super) fn stop(&self, stop: Stop) {
        self.supervision.stop(stop);
    }

    /// What there is to say about it.
    pub(super) fn report(&self) -> v1::AttemptReport {
        let progress = self.supervision.progress();
        let state = match &self.outcome {
            None => attempt_report::State::Running(progress),
            Some(Outcome::Done(done)) => attempt_report::State::Done(done.clone()),
            Some(Outcome::Failed(failure)) => attempt_report::State::Failed(failure.clone()),
            Some(Outcome::Released | Outcome::Dropped) => attempt_report::State::Released(progress),
        };
        v1::AttemptReport { lease: Some(self.lease.clone()), state: Some(state) }
    }
}

fn run(
    lease: &v1::Lease,
    spec: v1::TaskSpec,
    supervision: Arc<Supervision>,
    shared: &Shared,
    runtime: tokio::runtime::Handle,
) -> Result<v1::Done, task::Error> {
    let task = TaskId::new(lease.task_id.clone())?;
    let attempt = AttemptId::new(lease.attempt_id.clone())?;
    let job = spec.job.ok_or(task::Error::Incomplete("job"))?;
    let plan = spec.plan.ok_or(task::Error::Incomplete("plan"))?;
    let kind = spec.kind.ok_or(task::Error::Incomplete("kind"))?;
    tracing::info!(%task, %attempt, epoch = lease.epoch, "attempt started");
    let context = Context {
        objects: Objects::open(&job.output_url)?,
        job,
        plan,
        latents: spec.latents,
        task,
        attempt,
        checkpoint_interval: shared.checkpoint_interval,
        models: shared.models.clone(),
        accelerator: shared.accelerator.clone(),
        cache: shared.cache.clone(),
        supervision,
        runtime,
    };
    let result = match kind {
        v1::task_spec::Kind::Synthesise(task) => crate::synthesise::run(&context, &task),
        v1::task_spec::Kind::Capture(task) => crate::capture::run(&context, &task),
        v1::task_spec::Kind::Distill(task) => crate::distill::run(&context, &task),
        v1::task_spec::Kind::Finetune(task) => crate::finetune::run(&context, &task),
        v1::task_spec::Kind::Evaluate(task) => crate::evaluate::run(&context, &task),
    };
    if matches!(result, Err(ref error) if !matches!(error, task::Error::Stopped(_))) {
        shared.accelerator.examine();
    }
    result
}

fn outcome(result: std::thread::Result<Result<v1::Done, task::Error>>, took: Duration) -> Outcome {
    match result {
        Ok(Ok(done)) => Outcome::Done(v1::Done { busy_seconds: took.as_secs_f64(), ..done }),
        Ok(Err(task::Error::Stopped(Stop::Release))) => Outcome::Released,
        Ok(Err(task::Error::Stopped(Stop::Fenced))) => Outcome::Dropped,
        Ok(Err(error)) => Outcome::Failed(error.failure()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            let message = format!("a fault in the worker: {}", text.unwrap_or_default());
            Outcome::Failed(v1::Failure { message, ..v1::Failure::default() })
        }
    }
}
