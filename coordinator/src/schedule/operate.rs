//! What operators change, beside submitting and cancelling: each change is made once, whatever is asked for again because an
//! answer was lost.

use std::collections::{BTreeMap, BTreeSet};

use deltaconv_proto::ids::{JobId, TaskId, WorkerId};
use deltaconv_proto::v1;

use super::events::{About, Severity};
use super::tasks::Slot;
use super::{Command, Effects, Error, JobState, Now, Phase, State};
use crate::store::Write;

/// So many of the last changes are remembered.
const REMEMBERED: usize = 1000;
/// Characters of a request's id; more is no client of ours.
const LONGEST: usize = 64;

/// Changes that were asked for and made.
#[derive(Debug, Default)]
pub(super) struct Requests {
    known: BTreeSet<String>,
    in_order: BTreeMap<u64, String>,
}

impl Requests {
    /// Remembers one.
    pub(super) fn add(&mut self, record: v1::RequestRecord) {
        self.known.insert(record.request_id.clone());
        self.in_order.insert(record.sequence, record.request_id);
    }

    /// All that are remembered.
    pub(super) fn records(&self) -> impl Iterator<Item = v1::RequestRecord> {
        self.in_order.iter().map(|(sequence, id)| v1::RequestRecord { request_id: id.clone(), sequence: *sequence })
    }
}

/// What `retry` is of.
enum Retried {
    Job(JobId),
    Task(Slot),
}

impl State {
    /// Makes a change unless the same request made it before; one that fails may be asked for again. Nothing is remembered of a
    /// request without an id.
    ///
    /// # Errors
    /// Those of the change.
    pub fn once(
        &mut self,
        request: &str,
        effects: &mut Effects,
        change: impl FnOnce(&mut Self, &mut Effects) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let request: String = request.chars().take(LONGEST).collect();
        if self.requests.known.contains(&request) {
            return Ok(());
        }
        change(self, effects)?;
        if !request.is_empty() {
            self.remember(request, effects);
        }
        Ok(())
    }

    fn remember(&mut self, request: String, effects: &mut Effects) {
        self.requests.known.insert(request.clone());
        self.meta.requests += 1;
        self.requests.in_order.insert(self.meta.requests, request.clone());
        let record = v1::RequestRecord { request_id: request, sequence: self.meta.requests };
        effects.writes.extend([Write::Meta(self.meta), Write::Request(record)]);
        while self.requests.in_order.len() > REMEMBERED
            && let Some((_, oldest)) = self.requests.in_order.pop_first()
        {
            self.requests.known.remove(&oldest);
            effects.writes.push(Write::ForgetRequest(oldest));
        }
    }

    /// Holds a job's work up: attempts at work are handed back at their next opportunity, and nobody is given any of its tasks.
    pub fn pause(&mut self, id: &JobId, effects: &mut Effects) -> Result<(), Error> {
        self.set_paused(id, true, effects)?;
        let leases = self.jobs[id].in_work.iter().flat_map(|slot| self.tasks[*slot].leases());
        effects.commands.extend(leases.map(|leased| Command::Wake(leased.worker.clone())));
        Ok(())
    }

    /// Has a job go on that was paused.
    pub fn resume(&mut self, id: &JobId, now: Now, effects: &mut Effects) -> Result<(), Error> {
        self.set_paused(id, false, effects)?;
        self.wake_idle(now, effects);
        Ok(())
    }

    fn set_paused(&mut self, id: &JobId, paused: bool, effects: &mut Effects) -> Result<(), Error> {
        let job = self.jobs.get_mut(id).ok_or_else(|| Error::UnknownJob(id.clone()))?;
        if !job.is_running() {
            return Err(Error::Ended { job: id.clone(), state: job.state.name() });
        }
        if job.paused != paused {
            job.paused = paused;
            self.queue(id);
            self.write_job(id, effects);
            let (kind, message) =
                if paused { ("job-paused", "paused by an operator") } else { ("job-resumed", "goes on after a pause") };
            self.note((Severity::Info, kind), About::Job(id), message, effects);
        }
        Ok(())
    }

    /// Asks the worker to hand back what it does for jobs that are paused.
    pub(super) fn ask_back(&self, worker: &WorkerId, response: &mut v1::SyncResponse) {
        for task in self.leases_of(worker).filter(|task| self.jobs[&task.job].paused) {
            let own = task.leases().iter().filter(|leased| leased.worker == *worker && !leased.verifying);
            response.hand_back.extend(own.map(|leased| task.message(leased)));
        }
    }

