//! What operators ask for: each change is made once, stands once it is answered, and nothing of its kind happens without.

use deltaconv_coordinator::store::Write;
use deltaconv_proto::ids::JobId;
use deltaconv_proto::v1;

use super::{AGAIN, Audit, DRAINED, NOTHING_LOST, Promise, Violation, ensure, job_of};

const ONCE: &str = "a request changes things once";
const ASKED: &str = "what operators decide changes when they ask";

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Pause(JobId),
    Resume(JobId),
    Cancel(JobId),
    /// Of a job, or of a task.
    Retry(String),
    /// Of workers, by their id, their name or their machine.
    Drain(String),
    Return(String),
}

impl Change {
    fn retries(&self, task: &str) -> bool {
        matches!(self, Self::Retry(name) if name == task || name == job_of(task))
    }
}

fn is_named(worker: &v1::WorkerRecord, name: &str) -> bool {
    worker.worker_id == name || worker.name == name || worker.node == name
}

impl Audit {
    /// An operator asks for a change, for the first time under this id.
    pub(crate) fn asks(&mut self, request: &str, change: &Change) {
        self.asked.insert(request.to_owned(), change.clone());
    }

    /// The operator is told that the change is made.
    pub(crate) fn made(&mut self, request: &str) -> Result<(), Violation> {
        self.promise(Promise::Made(request.to_owned()))
    }

    /// Whether it can't be undone any more that the change was made.
    pub(crate) fn is_made(&self, request: &str) -> bool {
        self.requests.contains(request)
    }

    /// What a request led to that had been made before.
    pub(crate) fn asked_again(&mut self, request: &str, changes: &[String]) -> Result<(), Violation> {
        self.seen.insert(AGAIN);
        ensure(changes.is_empty(), ONCE, || format!("{request} came again and led to {}", changes.join(", ")))
    }

    /// Which changes are made by a group of writes.
    pub(super) fn changes_of(&self, writes: &[Write]) -> Vec<Change> {
        let request = |write: &Write| match write {
            Write::Request(record) => self.asked.get(&record.request_id).cloned(),
            _ => None,
        };
        writes.iter().filter_map(request).collect()
    }

    /// A change is on record, after what it changed.
    pub(super) fn request_made(&mut self, record: &v1::RequestRecord) -> Result<(), Violation> {
        let id = &record.request_id;
        ensure(self.requests.insert(id.clone()), ONCE, || format!("{id} was made twice"))?;
        let change = self.asked.get(id).ok_or_else(|| Violation::new(ASKED, format!("nobody asked for {id}")))?;
        let stands = match change {
            Change::Pause(job) => self.jobs.get(job.as_str()).is_some_and(|job| job.paused),
            Change::Resume(job) => self.jobs.get(job.as_str()).is_some_and(|job| !job.paused),
            Change::Cancel(job) => self.jobs.get(job.as_str()).is_some_and(|job| job.state == "cancelled"),
            Change::Retry(_) => {
                let mut retried = self.tasks.iter().filter(|(id, _)| change.retries(id)).map(|(_, task)| task);
                retried.all(|task| !task.quarantined && task.failed.is_empty() && task.lost == 0)
            }
            Change::Drain(name) => self.workers_named(name).all(|worker| worker.drained),
            Change::Return(name) => {
                let is_out = |node: &str| self.out.contains_key(node);
                !is_out(name) && self.workers_named(name).all(|worker| !worker.drained && !is_out(&worker.node))
            }
        };
        ensure(stands, NOTHING_LOST, || format!("{id} is on record, and {change:?} is not"))
    }

    fn workers_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a v1::WorkerRecord> {
        self.workers.values().filter(move |worker| is_named(worker, name))
    }

    /// Whether a job was paused, resumed or brought back because somebody asked for it.
    pub(super) fn job_was_asked(&self, old: &v1::JobRecord, new: &v1::JobRecord) -> Result<(), Violation> {
        let id = new.job_id.as_str();
        let asked = |is_it: &dyn Fn(&Change) -> bool| self.at_hand.iter().any(is_it);
        let switched = old.paused == new.paused
            || asked(&|change| match change {
                Change::Pause(job) => new.paused && job.as_str() == id,
                Change::Resume(job) => !new.paused && job.as_str() == id,
                _ => false,
            });
        ensure(switched, ASKED, || format!("{id} is paused: {}, and nobody asked for it", new.paused))?;
        let brought_back = (old.state.as_str(), new.state.as_str()) != ("failed", "running")
            || asked(&|change| matches!(change, Change::Retry(name) if job_of(name) == id));
        ensure(brought_back, ASKED, || format!("{id} goes on after it failed, and nobody asked for it"))?;
        let is_cancel = |change: &Change| matches!(change, Change::Cancel(job) if job.as_str() == id);
        let ended = new.state != "cancelled" || old.state == "cancelled" || asked(&is_cancel);
        ensure(ended, ASKED, || format!("{id} was cancelled, and nobody asked for it"))
    }

    /// Whether somebody asked for the task to be tried again.
    pub(super) fn is_retried(&self, task: &str) -> bool {
        self.at_hand.iter().any(|change| change.retries(task))
    }

    /// Whether somebody asked for workers to be given tasks again that run on this machine, or for the machine itself.
    pub(super) fn is_returned(&self, node: &str) -> bool {
        let on_it = |name: &str| name == node || self.workers_named(name).any(|worker| worker.node == node);
        self.at_hand.iter().any(|change| matches!(change, Change::Return(name) if on_it(name)))
    }

    /// A worker is as this record says.
    pub(super) fn worker_changes(&mut self, new: &v1::WorkerRecord) -> Result<(), Violation> {
        let id = &new.worker_id;
        let was = self.workers.insert(id.clone(), new.clone()).is_some_and(|worker| worker.drained);
        self.machines.insert(id.clone(), new.node.clone());
        self.seen.extend(new.drained.then_some(DRAINED));
        let asked = self.at_hand.iter().any(|change| match change {
            Change::Drain(name) => new.drained && is_named(new, name),
            Change::Return(name) => !new.drained && is_named(new, name),
            _ => false,
        });
        ensure(asked || was == new.drained, ASKED, || {
            format!("{id} is drained: {}, and nobody asked for it", new.drained)
        })
    }
}
