//! Whose fault it was: a task's, a machine's, or nobody's. Each has a budget of its own, and none of them a preempted worker's.

use std::collections::BTreeSet;

use deltaconv_proto::ids::{JobId, TaskId, WorkerId};
use deltaconv_proto::v1;

use super::bounded::{MESSAGE, STORY, bounded, keep_last};
use super::events::{About, Severity};
use super::task::Failed;
use super::tasks::Slot;
use super::{Effects, Now, Phase, State, Step, Task, Worker};
use crate::store::Write;

/// Of failures that are told together, so many bytes of each.
const TOLD: usize = 600;

/// A machine on which something went wrong.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    /// Tasks that failed on it since it last did one, each with what it said. Those in quarantine are not among them: it was
    /// their own fault.
    failures: Vec<(TaskId, String)>,
    /// What its device said when it failed for good.
    device: Option<String>,
    /// That too many failed.
    faulty: Option<String>,
}

impl Node {
    pub(super) fn from_record(record: v1::NodeRecord) -> Result<(String, Self), super::Error> {
        let failures = record.failures.into_iter().map(|failed| Ok((TaskId::new(failed.task_id)?, failed.message)));
        let failures = failures.collect::<Result<_, super::Error>>()?;
        let [device, faulty] = [record.device, record.faulty].map(|reason| Some(reason).filter(|r| !r.is_empty()));
        Ok((record.node, Self { failures, device, faulty }))
    }

    pub(super) fn write(&self, name: &str) -> Write {
        if !self.says_something() {
            return Write::ForgetNode(name.to_owned());
        }
        let failure = |(task, message): &(TaskId, String)| v1::NodeFailure {
            task_id: task.to_string(),
            message: message.clone(),
        };
        Write::Node(Box::new(v1::NodeRecord {
            node: name.to_owned(),
            failures: self.failures.iter().map(failure).collect(),
            device: self.device.clone().unwrap_or_default(),
            faulty: self.faulty.clone().unwrap_or_default(),
        }))
    }

    /// Whether there is anything to remember of it.
    pub(super) fn says_something(&self) -> bool {
        !self.failures.is_empty() || self.out().is_some()
    }

    /// Why nothing is given to it, where that is so.
    fn out(&self) -> Option<&str> {
        self.device.as_deref().or(self.faulty.as_deref())
    }
}

impl State {
    /// An attempt failed that has no lease any more.
    pub(super) fn blame(
        &mut self,
        slot: Slot,
        worker: &WorkerId,
        failure: &v1::Failure,
        now: Now,
        effects: &mut Effects,
    ) {
        let node = self.workers.get(worker).map(|worker| worker.node.clone()).unwrap_or_default();
        let message = bounded(&failure.message, MESSAGE);
        if failure.of_device {
            self.totals.device_failed += 1;
            self.device_failed(&node, &message, now, effects);
            return;
        }
        self.totals.failed += 1;
        let failed = format!("an attempt failed: {message}");
        self.note((Severity::Warning, "task-failed"), About::Task(slot, Some(worker)), failed, effects);
        let task = &mut self.tasks[slot];
        task.last_failure.clone_from(&message);
        task.failures.push(Failed { node: node.clone(), message: message.clone() });
        keep_last(&mut task.failures);
        let id = task.id.clone();
        let failed = self.nodes.entry(node.clone()).or_default();
        failed.failures.retain(|(task, _)| *task != id);
        failed.failures.push((id, message));
        keep_last(&mut failed.failures);
        self.take_out_if_faulty(&node, now, effects);
        self.settle_node(&node, effects);
        if self.is_hopeless(slot, now) {
            self.quarantine(slot, effects);
        }
    }

    /// A lease ended with nobody to say why.
    pub(super) fn lost(&mut self, slot: Slot, epoch: u64, now: Now, effects: &mut Effects) {
        let worker = self.tasks[slot].leases().iter().find(|leased| leased.epoch == epoch);
        if let Some(worker) = worker.map(|leased| leased.worker.clone()) {
            let message = match &self.tasks[slot].checkpoint {
                Some(checkpoint) => format!("its worker is silent; another goes on from step {}", checkpoint.step),
                None => "its worker is silent; another begins it again".to_owned(),
            };
            self.totals.lost += 1;
            self.note((Severity::Warning, "worker-lost"), About::Task(slot, Some(&worker)), message, effects);
        }
        self.end_lease(slot, epoch);
        let most = self.settings.max_lost;
        let task = &mut self.tasks[slot];
        task.lost = task.lost.saturating_add(1);
        if task.lost >= most && task.leases().is_empty() {
            task.last_failure = format!("its worker was lost {} times, always before the next checkpoint", task.lost);
            self.quarantine(slot, effects);
        }
        self.left_alone(slot, now, effects);
    }

