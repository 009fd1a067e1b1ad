//! What must hold after every event. It is told what happens on the wire and what becomes durable, and knows nothing of how
//! the coordinator decides.

mod changes;
mod machines;

pub(crate) use changes::Change;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use deltaconv_coordinator::simulation::Planted;
use deltaconv_coordinator::store::Write;
use deltaconv_proto::digest;
use deltaconv_proto::ids::JobId;
use deltaconv_proto::keys::Written;
use deltaconv_proto::v1::{self, attempt_report::State as Report};

use crate::job;

pub(crate) const LEASE_TTL: Duration = Duration::from_secs(10);
pub(crate) const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(2);
pub(crate) const MAX_FAILURES: u32 = 3;
pub(crate) const MAX_RECAPTURES: u32 = 3;

const COMMITS_ONCE: &str = "a task commits once";
const NOTHING_LOST: &str = "no acknowledged change is lost";
const EPOCHS: &str = "no two live leases share an epoch";
const FENCED: &str = "a fenced attempt changes nothing";
const PREEMPTED: &str = "a preempted attempt is no failure";
const WHOLE_LEASE: &str = "a lease lasts its time";
const REPEATED: &str = "no more work is repeated than a checkpoint interval's";
const ENDS: &str = "a job ends for a reason";
const EVENTS: &str = "events follow each other";
const REMOVED: &str = "what is removed is needed no more";

/// What must come about somewhere, or the invariants about it say nothing.
pub(crate) const RARE: [&str; 8] = [SPARE, QUARANTINED, FAULTY, BROKEN, LOST, AGAIN, RETRIED, DRAINED];
const SPARE: &str = "a spare attempt";
const QUARANTINED: &str = "a task in quarantine";
const FAULTY: &str = "a machine that is out for failures";
const BROKEN: &str = "a machine that is out for its device";
const LOST: &str = "a lost worker";
const AGAIN: &str = "a request that came again";
const RETRIED: &str = "a job that goes on after it failed";
const DRAINED: &str = "a drained worker";

/// The invariant that the bug breaks.
pub(crate) fn broken_by(bug: Planted) -> &'static str {
    match bug {
        Planted::AckBeforeDurable => NOTHING_LOST,
        Planted::NoFenceOnComplete => FENCED,
        Planted::LeaseByWallClock => WHOLE_LEASE,
        Planted::PreemptionCountsAsFailure => PREEMPTED,
        Planted::DoubleCommit => COMMITS_ONCE,
    }
}

/// An invariant that doesn't hold.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    invariant: &'static str,
    details: String,
}

impl Violation {
    pub(crate) fn new(invariant: &'static str, details: String) -> Self {
        Self { invariant, details }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.details)
    }
}

fn ensure(holds: bool, invariant: &'static str, details: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { invariant, details: details() }) }
}

/// Task and attempt.
type Key = (String, String);

fn key(lease: &v1::Lease) -> Key {
    (lease.task_id.clone(), lease.attempt_id.clone())
}

/// What somebody was told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Promise {
    /// The operator: this job is accepted.
    Accepted(String),
    /// The operator: this job ended so.
    Ended(String, &'static str),
    /// A worker: its number is its own.
    Joined(u64),
    /// A worker: the lease is its.
    Leased(Key, u64),
    /// A worker: what it said of the end of the attempt is known.
    Acknowledged(Key),
    /// A worker: the task can be gone on with from here.
    Checkpoint(String, u64),
    /// The operator: the change of this request is made.
    Made(String),
}

/// The furthest that an attempt at a task said it was at, and was answered.
#[derive(Clone, Debug)]
struct Reached {
    step: u64,
    by: Key,
}

