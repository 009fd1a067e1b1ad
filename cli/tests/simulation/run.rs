//! One run, from its seed to its end.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use deltaconv_coordinator::simulation::Planted;
use tokio::runtime::Builder;

use crate::audit::Violation;
use crate::world::{Trace, World, lock};
use crate::{coordinator, faults, operator, worker};

/// Once faults stopped and operators bring back what failed, jobs are done within this time.
const ENOUGH: Duration = Duration::from_secs(600);

/// What came of a run.
pub(crate) struct Outcome {
    /// The first invariant that didn't hold.
    pub(crate) failure: Option<String>,
    /// Of all that happened; 0 where nobody looked.
    pub(crate) hash: u64,
    /// What came about of what must somewhere.
    pub(crate) seen: BTreeSet<&'static str>,
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
            let seen = lock(&world.audit).seen();
            Ok(Outcome { failure: world.failure(), hash: world.hash(), seen })
        })
    }));
    let failed = |failure: String| Outcome { failure: Some(failure), hash: 0, seen: BTreeSet::new() };
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
        world.spawn(operator::of_job(world.clone(), number));
    }
    world.spawn(operator::of_workers(world.clone()));
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