    /// A lease of the task ended by nobody's fault. Where it had failed everywhere else that attempt was its last.
    pub(super) fn left_alone(&mut self, slot: Slot, now: Now, effects: &mut Effects) {
        if self.tasks[slot].is_pending() && self.has_failed_everywhere(slot) {
            self.quarantine(slot, effects);
        }
        self.write_task(slot, effects);
        let job = self.tasks[slot].job.clone();
        self.fail_if_stuck(&job, now, effects);
        self.wake_idle(now, effects);
    }

    /// The machine has done something: what failed there before was not its fault.
    pub(super) fn did_well(&mut self, node: &str, effects: &mut Effects) {
        if let Some(known) = self.nodes.get_mut(node).filter(|node| !node.failures.is_empty() && node.out().is_none()) {
            known.failures.clear();
            self.settle_node(node, effects);
        }
    }

    /// The device of a machine can't be used any more.
    pub(super) fn device_failed(&mut self, node: &str, message: &str, now: Now, effects: &mut Effects) {
        if self.nodes.get(node).is_some_and(|node| node.device.is_some()) {
            return;
        }
        let message = bounded(message, MESSAGE);
        tracing::warn!(node, reason = message, "the machine's device failed; it is given nothing more");
        let reason = format!("its device failed: {message}");
        self.note(
            (Severity::Error, "machine-out"),
            About::Node(node),
            format!("given nothing more: {reason}"),
            effects,
        );
        self.nodes.entry(node.to_owned()).or_default().device = Some(reason);
        self.settle_node(node, effects);
        self.wake_idle(now, effects);
    }

    /// Gives tasks to the machine again.
    pub(super) fn forgive(&mut self, node: &str, effects: &mut Effects) {
        if self.nodes.contains_key(node) {
            self.nodes.insert(node.to_owned(), Node::default());
            self.settle_node(node, effects);
            self.note(
                (Severity::Info, "machine-back"),
                About::Node(node),
                "given tasks again, as an operator wants",
                effects,
            );
        }
    }

    /// Writes what is known of a machine, and forgets one of which that is nothing.
    fn settle_node(&mut self, name: &str, effects: &mut Effects) {
        let Some(node) = self.nodes.get(name) else { return };
        let write = node.write(name);
        if matches!(write, Write::ForgetNode(_)) {
            self.nodes.remove(name);
        }
        effects.writes.push(write);
    }

    /// Takes the machine out on which different tasks failed one after the other, while there is another one to go on with.
    fn take_out_if_faulty(&mut self, name: &str, now: Now, effects: &mut Effects) {
        let others = self.has_others(name, now);
        let most = self.settings.max_failures as usize;
        let Some(node) = self.nodes.get_mut(name).filter(|node| node.out().is_none() && others) else { return };
        if node.failures.len() >= most {
            let told: Vec<String> = node.failures.iter().map(|(task, message)| told(task.as_str(), message)).collect();
            tracing::warn!(node = name, "different tasks failed on the machine; it is given nothing more");
            let reason = format!("{} tasks failed on it one after the other: {}", told.len(), told.join("; "));
            let reason = bounded(&reason, STORY);
            node.faulty = Some(reason.clone());
            self.note(
                (Severity::Error, "machine-out"),
                About::Node(name),
                format!("given nothing more: {reason}"),
                effects,
            );
        }
    }

    /// Whether the worker could be given something.
    pub(super) fn is_usable(&self, worker: &Worker, now: Now) -> bool {
        self.is_alive(worker, now) && !worker.takes_nothing() && self.why_out(worker, now).is_none()
    }

    /// Why nothing is given to the worker's machine, where that is so. Where no other machine is left, failures on it are no
    /// reason any more.
    pub(super) fn why_out(&self, worker: &Worker, now: Now) -> Option<&str> {
        let node = self.nodes.get(&worker.node)?;
        node.device.as_deref().or_else(|| node.faulty.as_deref().filter(|_| self.has_others(&worker.node, now)))
    }

    /// The machines that are given nothing because of what went wrong on them.
    pub(super) fn machines_out(&self) -> Vec<String> {
        self.nodes.iter().filter(|(_, node)| node.out().is_some()).map(|(name, _)| name.clone()).collect()
    }

    /// Whether there is another machine to go on with.
    fn has_others(&self, node: &str, now: Now) -> bool {
        let is_out = |worker: &Worker| self.nodes.get(&worker.node).is_some_and(|node| node.out().is_some());
        self.workers.values().any(|worker| {
            worker.node != node && self.is_alive(worker, now) && !worker.takes_nothing() && !is_out(worker)
        })
    }