/// Everything that is known of a run.
#[derive(Default)]
pub(crate) struct Audit {
    // What is durable.
    meta: v1::MetaRecord,
    tasks: BTreeMap<String, v1::TaskRecord>,
    jobs: BTreeMap<String, v1::JobRecord>,
    workers: BTreeMap<String, v1::WorkerRecord>,
    /// Machines that are out, by name.
    out: BTreeMap<String, v1::NodeRecord>,
    requests: BTreeSet<String>,
    /// Changes that the group of writes makes that is looked at.
    at_hand: Vec<Change>,
    /// Tasks that it says are in quarantine.
    quarantines: BTreeSet<String>,
    /// The machine of every worker that ever was.
    machines: BTreeMap<String, String>,
    /// The worker of every lease that ever was.
    holders: BTreeMap<Key, String>,
    /// By task, how many failures were ever on record, and how often it was to be done again.
    recorded_failures: BTreeMap<String, usize>,
    recaptured: BTreeMap<String, u32>,
    /// By epoch, every lease that ever was.
    leases: BTreeMap<u64, Key>,

    // What happened.
    /// Workers that a task may lose.
    max_lost: u32,
    asked: BTreeMap<String, Change>,
    broken_devices: BTreeSet<String>,
    /// The sequence of the last event.
    last_event: u64,
    /// What of [`RARE`] came about.
    seen: BTreeSet<&'static str>,
    /// Jobs whose model or report could not be written.
    unwritten: BTreeSet<String>,
    /// The disk failed, and what is on it was not looked at again since.
    read_only: bool,
    /// When a lease was given, or last stated by its worker, or taken up by a coordinator that began.
    heard: BTreeMap<Key, Duration>,
    handed_back: BTreeSet<Key>,
    own_failures: BTreeMap<String, BTreeSet<String>>,
    acknowledged_failures: BTreeMap<String, BTreeSet<String>>,
    broken_shards: BTreeSet<Key>,
    /// What each step of an attempt took.
    steps: BTreeMap<Key, BTreeMap<u64, Duration>>,
    reached: BTreeMap<String, Reached>,
    checkpoints: BTreeSet<String>,
    promises: BTreeSet<Promise>,
    /// Epochs that workers were told.
    told: BTreeMap<u64, Key>,
}

impl Audit {
    /// Nothing happened yet; a task may lose so many workers.
    pub(crate) fn new(max_lost: u32) -> Self {
        Self { max_lost, ..Self::default() }
    }

    /// A group of writes can't be taken back any more.
    pub(crate) fn becomes_durable(&mut self, writes: &[Write], now: Duration) -> Result<(), Violation> {
        self.at_hand = self.changes_of(writes);
        let quarantined = |write: &Write| match write {
            Write::Task(task) if task.quarantined => Some(task.task_id.clone()),
            _ => None,
        };
        self.quarantines = writes.iter().filter_map(quarantined).collect();
        let mut ended = Vec::new();
        for write in writes {
            match write {
                Write::Meta(meta) => self.meta = *meta,
                Write::Job(job) => self.job_changes(job)?,
                Write::Task(task) => ended.extend(self.task_changes(task, now)?),
                Write::Worker(worker) => self.worker_changes(worker)?,
                Write::ForgetWorker(worker) => drop(self.workers.remove(worker.as_str())),
                Write::Node(node) => self.node_changes(node)?,
                Write::ForgetNode(node) => {
                    self.node_changes(&v1::NodeRecord { node: node.clone(), ..v1::NodeRecord::default() })?;
                }
                Write::Request(request) => self.request_made(request)?,
                Write::ForgetRequest(request) => _ = self.requests.remove(request),
                Write::Invitation(_) | Write::ForgetInvitation(_) | Write::Identity(_) | Write::ForgetIdentity(_) => {}
                Write::Event(event) => {
                    let before = std::mem::replace(&mut self.last_event, event.sequence);
                    ensure(event.sequence == before + 1, EVENTS, || format!("{event:?} came after {before}"))?;
                }
            }
        }
        for key in &ended {
            self.lease_ended(key, now)?;
        }
        for job in writes.iter().filter_map(|write| if let Write::Job(job) = write { Some(job) } else { None }) {
            self.job_ended(job, &ended)?;
        }
        Ok(())
    }

