//! Whose fault it was: tasks, machines and lost workers have budgets of their own, and what is out is given nothing.

use std::collections::BTreeSet;

use deltaconv_proto::v1;

use super::{Audit, BROKEN, FAULTY, Key, MAX_FAILURES, PREEMPTED, Violation, ensure, job_of, standing};

const BUDGETS: &str = "each budget counts its own";
const TAKEN_OUT: &str = "a machine is taken out for different tasks' failures or for its device's";
const GIVEN: &str = "nothing is given to who takes nothing";
const SPARES: &str = "a task has one spare at most, on another machine, for others' pace";
const GOES_ON: &str = "a job goes on around what is in quarantine";

/// So many of its peers are over before an attempt counts as slow.
const PEERS: usize = 3;

impl Audit {
    /// The device of the machine can't be used from now on.
    pub(crate) fn device_breaks(&mut self, node: &str) {
        self.broken_devices.insert(node.to_owned());
    }

    fn machine_of(&self, worker: &str) -> &str {
        self.machines.get(worker).map_or("", String::as_str)
    }

    /// A machine is as this record says.
    pub(super) fn node_changes(&mut self, new: &v1::NodeRecord) -> Result<(), Violation> {
        let name = &new.node;
        for failure in &new.failures {
            let failed = self.own_failures.get(&failure.task_id).into_iter().flatten();
            let mut on = failed.filter_map(|attempt| {
                self.holders.get(&(failure.task_id.clone(), attempt.clone())).map(|worker| self.machine_of(worker))
            });
            ensure(on.any(|node| node == name), TAKEN_OUT, || {
                format!("{name} is blamed for {}, which did not fail there", failure.task_id)
            })?;
        }
        let different: BTreeSet<&str> = new.failures.iter().map(|failure| failure.task_id.as_str()).collect();
        let old = match new.device.is_empty() && new.faulty.is_empty() {
            true => self.out.remove(name),
            false => self.out.insert(name.clone(), new.clone()),
        };
        let old = old.unwrap_or_default();
        ensure(new.device.is_empty() || self.broken_devices.contains(name), TAKEN_OUT, || {
            format!("{name} is out for its device, which works: {}", new.device)
        })?;
        let is_faulty = new.faulty.is_empty() || !old.faulty.is_empty() || different.len() >= MAX_FAILURES as usize;
        ensure(is_faulty, TAKEN_OUT, || format!("{name} is out for failures of {different:?}"))?;
        self.seen.extend((!new.device.is_empty()).then_some(BROKEN));
        self.seen.extend((!new.faulty.is_empty()).then_some(FAULTY));
        let is_back = |was: &str, is: &str| !was.is_empty() && is.is_empty();
        let stays = !is_back(&old.device, &new.device) || self.is_returned(name);
        ensure(stays, TAKEN_OUT, || format!("{name} is back, and nobody returned it"))?;
        let was_others_fault = || old.failures.iter().any(|failure| self.quarantines.contains(&failure.task_id));
        let stays = !is_back(&old.faulty, &new.faulty) || self.is_returned(name) || was_others_fault();
        ensure(stays, TAKEN_OUT, || format!("{name} is back, and nobody returned it"))
    }

    /// A task is leased to somebody who may be given it.
    pub(super) fn is_given(&self, old: &v1::TaskRecord, new: &v1::TaskRecord, attempt: &str) -> Result<(), Violation> {
        let id = &new.task_id;
        let Some((_, worker)) = standing(new).find(|(lease, _)| lease.attempt_id == attempt) else { return Ok(()) };
        let node = self.machine_of(worker);
        let is_out = self.out.get(node).is_some_and(|node| !node.device.is_empty());
        ensure(!is_out, GIVEN, || format!("{id} is given to {worker} on {node}, which is out"))?;
        let is_drained = self.workers.get(worker).is_some_and(|worker| worker.drained);
        ensure(!is_drained, GIVEN, || format!("{id} is given to {worker}, which is drained"))?;
        let is_paused = self.jobs.get(job_of(id)).is_some_and(|job| job.paused);
        ensure(!is_paused, GIVEN, || format!("{id} is given to {worker}, and its job is paused"))?;
        let failed_on: BTreeSet<&str> = old.failed.iter().map(|failed| failed.node.as_str()).collect();
        ensure(failed_on.len() < MAX_FAILURES as usize, GIVEN, || {
            format!("{id} is given to {worker} and failed on {failed_on:?} before")
        })?;
        let others = standing(new).filter(|(lease, _)| lease.attempt_id != attempt);
        for (first, holder) in others {
            ensure(self.machine_of(holder) != node, SPARES, || format!("{id} is leased twice on {node}"))?;
            let peers = self.tasks.iter().filter(|(peer, task)| step_of(peer) == step_of(id) && task.samples > 0);
            ensure(peers.count() >= PEERS, SPARES, || format!("{first:?} counts as slow beside none"))?;
        }
        Ok(())
    }