    /// Whether a task may be given to this worker: to one that knows all of it, and, where it failed, to one on whose machine it
    /// has not failed yet, as long as there is such a one.
    pub(super) fn may_try(&self, slot: Slot, worker: &Worker, now: Now) -> bool {
        let Task { kind, failures, .. } = &self.tasks[slot];
        if !worker.knows(kind) {
            return false;
        }
        !failures.iter().any(|failed| failed.node == worker.node) || !self.has_untried(slot, now)
    }

    /// Whether the task could be tried on another machine.
    fn has_untried(&self, slot: Slot, now: Now) -> bool {
        let task = &self.tasks[slot];
        let requires = self.jobs[&task.job].spec.requires.as_ref();
        self.workers.values().any(|worker| {
            self.is_usable(worker, now)
                && worker.meets(requires)
                && worker.knows(&task.kind)
                && task.failures.iter().all(|failed| failed.node != worker.node)
        })
    }

    /// Whether the task failed everywhere, or as often as it may with nowhere else to go.
    fn is_hopeless(&self, slot: Slot, now: Now) -> bool {
        let (task, most) = (&self.tasks[slot], self.settings.max_failures as usize);
        let has_nowhere_to_go = || task.failures.len() >= most && !self.has_untried(slot, now);
        task.leases().is_empty() && (self.has_failed_everywhere(slot) || has_nowhere_to_go())
    }

    /// Whether the task failed on as many machines as it may.
    pub(super) fn has_failed_everywhere(&self, slot: Slot) -> bool {
        let nodes: BTreeSet<&str> = self.tasks[slot].failures.iter().map(|failed| failed.node.as_str()).collect();
        nodes.len() >= self.settings.max_failures as usize
    }

    /// Gives the task to nobody any more, and takes back what it had machines blamed for.
    fn quarantine(&mut self, slot: Slot, effects: &mut Effects) {
        self.change(slot, |task| task.phase = Phase::Quarantined);
        let id = self.tasks[slot].id.clone();
        let reason = self.why_quarantined(slot);
        tracing::warn!(task = %id, reason, "the task is in quarantine");
        let message = format!("in quarantine: {reason}");
        self.note((Severity::Error, "task-quarantined"), About::Task(slot, None), message, effects);
        let blamed = self.nodes.iter().filter(|(_, node)| node.failures.iter().any(|(task, _)| *task == id));
        for name in blamed.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            let Some(node) = self.nodes.get_mut(&name) else { continue };
            node.failures.retain(|(task, _)| *task != id);
            if node.failures.len() < self.settings.max_failures as usize {
                node.faulty = None;
            }
            self.settle_node(&name, effects);
        }
    }

    /// What a task in quarantine has to say for itself.
    pub(super) fn why_quarantined(&self, slot: Slot) -> String {
        let task = &self.tasks[slot];
        let Some((last, before)) = task.failures.split_last() else { return task.last_failure.clone() };
        let times = task.failures.len();
        if before.iter().all(|failed| failed.message == last.message) {
            return format!("it failed {times} times with: {}", last.message);
        }
        let on =
            |failed: &Failed| told(if failed.node.is_empty() { "a worker" } else { &failed.node }, &failed.message);
        format!("it failed {times} times: {}", task.failures.iter().map(on).collect::<Vec<_>>().join("; "))
    }

    /// Ends the job if nothing is left that could be done about it: all that is not over waits for tasks in quarantine, or so
    /// many of a stage are there that none of it will do.
    pub(super) fn fail_if_stuck(&mut self, id: &JobId, now: Now, effects: &mut Effects) {
        let Some(job) = self.jobs.get(id).filter(|job| job.is_running()) else { return };
        let Some(&first) = job.quarantined.first() else { return };
        let step = Step::of(&self.tasks[first].kind);
        let of_step = job.quarantined.iter().filter(|slot| Step::of(&self.tasks[**slot].kind) == step).count();
        let none_went_well = job.work(step).is_some_and(|work| work.committed == 0);
        let is_hopeless = none_went_well && of_step >= self.settings.max_failures as usize;
        let is_stuck = job.in_work.is_empty() && job.ready().next().is_none();
        if is_hopeless || is_stuck {
            let (task, count) = (&self.tasks[first].id, job.quarantined.len());
            let others = if count > 1 { format!(" (and {} others)", count - 1) } else { String::new() };
            let reason = format!("task {task}{others} can't be done: {}", self.why_quarantined(first));
            self.fail(id, reason, now, effects);
        }
    }
}

fn told(who: &str, message: &str) -> String {
    format!("{who}: {}", bounded(message, TOLD))
}
