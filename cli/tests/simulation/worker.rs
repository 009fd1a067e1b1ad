//! The worker's processes on each machine, and the attempts that they run.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use deltaconv_proto::ids::{AttemptId, TaskId};
use deltaconv_proto::{digest, keys, v1};
use deltaconv_worker::agent::{self, Ended, Leaving, Outcome, Stop};
use tokio_util::sync::CancellationToken;

use crate::audit::Violation;
use crate::job;
use crate::network::{Cut, Link};
use crate::world::{World, lock};

/// How long a process has to leave.
const GRACE: Duration = Duration::from_secs(25);
const DEVICE_ERROR: &str = "the device has fallen off the bus";

/// A machine.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) health: Mutex<Health>,
}

/// What is wrong with a machine until it is mended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Health {
    /// Its device can't be used.
    pub(crate) device_broken: bool,
    /// Whatever is tried on it fails.
    pub(crate) faulty: bool,
}

/// Where there is a worker.
#[derive(Default)]
pub(crate) struct Slot {
    /// The position of its machine.
    pub(crate) node: usize,
    pub(crate) cut: Mutex<Cut>,
    /// What the process on it listens to.
    pub(crate) signals: Mutex<Signals>,
    /// Milliseconds that a step takes beyond the usual.
    pub(crate) slowness: Mutex<u64>,
    /// What its cache folder holds, which outlasts processes.
    cached: Mutex<Vec<u64>>,
}

impl Node {
    pub(crate) fn new(index: usize) -> Self {
        Self { name: format!("node {index}"), health: Mutex::default() }
    }
}

impl Slot {
    pub(crate) fn on(node: usize) -> Self {
        Self { node, ..Self::default() }
    }
}

/// Mends the machine. Where its device was broken its processes end for it.
pub(crate) fn mend(world: &World, node: usize) {
    let was = std::mem::take(&mut *lock(&world.nodes[node].health));
    world.trace(format_args!("{} is mended: {was:?}", world.nodes[node].name));
    for slot in world.slots.iter().filter(|slot| was.device_broken && slot.node == node) {
        lock(&slot.signals).killed.cancel();
    }
}

/// Ends of a process.
#[derive(Clone, Default)]
pub(crate) struct Signals {
    /// It is asked to leave.
    pub(crate) leave: CancellationToken,
    /// It is dead.
    pub(crate) killed: CancellationToken,
}

/// Starts a worker again whenever one ended.
pub(crate) async fn live(world: Arc<World>, slot: usize) {
    loop {
        let signals = Signals::default();
        *lock(&world.slots[slot].signals) = signals.clone();
        let link = Link { world: world.clone(), slot };
        let runner = Runner { world: world.clone(), slot, killed: signals.killed.clone() };
        let leaving = Leaving { grace: GRACE, when_idle: None };
        let ended = tokio::select! {
            biased;
            () = signals.killed.cancelled() => None,
            ended = agent::work(link, runner, leaving, signals.leave.clone()) => Some(ended),
        };
        world.trace(format_args!("slot {slot} ends: {ended:?}"));
        if let Some(Err(error)) = ended {
            world.fail(Violation::new("no worker is refused", error.to_string()));
        }
        signals.killed.cancel();
        world.pass(100..8_000).await;
    }
}

/// Runs attempts of one process.
struct Runner {
    world: Arc<World>,
    slot: usize,
    killed: CancellationToken,
}

/// An attempt, as its process sees it.
#[derive(Clone, Default)]
struct Attempt {
    progress: Arc<Mutex<v1::Progress>>,
    stop: Arc<Mutex<Option<Stop>>>,
}

impl agent::Runner for Runner {
    type Attempt = Attempt;

    fn start(&self, lease: &v1::Lease, spec: v1::TaskSpec, checkpoint_interval: Duration, ended: Ended) -> Attempt {
        let attempt = Attempt::default();
        let run = Run {
            world: self.world.clone(),
            slot: self.slot,
            attempt: attempt.clone(),
            lease: lease.clone(),
            checkpoint_interval,
        };
        let killed = self.killed.clone();
        self.world.spawn(async move {
            tokio::select! {
                biased;
                () = killed.cancelled() => {}
                outcome = run.run(spec) => ended.tell(outcome),
            }
        });
        attempt
    }

    async fn cache(&self) -> v1::NodeCache {
        let shards = lock(&self.world.slots[self.slot].cached).clone();
        v1::NodeCache { version: shards.len() as u64, shards }
    }

    fn device_error(&self) -> Option<String> {
        is_broken(&self.world, self.slot).then(|| DEVICE_ERROR.to_owned())
    }
}

fn is_broken(world: &World, slot: usize) -> bool {
    lock(&world.nodes[world.slots[slot].node].health).device_broken
}

impl agent::Attempt for Attempt {
    fn stop(&self, stop: Stop) {
        let mut stopped = lock(&self.stop);
        if *stopped != Some(Stop::Fenced) {
            *stopped = Some(stop);
        }
    }