    fn job_changes(&mut self, new: &v1::JobRecord) -> Result<(), Violation> {
        if let Some(old) = self.jobs.insert(new.job_id.clone(), new.clone()) {
            let is_over = matches!(old.state.as_str(), "done" | "cancelled");
            ensure(!is_over || old.state == new.state, ENDS, || {
                format!("{} was {} and is {}", new.job_id, old.state, new.state)
            })?;
            self.job_was_asked(&old, new)?;
            if old.state == "failed" && new.state == "running" {
                self.unwritten.remove(&new.job_id);
                self.seen.insert(RETRIED);
            }
        }
        Ok(())
    }

    /// Looked at once all that is written with it is known.
    fn job_ended(&self, job: &v1::JobRecord, ended: &[Key]) -> Result<(), Violation> {
        let id = &job.job_id;
        if self.jobs.get(id).is_some_and(|last| last.state != job.state) {
            // It was brought back by a change that was made durable with this one.
            return Ok(());
        }
        let mut tasks = self.tasks_of(id);
        match job.state.as_str() {
            "failed" if self.unwritten.contains(id) => Ok(()),
            "failed" => {
                let has_reason = !job.reason.is_empty();
                ensure(has_reason, ENDS, || format!("{id} failed and nobody knows why"))?;
                match tasks.any(|task| task.recaptures >= MAX_RECAPTURES) {
                    true => Ok(()),
                    false => self.is_stuck(id, ended),
                }
            }
            "done" => {
                let all = tasks.all(|task| task.committed);
                ensure(all, ENDS, || format!("{id} is done and not all of its tasks are"))
            }
            _ => Ok(()),
        }
    }

