//! What is left of each job, kept beside its tasks so that no question needs a look at all of them.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use deltaconv_proto::ids::JobId;

use super::tasks::{Slot, Slots};
use super::{Job, Kind, Phase, Stage, State, Step, Task};
use crate::plan;

/// One step of a job.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Work {
    /// Its tasks.
    pub(super) slots: Slots,
    /// How many of them are committed.
    pub(super) committed: usize,
    /// Those that nobody works on and whose shards stand, the longest first.
    pub(super) waiting: BTreeSet<(Reverse<u64>, Slot)>,
}

impl Work {
    fn is_over(&self) -> bool {
        self.committed == self.slots.len()
    }
}

impl Job {
    /// What is left of the step.
    pub(super) fn work(&self, step: Step) -> Option<&Work> {
        self.work.get(step.position(self.course()))
    }

    /// Whether all tasks of the step are committed; true where it has none.
    pub(super) fn is_over(&self, step: Step) -> bool {
        self.work(step).is_none_or(Work::is_over)
    }

    /// Whether what all tasks of the step need is there.
    pub(super) fn is_open(&self, step: Step) -> bool {
        let has_latents = || self.is_over(Step { stage: Stage::Synthesise, round: 0 });
        let are_trained =
            |round: Option<u32>| round.is_none_or(|round| self.is_over(Step { stage: Stage::Distill, round }));
        match step.stage {
            Stage::Synthesise => true,
            Stage::Capture => has_latents() && are_trained(step.round.checked_sub(1)),
            Stage::Distill => are_trained(step.round.checked_sub(1)),
            Stage::Finetune => has_latents() && are_trained(Some(self.rounds())),
            Stage::Evaluate => !self.output.is_empty() && has_latents(),
            // The coordinator's own.
            Stage::Assemble => false,
        }
    }

    /// What can be begun now: steps in their order, with tasks that wait.
    pub(super) fn ready(&self) -> impl Iterator<Item = &Work> {
        let open = Step::all(self.course()).zip(&self.work).filter(|(_, work)| !work.waiting.is_empty());
        open.filter(|(step, _)| self.is_open(*step)).map(|(_, work)| work)
    }
}

impl State {
    /// Takes a job and its tasks.
    pub(super) fn add_job(&mut self, mut job: Job, tasks: Vec<Task>) {
        let course = job.course();
        let mut counts = vec![0; Step::all(course).count()];
        for task in &tasks {
            counts[Step::of(&task.kind).position(course)] += 1;
        }
        let slots = self.tasks.add(tasks);
        let mut start = 0;
        let of_step = |count: usize| {
            start += count;
            Work { slots: slots.part(start - count, count), ..Work::default() }
        };
        job.work = counts.into_iter().map(of_step).collect();
        job.slots = slots;
        self.jobs.insert(job.id.clone(), job);
    }

    /// Counts all tasks of a job whose tasks and shards are as they will stay.
    pub(super) fn index_job(&mut self, id: &JobId) {
        for slot in self.jobs[id].slots.iter() {
            self.index(slot);
        }
        let steps: Vec<Step> = self.jobs[id].steps().collect();
        steps.into_iter().for_each(|step| self.rank(id, step));
        self.queue(id);
    }

    /// Changes a task, and what is kept beside it.
    pub(super) fn change<R>(&mut self, slot: Slot, change: impl FnOnce(&mut Task) -> R) -> R {
        self.unindex(slot);
        let result = change(&mut self.tasks[slot]);
        self.index(slot);
        let job = self.tasks[slot].job.clone();
        self.queue(&job);
        result
    }

    /// The same of several tasks of one job, which takes its place in the queue once.
    pub(super) fn change_all(
        &mut self,
        job: &JobId,
        slots: impl IntoIterator<Item = Slot>,
        change: impl Fn(&mut Task),
    ) {
        for slot in slots {
            self.unindex(slot);
            change(&mut self.tasks[slot]);
            self.index(slot);
        }
        self.queue(job);
    }

    /// Says anew what each of the step's tasks costs beside its peers.
    pub(super) fn rank(&mut self, id: &JobId, step: Step) {
        let Some(job) = self.jobs.get(id).filter(|_| step.stage == Stage::Distill) else { return };
        let Some(slots) = job.work(step).map(|work| work.slots.clone()) else { return };
        let (planned, steps) = (self.plan_of_round(job, step.round).into_owned(), self.steps(job, step.round));
        self.change_all(id, slots.iter(), |task| {
            if let Kind::Distill { layer, .. } = task.kind {
                let of_step = plan::cost::Block::planned(&planned.layers[layer]).total();
                let cost = of_step.saturating_mul(steps[layer].into());
                task.rank = u64::try_from(cost).unwrap_or(u64::MAX);
            }
        });
    }

    fn index(&mut self, slot: Slot) {
        let task = &self.tasks[slot];
        let Some(job) = self.jobs.get_mut(&task.job) else { return };
        let position = Step::of(&task.kind).position(job.course());
        match &task.phase {
            Phase::Pending => {
                let stand = match task.kind {
                    Kind::Distill { round, .. } => {
                        job.shards.get(round as usize) == Some(&self.placement.standing(slot))
                    }
                    _ => true,
                };
                if stand {
                    job.work[position].waiting.insert((Reverse(task.rank), slot));
                }
            }
            Phase::Leased(leases) => {
                job.in_work.insert(slot);
                job.attempts += leases.len();
                for leased in leases {
                    self.deadlines.insert((leased.deadline, leased.epoch, slot));
                    if let Some(worker) = self.workers.get_mut(&leased.worker) {
                        worker.leases.insert(slot);
                    }
                }
            }
            Phase::Committed => job.work[position].committed += 1,
            Phase::Quarantined => _ = job.quarantined.insert(slot),
        }
    }

    fn unindex(&mut self, slot: Slot) {
        let task = &self.tasks[slot];
        let Some(job) = self.jobs.get_mut(&task.job) else { return };
        let position = Step::of(&task.kind).position(job.course());
        match &task.phase {
            Phase::Pending => _ = job.work[position].waiting.remove(&(Reverse(task.rank), slot)),
            Phase::Leased(leases) => {
                job.in_work.remove(&slot);
                job.attempts -= leases.len();
                for leased in leases {
                    self.deadlines.remove(&(leased.deadline, leased.epoch, slot));
                    if let Some(worker) = self.workers.get_mut(&leased.worker) {
                        worker.leases.remove(&slot);
                    }
                }
            }
            Phase::Committed => job.work[position].committed -= 1,
            Phase::Quarantined => _ = job.quarantined.remove(&slot),
        }
    }

    /// Puts the job where it belongs among those that workers are given tasks of.
    pub(super) fn queue(&mut self, id: &JobId) {
        if let Some(job) = self.jobs.get_mut(id) {
            self.queue.update(job);
        }
    }

    /// The tasks of a step.
    pub(super) fn tasks_in<'a>(&'a self, job: &'a Job, step: Step) -> impl Iterator<Item = &'a Task> {
        job.work(step).into_iter().flat_map(|work| work.slots.iter()).map(|slot| &self.tasks[slot])
    }
}
