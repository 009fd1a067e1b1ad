//! What the nodes' cache folders hold of the shards that distill tasks read, as workers state it: kept by task, so that a
//! worker that asks for work costs no look at shards.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, btree_map};

use deltaconv_proto::digest;
use deltaconv_proto::ids::{JobId, TaskId, WorkerId};
use deltaconv_proto::v1::{self, NodeCache};

use super::tasks::Slot;
use super::{Kind, Stage, State, Step};

/// A node's cache counts from this part of a task's bytes on. Below it the longest task first saves more time.
const WORTH: u64 = 4;

/// The shards of distill tasks, and who holds them. What it says is never needed, and is lost with the process: workers
/// state it again.
#[derive(Debug, Default)]
pub(super) struct Placement {
    /// By their digests' prefixes and the tasks that read them: how many such shards there are, and their bytes.
    shards: BTreeMap<(u64, Slot), (u32, u64)>,
    tasks: BTreeMap<Slot, Reads>,
    stated: BTreeMap<WorkerId, Stated>,
    /// By how many workers a prefix is stated. Most shards that are added are stated by none, which is seen here.
    holders: HashMap<u64, u32>,
}

/// What a task reads.
#[derive(Debug, Default)]
struct Reads {
    shards: usize,
    bytes: u64,
    /// How many of its bytes the worker's node holds. None of them is 0.
    held: BTreeMap<WorkerId, u64>,
}

/// A shard, as far as where it lies matters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// The first 8 bytes of its digest.
    pub(super) prefix: u64,
    pub(super) bytes: u64,
}

/// What a worker said of its node.
#[derive(Clone, Debug)]
struct Stated {
    version: u64,
    /// In order, each once.
    shards: Box<[u64]>,
}

/// How well a task suits the worker that asks, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    /// So many of its bytes are on the worker's node.
    Held(Reverse<u64>),
    /// It is as well done elsewhere.
    Anywhere,
    /// Another worker that is about to ask has more of it near. Whoever asks gets it nevertheless where nothing else of
    /// its job's stage is ready: no task waits for a worker.
    Awaited,
}

impl Placement {
    /// Takes what a worker states, if it says what was not known.
    pub(super) fn state(&mut self, worker: &WorkerId, cache: &NodeCache) {
        let is_new = self.version(worker) != cache.version;
        // Without them it only asks whether they are known.
        if !is_new || cache.shards.is_empty() && cache.version != 0 {
            return;
        }
        self.forget(worker);
        if cache.version == 0 {
            return;
        }
        let mut shards: Vec<u64> = cache.shards.iter().copied().take(digest::MAX_STATED).collect();
        shards.sort_unstable();
        shards.dedup();
        for prefix in &shards {
            *self.holders.entry(*prefix).or_default() += 1;
            for (task, bytes) in read_by(&self.shards, *prefix) {
                if let Some(reads) = self.tasks.get_mut(&task) {
                    reads.hold(worker, bytes);
                }
            }
        }
        self.stated.insert(worker.clone(), Stated { version: cache.version, shards: shards.into() });
    }

    /// The version of what the worker stated; 0 if nothing is known.
    pub(super) fn version(&self, worker: &WorkerId) -> u64 {
        self.stated.get(worker).map_or(0, |stated| stated.version)
    }

    /// How many shards the worker stated.
    pub(super) fn stated(&self, worker: &WorkerId) -> usize {
        self.stated.get(worker).map_or(0, |stated| stated.shards.len())
    }

    /// Forgets what the worker stated.
    pub(super) fn forget(&mut self, worker: &WorkerId) {
        let Some(stated) = self.stated.remove(worker) else { return };
        for prefix in &stated.shards {
            if let Entry::Occupied(mut holders) = self.holders.entry(*prefix) {
                *holders.get_mut() -= 1;
                if *holders.get() == 0 {
                    holders.remove();
                }
            }
            for (task, _) in read_by(&self.shards, *prefix) {
                if let Some(reads) = self.tasks.get_mut(&task) {
                    reads.held.remove(worker);
                }
            }
        }
    }