    /// The leases that the change ends.
    fn task_changes(&mut self, new: &v1::TaskRecord, now: Duration) -> Result<Vec<Key>, Violation> {
        let id = &new.task_id;
        let old = self.tasks.insert(id.clone(), new.clone()).unwrap_or_default();
        let holders: Vec<Key> = standing(&old).map(|(lease, _)| key(lease)).collect();
        let holds = |attempt: &str| holders.iter().any(|(_, holder)| holder == attempt);

        let accepted = new.samples > old.samples || (new.committed && !old.committed);
        let recaptured = self.recaptured.entry(id.clone()).or_default();
        *recaptured += new.recaptures.saturating_sub(old.recaptures);
        let recaptured = *recaptured;
        ensure(new.samples <= 1 + u64::from(recaptured), COMMITS_ONCE, || {
            format!("an output of {id} was accepted {} times, and {recaptured} were found broken", new.samples)
        })?;
        ensure(new.committed || !old.committed || new.recaptures > old.recaptures, COMMITS_ONCE, || {
            format!("{id} was committed and isn't any more")
        })?;
        let forgiven =
            v1::TaskRecord { failed: new.failed.clone(), recaptures: new.recaptures, lost: new.lost, ..old.clone() };
        let is_same = *new == old || *new == forgiven && self.is_retried(id);
        ensure(!(new.committed && old.committed) || is_same, FENCED, || {
            format!("{id} is committed and changed from {old:?} to {new:?}")
        })?;
        if accepted {
            let before = outputs(&old);
            let mut fresh = outputs(new).into_iter().filter(|object| !before.contains(object));
            let foreign = fresh.find(|(attempt, _)| !holds(attempt));
            ensure(foreign.is_none(), FENCED, || {
                format!("{foreign:?} of {id} was accepted while its lease was {:?}", old.lease)
            })?;
            ensure(!holders.is_empty(), FENCED, || format!("an output of {id} was accepted while nobody held it"))?;
        }

        let is_lost = |holder: &&Key| {
            let is_said = self.handed_back.contains(*holder) && !self.had_its_time(holder, now);
            !is_said && !standing(new).any(|(lease, _)| key(lease) == **holder)
        };
        let lost = holders.iter().filter(is_lost).count() as u32;
        self.budgets_change(&old, new, lost)?;
        self.seen.extend((new.lost > old.lost).then_some(LOST));
        self.seen.extend(new.quarantined.then_some(QUARANTINED));
        let recaptures: u32 = self.recaptured.values().sum();
        ensure(recaptures as usize <= self.broken_shards.len(), FENCED, || {
            format!("{recaptures} outputs are made again, {} were found broken", self.broken_shards.len())
        })?;

        if new.checkpoint != old.checkpoint
            && let Some(object) = new.checkpoint.as_ref().and_then(|checkpoint| checkpoint.object.as_ref())
        {
            let is_holders = Written::parse(&object.key).is_some_and(|of| holds(of.attempt.as_str()));
            ensure(is_holders, FENCED, || {
                format!("{id} goes on from {}, and its lease was {:?}", object.key, old.lease)
            })?;
        }

        for (lease, worker) in standing(new).filter(|(lease, _)| !holds(&lease.attempt_id)) {
            self.is_given(&old, new, &lease.attempt_id)?;
            self.holders.insert(key(lease), worker.to_owned());
            self.seen.extend(new.spare.is_some().then_some(SPARE));
            let taken = self.leases.insert(lease.epoch, key(lease));
            ensure(taken.is_none(), EPOCHS, || format!("epoch {} of {:?} and {lease:?}", lease.epoch, taken))?;
            ensure(self.meta.epoch >= lease.epoch, EPOCHS, || {
                format!("{lease:?} is durable and the counter is at {}", self.meta.epoch)
            })?;
            self.heard.insert(key(lease), now);
        }
        let ended = |holder: &Key| {
            let stands = standing(new).any(|(lease, _)| key(lease) == *holder);
            !stands && !accepted && new.recaptures == old.recaptures
        };
        Ok(holders.into_iter().filter(ended).collect())
    }

    /// A lease that ended without an output was handed back, or its task failed, or its job is over, or its time was.
    fn lease_ended(&self, key: &Key, now: Duration) -> Result<(), Violation> {
        let (task, attempt) = key;
        let failed = self.own_failures.get(task).is_some_and(|attempts| attempts.contains(attempt));
        let is_over = self.jobs.get(job_of(task)).is_some_and(|job| job.state != "running");
        ensure(failed || is_over || self.had_its_time(key, now) || self.handed_back.contains(key), WHOLE_LEASE, || {
            format!("{task} was taken from {attempt} at {now:?}, last heard of at {:?}", self.heard.get(key))
        })
    }

    fn had_its_time(&self, key: &Key, now: Duration) -> bool {
        now.saturating_sub(self.heard.get(key).copied().unwrap_or_default()) >= LEASE_TTL
    }

    fn tasks_of(&self, job: &str) -> impl Iterator<Item = &v1::TaskRecord> {
        self.tasks.iter().filter(move |(id, _)| job_of(id) == job).map(|(_, task)| task)
    }

    /// A write failed.
    pub(crate) fn disk_fails(&mut self) {
        self.read_only = true;
    }

    /// A coordinator begins on what is durable.
    pub(crate) fn restarted(&mut self, now: Duration) -> Result<(), Violation> {
        self.read_only = false;
        let leases = self.tasks.values().flat_map(standing);
        self.heard.extend(leases.map(|(lease, _)| (key(lease), now)));
        self.promises_hold()
    }

    /// What anybody was told is durable.
    pub(crate) fn promises_hold(&self) -> Result<(), Violation> {
        self.promises.iter().try_for_each(|promise| self.holds(promise))
    }

    fn promise(&mut self, promise: Promise) -> Result<(), Violation> {
        self.holds(&promise)?;
        self.promises.insert(promise);
        Ok(())
    }