    /// Has a job that failed go on, or tasks that are in quarantine tried again: those of a job, or the one that is named. What
    /// failed before is forgotten.
    pub fn retry(&mut self, name: &str, now: Now, effects: &mut Effects) -> Result<(), Error> {
        let (id, slots) = match self.named(name)? {
            Retried::Job(id) => {
                let slots = self.jobs[&id].slots.iter().collect();
                (id, slots)
            }
            Retried::Task(slot) => (self.tasks[slot].job.clone(), vec![slot]),
        };
        let job = &self.jobs[&id];
        match &job.state {
            JobState::Running => {}
            JobState::Failed(_) => {
                // Another may have begun to write there since.
                let url = &job.spec.output_url;
                if let Some(other) = self.job_writing_to(url).filter(|other| other.id != id) {
                    return Err(Error::OutputInUse { job: other.id.clone(), url: url.clone() });
                }
            }
            JobState::Done | JobState::Cancelled => {
                return Err(Error::Ended { job: id.clone(), state: job.state.name() });
            }
        }
        for slot in slots {
            let task = &self.tasks[slot];
            if task.is_quarantined() || !task.failures.is_empty() || task.recaptures > 0 || task.lost > 0 {
                self.change(slot, |task| {
                    (task.recaptures, task.lost) = (0, 0);
                    task.failures.clear();
                    if task.is_quarantined() {
                        task.phase = Phase::Pending;
                    }
                });
                self.write_task(slot, effects);
                let message = "tried again, as an operator wants";
                self.note((Severity::Info, "task-retried"), About::Task(slot, None), message, effects);
            }
        }
        self.go_on(&id, now, effects);
        Ok(())
    }

    /// The job of this id, or of the task of this id.
    pub fn job_of(&self, name: &str) -> Result<JobId, Error> {
        Ok(match self.named(name)? {
            Retried::Job(id) => id,
            Retried::Task(slot) => self.tasks[slot].job.clone(),
        })
    }

    fn named(&self, name: &str) -> Result<Retried, Error> {
        let job = JobId::new(name)?;
        if self.jobs.contains_key(&job) {
            return Ok(Retried::Job(job));
        }
        let task = TaskId::new(name)?;
        self.tasks.slot(&task).map(Retried::Task).ok_or(Error::UnknownJob(job))
    }

    /// Gives a worker nothing new: it ends what it does. By its id, or all of a name or of a machine.
    pub fn drain(&mut self, name: &str, effects: &mut Effects) -> Result<(), Error> {
        for id in self.workers_named(name)? {
            self.set_drained(&id, true, effects);
        }
        Ok(())
    }

    /// Gives workers tasks again that were drained, or whose machine was taken out.
    pub fn give_again(&mut self, name: &str, now: Now, effects: &mut Effects) -> Result<(), Error> {
        let workers = self.workers_named(name);
        // A machine may be out whose workers left.
        let nodes: BTreeSet<String> = match &workers {
            Ok(workers) => workers.iter().map(|id| self.workers[id].node.clone()).collect(),
            Err(_) if self.nodes.contains_key(name) => BTreeSet::from([name.to_owned()]),
            Err(_) => BTreeSet::new(),
        };
        if nodes.is_empty() {
            return workers.map(|_| ());
        }
        nodes.iter().for_each(|node| self.forgive(node, effects));
        for id in workers.unwrap_or_default() {
            self.set_drained(&id, false, effects);
        }
        self.wake_idle(now, effects);
        Ok(())
    }

    fn workers_named(&self, name: &str) -> Result<Vec<WorkerId>, Error> {
        let is_named =
            |worker: &&super::Worker| worker.id.as_str() == name || worker.name == name || worker.node == name;
        let found: Vec<WorkerId> = self.workers.values().filter(is_named).map(|worker| worker.id.clone()).collect();
        match found.is_empty() {
            true => Err(Error::UnknownWorker(name.chars().take(128).collect())),
            false => Ok(found),
        }
    }

    fn set_drained(&mut self, id: &WorkerId, drained: bool, effects: &mut Effects) {
        if let Some(worker) = self.workers.get_mut(id).filter(|worker| worker.drained != drained) {
            worker.drained = drained;
            effects.writes.push(Write::Worker(worker.record().into()));
            let (kind, message) = match drained {
                true => ("worker-drained", "an operator wants it to be given nothing new"),
                false => ("worker-returned", "an operator wants it to be given tasks again"),
            };
            self.note((Severity::Info, kind), About::Worker(id), message, effects);
        }
    }
}
