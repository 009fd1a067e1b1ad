//! One run, from its seed to its end.

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use deltaconv_coordinator::schedule::{Effects, JobState, Now, State};
use deltaconv_coordinator::simulation::Planted;
use deltaconv_proto::ids::JobId;
use tokio::runtime::Builder;

use crate::audit::Violation;
use crate::world::{Trace, World, lock};
use crate::{coordinator, faults, job, worker};

/// Once faults stopped, jobs are over within this time.
const ENOUGH: Duration = Duration::from_secs(600);

/// What came of a run.
pub(crate) struct Outcome {
    /// The first invariant that didn't hold.
    pub(crate) failure: Option<String>,
    /// Of all that happened; 0 where nobody looked.
    pub(crate) hash: u64,
}

thread_local! {
    /// The last panic of this thread, on which a run is alone.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Has panics fail the run in which they happen, instead of being told.
pub(crate) fn catch_panics() {
    std::panic::set_hook(Box::new(|panic| PANIC.set(Some(panic.to_string()))));
}

/// Runs the world of this seed. The same seed gives the same run.
pub(crate) fn run(seed: u64, planted: Option<Planted>, trace: Trace) -> Outcome {
    let simulated = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
        runtime.block_on(async {
            let world = World::new(seed, planted, trace);
            tokio::select! {
                biased;
                () = world.failed.notified() => {}
                () = story(&world) => {}
            }
            Ok(Outcome { failure: world.failure(), hash: world.hash() })
        })
    }));
    let failed = |failure: String| Outcome { failure: Some(failure), hash: 0 };
    match simulated {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => failed(format!("no runtime: {}", std::io::Error::to_string(&error))),
        Err(_) => failed(format!("nothing panics: {}", panic().unwrap_or_default())),
    }
}

/// Where this thread panicked last, and why.
pub(crate) fn panic() -> Option<String> {
    PANIC.take()
}

async fn story(world: &Arc<World>) {
    world.spawn(coordinator::live(world.clone()));
    for slot in 0..world.slots.len() {
        world.spawn(worker::live(world.clone(), slot));
    }
    let jobs = world.draw(1..3);
    for number in 0..jobs {
        world.spawn(operate(world.clone(), number));
    }
    let lasting = Duration::from_millis(world.draw(10_000..60_000));
    faults::strike(world.clone(), lasting).await;
    faults::end(world);

    let stopped = world.now();
    while lock(&world.audit).accepted_jobs() < jobs as usize || !lock(&world.audit).is_over() {
        if world.now() > stopped + ENOUGH {
            let details = format!("{ENOUGH:?} later there is {}", lock(&world.audit).left());
            world.fail(Violation::new("every job ends once faults stop", details));
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    world.check(|audit, _| audit.promises_hold());
}

/// Submits a job, looks at it from time to time, and ends some.
async fn operate(world: Arc<World>, number: u64) {
    let (spec, plan) = job::draw(&world, number);
    world.pass(0..10_000).await;
    let job = loop {
        let (spec, plan) = (spec.clone(), plan.clone());
        let submitted = call(&world, move |state, now, effects| state.submit(spec, plan, now, effects)).await;
        match submitted {
            Some(Ok((job, _))) => break job,
            Some(Err(error)) => return world.fail(Violation::new("a job is accepted", error.to_string())),
            None => world.pass(100..1_000).await,
        }
    };
    world.trace(format_args!("{job} is accepted"));
    world.check(|audit, _| audit.accepted(&job));
    loop {
        world.pass(500..5_000).await;
        if world.chance(world.weather().own_failures / 10.0) {
            world.trace(format_args!("{job} is to be cancelled"));
            lock(&world.audit).is_cancelled(&job);
            let id = job.clone();
            let told = call(&world, move |state, now, effects| state.cancel(&id, now, effects)).await;
            if let Some(Ok(())) = told {
                world.check(|audit, _| audit.ended(&job, "cancelled"));
            }
        }
        let Some(state) = state_of(&world, &job).await else { continue };
        let state = match state {
            JobState::Running => continue,
            JobState::Done => "done",
            JobState::Failed(_) => "failed",
            JobState::Cancelled => "cancelled",
        };
        world.trace(format_args!("{job} is {state}"));
        return world.check(|audit, _| audit.ended(&job, state));
    }
}

async fn state_of(world: &World, job: &JobId) -> Option<JobState> {
    let id = job.clone();
    let state = call(world, move |state, _, _| state.job(&id).map(|job| job.state.clone())).await?;
    if state.is_none() {
        world.fail(Violation::new("no acknowledged change is lost", format!("{job} is not known any more")));
    }
    state
}

/// `None` when there is no coordinator, or it ended before it answered.
async fn call<R: Send + 'static>(
    world: &World,
    transition: impl FnOnce(&mut State, Now, &mut Effects) -> R + Send + 'static,
) -> Option<R> {
    let alive = lock(&world.alive).clone()?;
    tokio::select! {
        biased;
        () = alive.gone.cancelled() => None,
        answer = alive.coordinator.call(transition) => answer,
    }
}