    /// Counts what the change blames the task for, which at most `lost` workers left with nobody to say why.
    pub(super) fn budgets_change(
        &mut self,
        old: &v1::TaskRecord,
        new: &v1::TaskRecord,
        lost: u32,
    ) -> Result<(), Violation> {
        let id = &new.task_id;
        let recorded = self.recorded_failures.entry(id.clone()).or_default();
        *recorded += new.failed.len().saturating_sub(old.failed.len());
        let (recorded, own) = (*recorded, self.own_failures.get(id).map_or(0, BTreeSet::len));
        ensure(recorded <= own, PREEMPTED, || format!("{id} has {recorded} failures, of which {own} were its own"))?;
        ensure(new.lost <= old.lost + lost, BUDGETS, || {
            format!("{id} lost {} workers after {}, and {lost} were lost", new.lost, old.lost)
        })?;
        let forgets = new.failed.len() < old.failed.len() && new.recaptures <= old.recaptures
            || old.quarantined && !new.quarantined
            || new.lost < old.lost && new.checkpoint == old.checkpoint
            || new.recaptures < old.recaptures;
        ensure(!forgets || self.is_retried(id), BUDGETS, || format!("{id} was {old:?} and is {new:?}"))?;
        let is_used_up = new.failed.len() >= MAX_FAILURES as usize || new.lost >= self.max_lost;
        ensure(!new.quarantined || is_used_up, BUDGETS, || {
            format!("{id} is in quarantine after {:?} and {} lost workers", new.failed, new.lost)
        })
    }

    /// Whether a job that failed for what is in quarantine could not go on: none of a step's tasks went well and too many are
    /// there, or nobody was at work and the rest of a step is there or over.
    pub(super) fn is_stuck(&self, job: &str, ended: &[Key]) -> Result<(), Violation> {
        let of_job = || self.tasks.iter().filter(|(id, _)| job_of(id) == job);
        let is_hopeless = |step: &str| {
            let mut of_step = of_job().filter(|(id, _)| step_of(id) == step).map(|(_, task)| task);
            let there = of_step.clone().filter(|task| task.quarantined).count();
            there >= MAX_FAILURES as usize && of_step.all(|task| !task.committed)
        };
        if of_job().any(|(id, task)| task.quarantined && is_hopeless(step_of(id))) {
            return Ok(());
        }
        let at_work = ended.iter().find(|(task, attempt)| {
            let failed = self.own_failures.get(task).is_some_and(|attempts| attempts.contains(attempt));
            job_of(task) == job && !failed && !self.handed_back.contains(&(task.clone(), attempt.clone()))
        });
        let at_work = at_work.filter(|(task, _)| self.tasks.get(task).is_some_and(|task| task.lost == 0));
        ensure(at_work.is_none(), GOES_ON, || format!("{job} failed while {at_work:?} went on"))?;
        let is_settled = |step: &str| {
            of_job().filter(|(id, _)| step_of(id) == step).all(|(_, task)| task.quarantined || task.committed)
        };
        let is_stuck = of_job().any(|(id, task)| task.quarantined && is_settled(step_of(id)));
        ensure(is_stuck, GOES_ON, || format!("{job} failed, and no step of it is over but for what is in quarantine"))
    }
}

/// The job and the step that a task is of.
fn step_of(task: &str) -> &str {
    match task.find("/evaluate/") {
        Some(start) => &task[..start + "/evaluate".len()],
        None => task.rsplit_once('/').map_or(task, |(step, _)| step),
    }
}
