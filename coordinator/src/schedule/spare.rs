//! Attempts that take too long: an idle worker gets a second one at the same task, and whichever ends first counts.

use std::time::Duration;

use super::status::fraction_of;
use super::tasks::Slot;
use super::{Effects, Job, Leased, Now, State, Step, Task, Worker};

/// An attempt is a straggler from this many times its peers' median on.
const TIMES_MEDIAN: f64 = 2.0;
/// So many peers must have ended for their median to say something.
const PEERS: usize = 3;
/// How often stragglers are looked for.
const EVERY: Duration = Duration::from_secs(1);

impl State {
    /// Looks for attempts that are predicted to end after twice the median of their peers, and has idle workers ask for them.
    pub(super) fn look_for_stragglers(&mut self, now: Now, effects: &mut Effects) {
        if now.monotonic < self.looked_for_stragglers + EVERY {
            return;
        }
        self.looked_for_stragglers = now.monotonic;
        self.stragglers.clear();
        if self.idle.is_empty() {
            return;
        }
        let running = self.jobs.values().filter(|job| job.is_running() && !job.paused && !job.in_work.is_empty());
        self.stragglers = running.flat_map(|job| self.stragglers_of(job, now)).collect();
        let found: Vec<Slot> = self.stragglers.iter().copied().collect();
        self.wake(&found, now, effects);
    }

    fn stragglers_of(&self, job: &Job, now: Now) -> Vec<Slot> {
        let mut found = Vec::new();
        let mut median: Option<(Step, Option<f64>)> = None;
        for &slot in &job.in_work {
            let task = &self.tasks[slot];
            let [leased] = task.leases() else { continue };
            let step = Step::of(&task.kind);
            // Tasks of one step follow each other.
            let of_step = match median {
                Some((of, median)) if of == step => median,
                _ => self.median_pace(job, step),
            };
            median = Some((step, of_step));
            let Some(pace) = of_step.filter(|_| !leased.verifying) else { continue };
            let usual = pace * weight(task) * (1.0 - leased.began_at.unwrap_or(0.0));
            if predicted_seconds(leased, now) > TIMES_MEDIAN * usual {
                found.push(slot);
            }
        }
        found
    }

    /// The median of what a step's committed tasks took, over what they cost.
    fn median_pace(&self, job: &Job, step: Step) -> Option<f64> {
        let over = self.tasks_in(job, step).filter(|task| task.is_committed() && task.busy_seconds > 0.0);
        let mut paces: Vec<f64> = over.map(|task| task.busy_seconds / weight(task)).collect();
        paces.sort_by(f64::total_cmp);
        (paces.len() >= PEERS).then(|| paces[paces.len() / 2])
    }

    /// A task whose attempt is a straggler, for a worker on another machine.
    pub(super) fn next_spare(&self, worker: &Worker, now: Now) -> Option<Slot> {
        let suits = |slot: &&Slot| {
            let task = &self.tasks[**slot];
            let [leased] = task.leases() else { return false };
            let node = self.workers.get(&leased.worker).map(|worker| worker.node.as_str());
            let job = &self.jobs[&task.job];
            node != Some(&worker.node)
                && !job.paused
                && !job.is_full()
                && worker.meets(job.spec.requires.as_ref())
                && self.may_try(**slot, worker, now)
                && !self.has_failed_everywhere(**slot)
                // Something that it reads may be made again.
                && self.start(task, leased).is_some()
        };
        self.stragglers.iter().find(suits).copied()
    }
}

/// What a task costs, in no unit and never nothing.
fn weight(task: &Task) -> f64 {
    (task.rank as f64).max(1.0)
}

/// How long the attempt will have taken in the end, if it goes on as it did; what it took already, as long as it says nothing.
fn predicted_seconds(leased: &Leased, now: Now) -> f64 {
    let elapsed = now.monotonic.saturating_sub(leased.since).as_secs_f64();
    let began_at = leased.began_at.unwrap_or(0.0);
    let done = fraction_of(leased) - began_at;
    if done > 0.0 { elapsed * (1.0 - began_at) / done } else { elapsed }
}