    /// Forgets what those stated that `is_here` isn't true of.
    pub(super) fn retain(&mut self, is_here: impl Fn(&WorkerId) -> bool) {
        let gone: Vec<WorkerId> = self.stated.keys().filter(|worker| !is_here(worker)).cloned().collect();
        gone.iter().for_each(|worker| self.forget(worker));
    }

    /// The task reads this shard, too, from now on.
    pub(super) fn add(&mut self, task: Slot, Piece { prefix, bytes: size }: Piece) {
        let reads = self.tasks.entry(task).or_default();
        reads.shards += 1;
        reads.bytes = reads.bytes.saturating_add(size);
        let (count, bytes) = self.shards.entry((prefix, task)).or_default();
        *count += 1;
        *bytes = bytes.saturating_add(size);
        if self.holders.contains_key(&prefix) {
            for (worker, _) in self.stated.iter().filter(|(_, stated)| stated.holds(prefix)) {
                reads.hold(worker, size);
            }
        }
    }

    /// The task doesn't read this shard any more.
    pub(super) fn remove(&mut self, task: Slot, Piece { prefix, bytes: size }: Piece) {
        let Some(reads) = self.tasks.get_mut(&task) else { return };
        reads.shards = reads.shards.saturating_sub(1);
        reads.bytes = reads.bytes.saturating_sub(size);
        if let btree_map::Entry::Occupied(mut read) = self.shards.entry((prefix, task)) {
            let (count, bytes) = read.get_mut();
            (*count, *bytes) = (*count - 1, bytes.saturating_sub(size));
            if *count == 0 {
                read.remove();
            }
            if self.holders.contains_key(&prefix) {
                for (worker, _) in self.stated.iter().filter(|(_, stated)| stated.holds(prefix)) {
                    reads.lose(worker, size);
                }
            }
        }
        if reads.shards == 0 {
            self.tasks.remove(&task);
        }
    }

    /// How many shards of the task stand.
    pub(super) fn standing(&self, task: Slot) -> usize {
        self.tasks.get(&task).map_or(0, |reads| reads.shards)
    }

    /// The share of the task's bytes that the worker's node holds. `None` of a task that reads no shards.
    pub(super) fn share(&self, task: Slot, worker: &WorkerId) -> Option<f64> {
        let reads = self.tasks.get(&task).filter(|reads| reads.bytes > 0)?;
        Some(reads.of(worker) as f64 / reads.bytes as f64)
    }

    /// How well the task suits the worker, where those that `is_asking` is true of may ask soon, too.
    pub(super) fn fit(&self, task: Slot, worker: &WorkerId, is_asking: impl Fn(&WorkerId) -> bool) -> Fit {
        let Some(reads) = self.tasks.get(&task) else { return Fit::Anywhere };
        let (own, worth) = (reads.of(worker), reads.worth());
        let others = reads.held.iter().filter(|(other, _)| *other != worker && is_asking(other));
        let most = others.map(|(_, bytes)| *bytes).max().unwrap_or(0);
        match () {
            () if most >= own.saturating_add(worth) => Fit::Awaited,
            () if own >= worth => Fit::Held(Reverse(own)),
            () => Fit::Anywhere,
        }
    }

    /// The most that the worker's node holds of one of these tasks, in bytes.
    pub(super) fn most(&self, tasks: &[Slot], worker: &WorkerId) -> u64 {
        let reads = tasks.iter().filter_map(|task| self.tasks.get(task));
        reads.map(|reads| reads.of(worker)).max().unwrap_or(0)
    }
}

#[cfg(test)]
impl Placement {
    /// What workers stated, and nothing else.
    pub(super) fn without_tasks(&self) -> Self {
        Self { stated: self.stated.clone(), holders: self.holders.clone(), ..Self::default() }
    }
}

impl Reads {
    fn of(&self, worker: &WorkerId) -> u64 {
        self.held.get(worker).copied().unwrap_or(0)
    }

    fn worth(&self) -> u64 {
        (self.bytes / WORTH).max(1)
    }

    fn hold(&mut self, worker: &WorkerId, bytes: u64) {
        if bytes > 0 {
            let held = self.held.entry(worker.clone()).or_default();
            *held = held.saturating_add(bytes);
        }
    }