    fn progress(&self) -> v1::Progress {
        lock(&self.progress).clone()
    }
}

/// What an attempt works with.
struct Run {
    world: Arc<World>,
    slot: usize,
    attempt: Attempt,
    lease: v1::Lease,
    checkpoint_interval: Duration,
}

/// What goes wrong by itself.
enum Fault {
    Own,
    Shard(v1::ObjectRef),
}

impl Run {
    /// Goes on from the checkpoint that it was given, step by step, and ends with an output that names it.
    async fn run(self, spec: v1::TaskSpec) -> Outcome {
        let Self { world, attempt, lease, .. } = &self;
        let (Some(kind), Ok(task), Ok(id)) =
            (&spec.kind, TaskId::new(lease.task_id.clone()), AttemptId::new(lease.attempt_id.clone()))
        else {
            world.fail(Violation::new("a start is whole", format!("{lease:?}")));
            return Outcome::Dropped;
        };
        let makes_checkpoints = matches!(kind, v1::task_spec::Kind::Distill(_) | v1::task_spec::Kind::Finetune(_));
        let (steps, resume) = (job::steps(kind), job::resume(kind));
        if let Some(object) = resume.and_then(|checkpoint| checkpoint.object.as_ref()) {
            world.check(|audit, _| audit.resumes(&object.key));
        }
        let began = world.now();
        let mut step = resume.map_or(0, |checkpoint| checkpoint.step);
        *lock(&attempt.progress) = v1::Progress { step, steps, checkpoint: resume.cloned(), ..v1::Progress::default() };
        let fault = self.fault(&spec);
        let fails_at = world.draw(step..steps.max(step + 1));
        let (mut stored, mut stored_at) = (step, world.now());
        loop {
            let stop = *lock(&attempt.stop);
            if stop == Some(Stop::Fenced) {
                return Outcome::Dropped;
            }
            let leaves = stop == Some(Stop::Release);
            let is_due = world.now() >= stored_at + self.checkpoint_interval;
            if makes_checkpoints && step > stored && step < steps && (is_due || leaves) {
                let key = keys::checkpoint(&task, &id, step);
                lock(&world.audit).stores(&key);
                let checkpoint = v1::Checkpoint { object: Some(job::object(&key)), step };
                lock(&attempt.progress).checkpoint = Some(checkpoint);
                (stored, stored_at) = (step, world.now());
            }
            if leaves {
                return Outcome::Released;
            }
            if is_broken(world, self.slot) {
                let message = DEVICE_ERROR.to_owned();
                return Outcome::Failed(v1::Failure { message, of_device: true, ..v1::Failure::default() });
            }
            if step >= steps {
                break;
            }
            if step == fails_at
                && let Some(fault) = fault
            {
                return self.failed(fault);
            }
            let time = Duration::from_millis(150 + *lock(&world.slots[self.slot].slowness));
            lock(&world.audit).takes_a_step(lease, step, time);
            tokio::time::sleep(time).await;
            step += 1;
            lock(&attempt.progress).step = step;
        }
        let done = v1::Done { busy_seconds: (world.now() - began).as_secs_f64(), ..job::done(kind, &task, &id) };
        self.keep(&done);
        Outcome::Done(done)
    }

    fn fault(&self, spec: &v1::TaskSpec) -> Option<Fault> {
        let weather = self.world.weather();
        let is_faulty = lock(&self.world.nodes[self.world.slots[self.slot].node].health).faulty;
        let is_cursed = self.world.is_cursed(&self.lease.task_id);
        if self.world.chance(weather.own_failures) || is_faulty || is_cursed {
            return Some(Fault::Own);
        }
        let read = match spec.kind.as_ref()? {
            v1::task_spec::Kind::Distill(task) => &task.shards,
            v1::task_spec::Kind::Capture(_) => &spec.latents,
            _ => return None,
        };
        let is_broken = !read.is_empty() && self.world.chance(weather.broken_shards);
        let shard = is_broken.then(|| &read[self.world.draw(0..read.len() as u64) as usize])?;
        shard.object.clone().map(Fault::Shard)
    }

    fn failed(&self, fault: Fault) -> Outcome {
        let broken_shard = match fault {
            Fault::Own => {
                lock(&self.world.audit).fails_by_itself(&self.lease);
                None
            }
            Fault::Shard(shard) => {
                let found = "0".repeat(64);
                Some(v1::BrokenShard { key: shard.key, expected_digest: shard.digest, found })
            }
        };
        Outcome::Failed(v1::Failure { message: "a fault of the task".into(), broken_shard, ..v1::Failure::default() })
    }

    /// What was written stays in the node's cache.
    fn keep(&self, done: &v1::Done) {
        if let Some(v1::done::Output::Capture(output)) = &done.output {
            let objects = output.shards.iter().filter_map(|shard| shard.object.as_ref());
            let prefixes = objects.filter_map(|object| digest::prefix(&object.digest));
            lock(&self.world.slots[self.slot].cached).extend(prefixes);
        }
    }
}
