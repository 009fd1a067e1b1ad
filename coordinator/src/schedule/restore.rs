//! The state from its records.

use std::collections::{BTreeMap, BTreeSet};

use deltaconv_proto::ids::{JobId, TaskId};
use deltaconv_proto::v1;

use super::access::Access;
use super::blame::Node;
use super::events::Events;
use super::operate::Requests;
use super::placement::Placement;
use super::queue::Queue;
use super::tasks::Tasks;
use super::{Command, Effects, Error, Job, Now, Settings, State, Totals, Worker};
use crate::store::{Records, Store, Write};

/// No counter gets there: from here on one more might be none.
const UNCOUNTABLE: u64 = 1 << 60;

/// A state whose records come one after the other.
pub struct Restoring {
    state: State,
    now: Now,
    /// The first that went wrong.
    error: Option<Error>,
}

impl Restoring {
    /// An empty one.
    pub fn new(settings: Settings, now: Now) -> Self {
        let state = State {
            settings,
            meta: v1::MetaRecord::default(),
            jobs: BTreeMap::new(),
            tasks: Tasks::default(),
            workers: BTreeMap::new(),
            nodes: BTreeMap::new(),
            placement: Placement::default(),
            queue: Queue::default(),
            deadlines: BTreeSet::new(),
            idle: BTreeSet::new(),
            stragglers: BTreeSet::new(),
            looked_for_stragglers: now.monotonic,
            looked_for_still_jobs: now.monotonic,
            requests: Requests::default(),
            access: Access::default(),
            events: Events::default(),
            totals: Totals::default(),
            unix_ms: now.unix_ms,
            read_only: None,
        };
        Self { state, now, error: None }
    }

    /// Takes the next record. A job comes before its tasks.
    pub fn take(&mut self, record: Write) {
        if self.error.is_none() {
            self.error = self.add(record).err();
        }
    }

    fn add(&mut self, record: Write) -> Result<(), Error> {
        let (state, now) = (&mut self.state, self.now);
        match record {
            Write::Meta(meta) => state.meta = countable(meta)?,
            Write::Job(record) => {
                let (job, tasks) = Job::from_record(*record)?;
                state.add_job(job, tasks);
            }
            Write::Task(record) => {
                let id = TaskId::new(record.task_id.as_str())?;
                let deadline = now.monotonic + state.settings.lease_ttl;
                let slot = state.tasks.slot(&id).ok_or_else(|| Error::Record(format!("task {id} of no job")))?;
                let names = state.jobs[&state.tasks[slot].job].names.clone();
                state.tasks[slot].restore(*record, &names, now, deadline)?;
            }
            Write::Worker(record) => {
                let worker = Worker::from_record(*record, now)?;
                state.workers.insert(worker.id.clone(), worker);
            }
            Write::Node(record) => {
                let (name, node) = Node::from_record(*record)?;
                if node.says_something() {
                    state.nodes.insert(name, node);
                }
            }
            Write::Request(request) => state.requests.add(request),
            Write::Event(event) => state.events.add(*event),
            Write::Invitation(record) => state.access.add_invitation(*record),
            Write::Identity(record) => state.access.add_identity(*record),
            Write::ForgetWorker(_) | Write::ForgetNode(_) | Write::ForgetRequest(_) => {}
            Write::ForgetInvitation(_) | Write::ForgetIdentity(_) => {}
        }
        Ok(())
    }

    /// The state that the records describe. Every lease that stands gets its whole time again, so that workers can come back to
    /// it. With the commands that a stopped coordinator left undone.
    ///
    /// # Errors
    /// A record that can't be understood.
    pub fn finish(self) -> Result<(State, Effects), Error> {
        let Self { mut state, now, error } = self;
        if let Some(error) = error {
            return Err(error);
        }
        state.events.arrange(state.meta.events);
        let mut effects = Effects::default();
        let running: Vec<JobId> = state.jobs.values().filter(|j| j.is_running()).map(|j| j.id.clone()).collect();
        running.iter().for_each(|job| state.place_job(job));
        for job in state.jobs.keys().cloned().collect::<Vec<_>>() {
            state.index_job(&job);
        }
        for job in running {
            state.advance(&job, now, &mut effects);
            state.resume_stage(&job, &mut effects);
            effects.commands.push(Command::Manifest(job));
        }
        for job in state.jobs.values() {
            state.reclaim(job, &mut effects);
        }
        Ok((state, effects))
    }
}

fn counters(meta: &v1::MetaRecord) -> [u64; 7] {
    let &v1::MetaRecord { epoch, jobs, workers, requests, events, invitations, identities } = meta;
    [epoch, jobs, workers, requests, events, invitations, identities]
}

/// Whether it would soon count to what no counter is at, which only what was made up does.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn counts_almost_too_far(meta: &v1::MetaRecord) -> bool {
    counters(meta).into_iter().any(|count| (UNCOUNTABLE - (1 << 20)..UNCOUNTABLE).contains(&count))
}

fn countable(meta: v1::MetaRecord) -> Result<v1::MetaRecord, Error> {
    match counters(&meta).into_iter().find(|count| *count >= UNCOUNTABLE) {
        Some(count) => Err(Error::Record(format!("a counter at {count}"))),
        None => Ok(meta),
    }
}

impl State {
    /// The state that `records` describe, as [`Restoring`] has it.
    ///
    /// # Errors
    /// A record that can't be understood.
    pub fn restore(settings: Settings, records: Records, now: Now) -> Result<(Self, Effects), Error> {
        let mut restoring = Restoring::new(settings, now);
        records.into_writes().for_each(|record| restoring.take(record));
        restoring.finish()
    }

    /// The state that is in `store`.
    ///
    /// # Errors
    /// What the store says, or that a record of it can't be understood.
    pub(crate) fn read(settings: Settings, store: &mut dyn Store, now: Now) -> Result<(Self, Effects), crate::Error> {
        let mut restoring = Restoring::new(settings, now);
        store.each(&mut |record| restoring.take(record))?;
        Ok(restoring.finish()?)
    }
}