    fn holds(&self, promise: &Promise) -> Result<(), Violation> {
        let holds = match promise {
            Promise::Accepted(job) => self.jobs.contains_key(job),
            Promise::Ended(job, state) => self.jobs.get(job).is_some_and(|job| job.state == *state),
            Promise::Made(request) => self.requests.contains(request),
            Promise::Joined(number) => self.meta.workers >= *number,
            Promise::Leased(key, epoch) => self.leases.get(epoch) == Some(key),
            Promise::Acknowledged((task, attempt)) => self.tasks.get(task).is_some_and(|record| {
                let failures = self.acknowledged_failures.get(task).map_or(0, BTreeSet::len);
                let recorded = self.recorded_failures.get(task).copied().unwrap_or(0);
                standing(record).all(|(lease, _)| lease.attempt_id != *attempt) && recorded >= failures
            }),
            Promise::Checkpoint(task, step) => self.tasks.get(task).is_some_and(|record| {
                record.committed
                    || self.own_failures.contains_key(task)
                    || record.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.step >= *step)
            }),
        };
        ensure(holds, NOTHING_LOST, || format!("{promise:?} was told and is not durable"))
    }

    /// Whether the request reports attempts, and none that holds its task.
    pub(crate) fn is_stale(&self, request: &v1::SyncRequest) -> bool {
        let holds = |lease: &v1::Lease| {
            let task = self.tasks.get(&lease.task_id);
            task.is_some_and(|task| standing(task).any(|held| held == (lease, request.worker_id.as_str())))
        };
        !request.attempts.is_empty() && !request.attempts.iter().filter_map(|report| report.lease.as_ref()).any(holds)
    }

    /// The coordinator is about to look at a Sync.
    pub(crate) fn arrives(&mut self, request: &v1::SyncRequest, now: Duration) {
        for report in &request.attempts {
            let (Some(lease), Some(state)) = (&report.lease, &report.state) else { continue };
            // The end of a lease may be among what failed to be written, and be found on the disk afterwards.
            if let Some(heard) = self.heard.get_mut(&key(lease)).filter(|_| !self.read_only) {
                *heard = now;
            }
            if let Report::Failed(v1::Failure { broken_shard: Some(_), .. }) = state {
                self.broken_shards.insert(key(lease));
            }
            if matches!(state, Report::Failed(_) | Report::Released(_)) {
                self.handed_back.insert(key(lease));
            }
        }
    }

    /// The answer to a Sync leaves the coordinator.
    pub(crate) fn answered(&mut self, request: &v1::SyncRequest, answer: &v1::SyncResponse) -> Result<(), Violation> {
        if answer.rejoin {
            return Ok(());
        }
        if !answer.read_only.is_empty() {
            let says = answer.start.len() + answer.cancel.len() + answer.acknowledged.len() + answer.hand_back.len();
            return ensure(says == 0, NOTHING_LOST, || format!("{answer:?} was told while nothing can be durable"));
        }
        for report in &request.attempts {
            let (Some(lease), Some(state)) = (&report.lease, &report.state) else { continue };
            if answer.cancel.iter().any(|cancel| cancel.lease.as_ref() == Some(lease)) {
                continue;
            }
            if let Report::Running(progress) | Report::Released(progress) = state {
                if let Some(checkpoint) = &progress.checkpoint {
                    self.promise(Promise::Checkpoint(lease.task_id.clone(), checkpoint.step))?;
                }
                let known = self.reached.get(&lease.task_id).map_or(0, |reached| reached.step);
                if progress.step > known {
                    let reached = Reached { step: progress.step, by: key(lease) };
                    self.reached.insert(lease.task_id.clone(), reached);
                }
            }
            if let Report::Failed(failure) = state
                && failure.broken_shard.is_none()
                && !failure.of_device
            {
                let failures = self.acknowledged_failures.entry(lease.task_id.clone()).or_default();
                failures.insert(lease.attempt_id.clone());
            }
        }
        for lease in &answer.acknowledged {
            self.promise(Promise::Acknowledged(key(lease)))?;
        }
        answer.start.iter().try_for_each(|start| self.started(start))
    }

    fn started(&mut self, start: &v1::Start) -> Result<(), Violation> {
        let (Some(lease), Some(kind)) = (&start.lease, start.task.as_ref().and_then(|task| task.kind.as_ref())) else {
            return Err(Violation::new(ENDS, format!("a worker is told to start nothing: {start:?}")));
        };
        let told = self.told.entry(lease.epoch).or_insert_with(|| key(lease));
        ensure(*told == key(lease), EPOCHS, || format!("epoch {} is of {told:?} and {lease:?}", lease.epoch))?;
        self.promise(Promise::Leased(key(lease), lease.epoch))?;

        let makes_checkpoints = matches!(kind, v1::task_spec::Kind::Distill(_) | v1::task_spec::Kind::Finetune(_));
        if !makes_checkpoints || self.own_failures.contains_key(&lease.task_id) {
            return Ok(());
        }
        let Some(reached) = self.reached.get(&lease.task_id) else { return Ok(()) };
        let from = job::resume(kind).map_or(0, |checkpoint| checkpoint.step);
        // What came before the attempt's own first step is more than an interval back.
        let time = |step| self.steps.get(&reached.by).and_then(|steps| steps.get(&step)).copied();
        let again = (from..reached.step).map(|step| time(step).unwrap_or(2 * CHECKPOINT_INTERVAL));
        // A checkpoint is made between steps.
        let most = CHECKPOINT_INTERVAL + again.clone().max().unwrap_or_default();
        let repeated: Duration = again.sum();
        ensure(repeated <= most, REPEATED, || {
            format!("{} goes on from step {from} and repeats {repeated:?}; {reached:?} was known", lease.task_id)
        })
    }

    /// The answer to a Join leaves the coordinator.
    pub(crate) fn joined(&mut self, answer: &v1::JoinResponse) -> Result<(), Violation> {
        let number = answer.worker_id.strip_prefix('w').and_then(|rest| rest.split('-').next()?.parse().ok());
        let number =
            number.ok_or_else(|| Violation::new(NOTHING_LOST, format!("{} has no number", answer.worker_id)))?;
        ensure(!self.promises.contains(&Promise::Joined(number)), NOTHING_LOST, || {
            format!("{} was given to another worker before", answer.worker_id)
        })?;
        self.promise(Promise::Joined(number))
    }

    /// The operator is told that the job is accepted.
    pub(crate) fn accepted(&mut self, job: &JobId) -> Result<(), Violation> {
        self.promise(Promise::Accepted(job.to_string()))
    }

    /// The operator is told that the job ended for good.
    pub(crate) fn ended(&mut self, job: &JobId, state: &'static str) -> Result<(), Violation> {
        self.promise(Promise::Ended(job.to_string(), state))
    }

    /// The job's model, or its report, can't be written.
    pub(crate) fn is_unwritten(&mut self, job: &JobId) {
        self.unwritten.insert(job.to_string());
    }

    /// The attempt fails, and it is the task's own fault.
    pub(crate) fn fails_by_itself(&mut self, lease: &v1::Lease) {
        self.own_failures.entry(lease.task_id.clone()).or_default().insert(lease.attempt_id.clone());
    }

    /// A step of the attempt takes so long.
    pub(crate) fn takes_a_step(&mut self, lease: &v1::Lease, step: u64, time: Duration) {
        self.steps.entry(key(lease)).or_default().insert(step, time);
    }

    /// A checkpoint is in the store.
    pub(crate) fn stores(&mut self, checkpoint: &str) {
        self.checkpoints.insert(checkpoint.into());
    }

    /// An attempt reads the checkpoint that it goes on from.
    pub(crate) fn resumes(&self, checkpoint: &str) -> Result<(), Violation> {
        ensure(self.checkpoints.contains(checkpoint), REMOVED, || format!("{checkpoint} is gone"))
    }

    /// An object is removed at the coordinator's command.
    pub(crate) fn removed(&mut self, key: &str) -> Result<(), Violation> {
        self.checkpoints.remove(key);
        let checkpoints = self.tasks.values().filter_map(|task| task.checkpoint.as_ref()?.object.as_ref());
        let is_object = checkpoints.chain(self.tasks.values().flat_map(objects)).any(|object| object.key == key);
        // An attempt writes shards or nothing, and they are needed together.
        let is_shard = Written::parse(key).is_some_and(|written| {
            let mut standing = self.tasks.values().flat_map(|task| &task.written);
            standing.any(|shards| shards.attempt_id == written.attempt.as_str())
        });
        let is_needed = is_object || is_shard;
        ensure(!is_needed, REMOVED, || format!("{key} is on record"))
    }

    /// How many jobs the operator knows to be accepted.
    pub(crate) fn accepted_jobs(&self) -> usize {
        self.promises.iter().filter(|promise| matches!(promise, Promise::Accepted(_))).count()
    }

    /// Whether every job that was accepted is done, but for those that an operator ended.
    pub(crate) fn is_over(&self) -> bool {
        self.jobs.values().all(|job| matches!(job.state.as_str(), "done" | "cancelled"))
    }

    /// What of [`RARE`] came about.
    pub(crate) fn seen(&self) -> BTreeSet<&'static str> {
        self.seen.clone()
    }

    /// What is left to do, for people.
    pub(crate) fn left(&self) -> String {
        let running = self.jobs.values().filter(|job| !matches!(job.state.as_str(), "done" | "cancelled"));
        let open = self.tasks.values().filter(|task| !task.committed);
        let tasks: Vec<String> = open.map(|task| format!("{} {:?}", task.task_id, task.lease)).collect();
        format!("{:?}; open: {}", running.map(|job| &job.job_id).collect::<Vec<_>>(), tasks.join(", "))
    }
}