    fn lose(&mut self, worker: &WorkerId, bytes: u64) {
        let Some(held) = self.held.get_mut(worker) else { return };
        *held = held.saturating_sub(bytes);
        if *held == 0 {
            self.held.remove(worker);
        }
    }
}

/// The tasks that read the shards of this prefix, with their bytes.
fn read_by(shards: &BTreeMap<(u64, Slot), (u32, u64)>, prefix: u64) -> impl Iterator<Item = (Slot, u64)> + use<'_> {
    let read = shards.range((prefix, Slot::FIRST)..=(prefix, Slot::LAST));
    read.map(|((_, task), (_, bytes))| (*task, *bytes))
}

impl Stated {
    fn holds(&self, prefix: u64) -> bool {
        self.shards.binary_search(&prefix).is_ok()
    }
}

impl State {
    /// The share of its shards' bytes that the worker's node held when this lease was given, as far as that is known.
    pub fn held(&self, lease: &v1::Lease) -> Option<f64> {
        let task = self.tasks.get(&TaskId::new(lease.task_id.clone()).ok()?)?;
        task.held_by(lease)?.held
    }

    /// Counts all shards that stand of a job.
    pub(super) fn place_job(&mut self, id: &JobId) {
        let Some(job) = self.jobs.get(id) else { return };
        for slot in job.slots.iter() {
            self.count(slot, Placement::add);
        }
    }

    /// Counts the shards of a job no more: nobody will work on its tasks.
    pub(super) fn displace_job(&mut self, id: &JobId) {
        let Some(job) = self.jobs.get(id) else { return };
        for slot in job.slots.iter() {
            self.count(slot, Placement::remove);
        }
    }

    /// Counts the shards that a capture task wrote.
    pub(super) fn place(&mut self, capture: Slot) {
        self.recount(capture, Placement::add);
    }

    /// Counts the shards that a capture task wrote no more, before they change.
    pub(super) fn displace(&mut self, capture: Slot) {
        self.recount(capture, Placement::remove);
    }

    /// Counts the shards, and whether what reads them is ready by that.
    fn recount(&mut self, capture: Slot, counted: fn(&mut Placement, Slot, Piece)) {
        let readers = self.count(capture, counted);
        let job = self.tasks[capture].job.clone();
        self.change_all(&job, readers, |_| ());
    }

    /// Gives the tasks that read the shards.
    fn count(&mut self, capture: Slot, counted: fn(&mut Placement, Slot, Piece)) -> Vec<Slot> {
        let readers = self.readers(capture);
        for (reader, piece) in &readers {
            counted(&mut self.placement, *reader, *piece);
        }
        readers.into_iter().map(|(reader, _)| reader).collect()
    }

    /// The shards of a capture task, each with the distill task that reads it.
    pub(super) fn readers(&self, capture: Slot) -> Vec<(Slot, Piece)> {
        let task = &self.tasks[capture];
        let Some(job) = self.jobs.get(&task.job).filter(|_| !task.shards.is_empty()) else { return Vec::new() };
        let rounds = (0..=job.rounds()).filter(|round| job.reads(*round, &task.kind));
        let steps = rounds.filter_map(|round| job.work(Step { stage: Stage::Distill, round }));
        let readers = steps.flat_map(|work| work.slots.iter()).filter_map(|slot| match self.tasks[slot].kind {
            Kind::Distill { layer, .. } if !self.tasks[slot].is_committed() => Some((slot, task.shards.piece(layer)?)),
            _ => None,
        });
        readers.collect()
    }

    /// The task is about to be committed: where its shards lie says nothing any more.
    pub(super) fn has_read(&mut self, reader: Slot) {
        let task = &self.tasks[reader];
        let (Kind::Distill { round, layer }, Some(job)) = (&task.kind, self.jobs.get(&task.job)) else { return };
        if task.is_committed() || !job.is_running() {
            return;
        }
        let captures = (0..=*round).flat_map(|round| self.tasks_in(job, Step { stage: Stage::Capture, round }));
        let read = captures.filter(|capture| job.reads(*round, &capture.kind));
        let pieces: Vec<Piece> = read.filter_map(|capture| capture.shards.piece(*layer)).collect();
        pieces.into_iter().for_each(|piece| self.placement.remove(reader, piece));
    }
}
