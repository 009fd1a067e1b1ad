//! Attempts, each on a thread of its own.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deltaconv_proto::code::Code;
use deltaconv_proto::ids::{AttemptId, TaskId};
use deltaconv_proto::objects::{Allowed, Objects};
use deltaconv_proto::{bounds, v1};
use prost::Message;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::runner::{Attempt, Ended, Outcome, Runner};
use crate::accelerator::Accelerator;
use crate::load::Gauge;
use crate::logs::{self, Log};
use crate::models::Models;
use crate::shards::Cache;
use crate::task::{self, Context, Stop, Supervision};

/// A task of a kind that isn't known is handed back after this time: given to this worker again at once, it would come and go
/// without end.
const UNKNOWN: Duration = Duration::from_secs(10);

/// The end of an attempt waits no longer for its log.
const STORING: Duration = Duration::from_secs(5);

/// Runs each attempt on a thread of its own.
#[derive(Clone)]
pub(super) struct Threads {
    models: Arc<Models>,
    accelerator: Accelerator,
    cache: Cache,
    load: Arc<Gauge>,
    /// What people call this worker.
    worker: Arc<str>,
    stores: Arc<Allowed>,
    /// Notified of each checkpoint.
    news: Arc<Notify>,
}

impl Threads {
    /// Attempts of the worker of this name that share the accelerator and the cache, of jobs that name no other stores.
    pub(super) fn new(worker: &str, accelerator: Accelerator, cache: Cache, stores: Allowed) -> Self {
        let load = Arc::new(Gauge::of(&accelerator));
        Self {
            models: Arc::new(Models::default()),
            accelerator,
            cache,
            load,
            worker: worker.into(),
            stores: stores.into(),
            news: Arc::default(),
        }
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
        let supervision = Arc::new(Supervision::new(self.news.clone()));
        let outcomes = ended.outcomes.clone();
        let (shared, runtime) = (self.clone(), tokio::runtime::Handle::current());
        let thread = std::thread::Builder::new().name("attempt".into()).spawn({
            let (lease, supervision) = (lease.clone(), supervision.clone());
            move || {
                let began = Instant::now();
                let run = || run(&lease, spec, checkpoint_interval, supervision.clone(), &shared, runtime);
                // A fault in one attempt must not take the others with it.
                let result = std::panic::catch_unwind(AssertUnwindSafe(run));
                if matches!(result, Ok(Err(task::Error::UnknownKind))) {
                    supervision.rest(UNKNOWN);
                }
                let of_device = shared.accelerator.failure().is_some();
                ended.tell(outcome(result, supervision.stopped(), began.elapsed(), of_device));
            }
        });
        if let Err(error) = thread {
            let message = Code::NotStarted.before(format_args!("no thread for the attempt: {error}"));
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

    async fn news(&self) {
        self.news.notified().await;
    }

    fn logs(&self, wanted: &[v1::LogWanted]) -> Vec<v1::LogPiece> {
        logs::pieces(wanted)
    }

    fn load(&self) -> Option<v1::Load> {
        Some(self.load.read())
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
    let log = Log::of(&attempt);
    let _forget = Forget(attempt.clone());
    let span = tracing::info_span!(logs::SPAN, job = task.job(), %task, %attempt, worker = &*shared.worker);
    let _within = span.enter();
    let job = v1::JobSpec::decode(&*spec.job).map_err(|_| task::Error::Incomplete("job"))?;
    let plan = v1::JobPlan::decode(&*spec.plan).map_err(|_| task::Error::Incomplete("plan"))?;
    // Messages of later versions have kinds that this one reads as none.
    let kind = spec.kind.ok_or(task::Error::UnknownKind)?;
    bounds::check(&job, &plan)?;
    bounds::check_task(&kind, &spec.latents)?;
    tracing::info!(epoch = lease.epoch, "attempt started");
    shared.stores.check_job(&job)?;
    let objects = Objects::open(&job.output_url)?;
    let kept = log.clone().keep(objects.clone(), task.clone(), attempt.clone());
    let keeping = AbortOnDropHandle::new(runtime.spawn(kept));
    let context = Context {
        objects,
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
    match &result {
        Ok(done) => tracing::debug!(samples = done.samples, "attempt done"),
        Err(task::Error::Stopped(Stop::Release)) => tracing::debug!("attempt handed back"),
        // Whoever has the task now writes there.
        Err(task::Error::Stopped(Stop::Fenced)) => return result,
        Err(error) => tracing::debug!(%error, "attempt failed"),
    }
    drop(keeping);
    let Context { objects, task, attempt, runtime, .. } = &context;
    // A timeout is made where there is a clock.
    let stored = runtime.block_on(async { tokio::time::timeout(STORING, log.store(objects, task, attempt)).await });
    match stored {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the attempt's log can't be stored"),
        Err(_) => tracing::warn!(limit = ?STORING, "the attempt's log can't be stored in time"),
    }
    result
}

/// Forgets the log of an attempt that is over.
struct Forget(AttemptId);

impl Drop for Forget {
    fn drop(&mut self) {
        Log::forget(&self.0);
    }
}

/// What an attempt came to that may have been told to stop.
fn outcome(
    result: std::thread::Result<Result<v1::Done, task::Error>>,
    stopped: Option<Stop>,
    took: Duration,
    of_device: bool,
) -> Outcome {
    match (result, stopped) {
        (Ok(Ok(done)), _) => Outcome::Done(v1::Done { busy_seconds: took.as_secs_f64(), ..done }),
        (Ok(Err(task::Error::Stopped(stop))), _) => of_stop(stop),
        // It says nothing of the task, which others may know.
        (Ok(Err(error @ task::Error::UnknownKind)), stopped) => {
            tracing::warn!(code = %error.code(), %error, "a task is handed back; upgrade this worker");
            of_stop(stopped.unwrap_or(Stop::Release))
        }
        // Where a machine is taken away its network may be gone first. What was stored before is gone on from.
        (Ok(Err(error)), Some(stop)) => {
            tracing::warn!(%error, "an attempt that was told to stop did not end well");
            of_stop(stop)
        }
        (Ok(Err(error)), None) => Outcome::Failed(v1::Failure { of_device, ..error.failure() }),
        (Err(panic), _) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            let message = Code::Fault.before(format_args!("a fault in the worker: {}", text.unwrap_or_default()));
            Outcome::Failed(v1::Failure { message, of_device, ..v1::Failure::default() })
        }
    }
}

fn of_stop(stop: Stop) -> Outcome {
    match stop {
        Stop::Release => Outcome::Released,
        Stop::Fenced => Outcome::Dropped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_wrong_after_an_attempt_was_told_to_stop_is_no_failure() {
        let came_to = |stopped| {
            let error = task::Error::Incomplete("network");
            outcome(Ok(Err(error)), stopped, Duration::from_secs(1), false)
        };
        assert!(matches!(came_to(None), Outcome::Failed(_)));
        assert!(matches!(came_to(Some(Stop::Release)), Outcome::Released));
        assert!(matches!(came_to(Some(Stop::Fenced)), Outcome::Dropped));
        // And what a later version's task is, this one does not blame it for.
        let unknown = |stopped| outcome(Ok(Err(task::Error::UnknownKind)), stopped, Duration::from_secs(1), false);
        assert!(matches!(unknown(None), Outcome::Released));
        assert!(matches!(unknown(Some(Stop::Fenced)), Outcome::Dropped));
        let done = outcome(Ok(Ok(v1::Done::default())), Some(Stop::Release), Duration::from_secs(1), false);
        assert!(matches!(done, Outcome::Done(v1::Done { busy_seconds: 1.0, .. })), "{done:?}");
    }
}