fn job_of(task: &str) -> &str {
    task.split_once('/').map_or(task, |(job, _)| job)
}

/// Every object of a task's accepted output, but shards.
fn objects(task: &v1::TaskRecord) -> impl Iterator<Item = &v1::ObjectRef> {
    let blocks = task.finetuned.iter().flat_map(|output| &output.blocks).filter_map(|block| block.object.as_ref());
    let others = [
        task.synthesised.as_ref().and_then(|output| output.latents.as_ref()),
        task.distilled.as_ref().and_then(|output| output.block.as_ref()),
        task.evaluated.as_ref().and_then(|output| output.part.as_ref()),
    ];
    blocks.chain(others.into_iter().flatten())
}

/// The same and shards: the attempt that wrote each, and its digest.
fn outputs(task: &v1::TaskRecord) -> BTreeSet<(String, String)> {
    let object = |object: &v1::ObjectRef| {
        let attempt = Written::parse(&object.key).map(|written| written.attempt.to_string());
        (attempt.unwrap_or_default(), object.digest.clone())
    };
    let shards = task.written.iter().flat_map(|shards| {
        let (digests, _) = shards.digests.as_chunks();
        digests.iter().map(|digest| (shards.attempt_id.clone(), digest::text(digest)))
    });
    objects(task).map(object).chain(shards).collect()
}

/// The leases of a task that stand, each with its worker.
fn standing(task: &v1::TaskRecord) -> impl Iterator<Item = (&v1::Lease, &str)> {
    let first = task.lease.as_ref().map(|lease| (lease, task.worker_id.as_str()));
    first.into_iter().chain(task.spare.as_ref().map(|lease| (lease, task.spare_worker_id.as_str())))
}
