//! Attempts, each on a thread of its own.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deltaconv_proto::ids::{AttemptId, TaskId};
use deltaconv_proto::objects::Objects;
use deltaconv_proto::v1;

use super::runner::{Attempt, Ended, Outcome, Runner};
use crate::accelerator::Accelerator;
use crate::models::Models;
use crate::shards::Cache;
use crate::task::{self, Context, Stop, Supervision};

/// Runs each attempt on a thread of its own.
#[derive(Clone)]
pub(super) struct Threads {
    models: Arc<Models>,
    accelerator: Accelerator,
    cache: Cache,
}

impl Threads {
    /// Attempts that share the accelerator and the cache.
    pub(super) fn new(accelerator: Accelerator, cache: Cache) -> Self {
        Self { models: Arc::new(Models::default()), accelerator, cache }
    }
}

impl Runner for Threads {
    type Attempt = Arc<Supervision>;

    fn start(
        &self,
        lease: &v1::Lease,
        spec: v1::TaskSpec,
        checkpoint_interval: Duration,
        ended: Ended,
    ) -> Self::Attempt {
        let supervision = Arc::new(Supervision::default());
        let outcomes = ended.outcomes.clone();
        let (shared, runtime) = (self.clone(), tokio::runtime::Handle::current());
        let thread = std::thread::Builder::new().name("attempt".into()).spawn({
            let (lease, supervision) = (lease.clone(), supervision.clone());
            move || {
                let began = Instant::now();
                let run = || run(&lease, spec, checkpoint_interval, supervision, &shared, runtime);
                // A fault in one attempt must not take the others with it.
                let result = std::panic::catch_unwind(AssertUnwindSafe(run));
                let of_device = shared.accelerator.failure().is_some();
                ended.tell(outcome(result, began.elapsed(), of_device));
            }
        });
        if let Err(error) = thread {
            let message = format!("no thread for the attempt: {error}");
            let ended = Ended { lease: lease.clone(), outcomes };
            ended.tell(Outcome::Failed(v1::Failure { message, ..v1::Failure::default() }));
        }
        supervision
    }

    async fn cache(&self) -> v1::NodeCache {
        let cache = self.cache.clone();
        // A fault in there says nothing, which costs time alone.
        tokio::task::spawn_blocking(move || cache.statement()).await.unwrap_or_default()
    }

    fn device_error(&self) -> Option<String> {
        self.accelerator.failure().map(str::to_owned)
    }
}

impl Attempt for Arc<Supervision> {
    fn stop(&self, stop: Stop) {
        Supervision::stop(self, stop);
    }

    fn progress(&self) -> v1::Progress {
        Supervision::progress(self)
    }
}

fn run(
    lease: &v1::Lease,
    spec: v1::TaskSpec,
    checkpoint_interval: Duration,
    supervision: Arc<Supervision>,
    shared: &Threads,
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
        checkpoint_interval,
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

fn outcome(result: std::thread::Result<Result<v1::Done, task::Error>>, took: Duration, of_device: bool) -> Outcome {
    match result {
        Ok(Ok(done)) => Outcome::Done(v1::Done { busy_seconds: took.as_secs_f64(), ..done }),
        Ok(Err(task::Error::Stopped(Stop::Release))) => Outcome::Released,
        Ok(Err(task::Error::Stopped(Stop::Fenced))) => Outcome::Dropped,
        Ok(Err(error)) => Outcome::Failed(v1::Failure { of_device, ..error.failure() }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            let message = format!("a fault in the worker: {}", text.unwrap_or_default());
            Outcome::Failed(v1::Failure { message, of_device, ..v1::Failure::default() })
        }
    }
}
