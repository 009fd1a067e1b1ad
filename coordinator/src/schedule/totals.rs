//! What the state machine counts for who watches it.

use super::{JobState, Kind, Now, Phase, Stage, State, Step};

/// What happened since the process began, or last read its state. Each only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Leases that were given, spare ones among them.
    pub leases: u64,
    /// Second attempts beside one that takes too long.
    pub spares: u64,
    /// Outputs that were accepted, by the position of their stage in [`Stage::ALL`].
    pub committed: [u64; Stage::ALL.len()],
    /// Attempts that ended by their task's own fault, as it seems.
    pub failed: u64,
    /// Attempts that ended because their machine's device failed.
    pub device_failed: u64,
    /// Attempts that ended with their worker.
    pub lost: u64,
    /// Attempts that were handed back.
    pub handed_back: u64,
    /// Shards and latents that were found broken.
    pub broken: u64,
}

impl Totals {
    /// An output of this kind was accepted.
    pub(super) fn commit(&mut self, kind: &Kind) {
        let stage = Step::of(kind).stage;
        for (of_stage, count) in Stage::ALL.iter().zip(&mut self.committed) {
            *count += u64::from(*of_stage == stage);
        }
    }
}

/// What there is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Jobs by state: running, paused, done, failed, cancelled.
    pub jobs: [(&'static str, u64); 5],
    /// Tasks of running jobs by stage, and in it by state.
    pub tasks: Vec<(Stage, [(&'static str, u64); 4])>,
    /// Tasks that could be begun now if there were a worker for each, as far as their jobs' `max_workers` lets them; none of jobs that
    /// are paused, or while nothing can be made durable.
    pub ready: u64,
    /// Workers by state.
    pub workers: [(&'static str, u64); 5],
    /// Whether nothing can be made durable.
    pub read_only: bool,
}

impl State {
    /// What happened.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Why nothing can be made durable, while it can't.
    pub fn read_only(&self) -> Option<&str> {
        self.read_only.as_deref()
    }

    /// What there is now. Takes a look at every job and worker.
    pub fn census(&self, now: Now) -> Census {
        let mut jobs = ["running", "paused", "done", "failed", "cancelled"].map(|state| (state, 0));
        let mut tasks: Vec<(Stage, [(&'static str, u64); 4])> = Vec::new();
        let worked = Stage::ALL.into_iter().filter(|stage| *stage != Stage::Assemble);
        tasks.extend(worked.map(|stage| (stage, ["waiting", "running", "committed", "quarantined"].map(|s| (s, 0)))));
        let mut ready = 0;
        for job in self.jobs.values() {
            let place = match job.state {
                JobState::Running if job.paused => 1,
                JobState::Running => 0,
                JobState::Done => 2,
                JobState::Failed(_) => 3,
                JobState::Cancelled => 4,
            };
            jobs[place].1 += 1;
            if !job.is_running() {
                continue;
            }
            if !job.paused && self.read_only.is_none() {
                ready += job.startable() as u64;
            }
            for task in self.tasks_of(job) {
                let stage = Step::of(&task.kind).stage;
                let place = match task.phase {
                    Phase::Pending => 0,
                    Phase::Leased(_) => 1,
                    Phase::Committed => 2,
                    Phase::Quarantined => 3,
                };
                tasks.iter_mut().filter(|(of, _)| *of == stage).for_each(|(_, states)| states[place].1 += 1);
            }
        }
        let mut workers = ["busy", "idle", "draining", "out", "lost"].map(|state| (state, 0));
        for worker in self.workers.values() {
            let state = self.state_of(worker, now);
            workers.iter_mut().filter(|(name, _)| *name == state).for_each(|(_, count)| *count += 1);
        }
        Census { jobs, tasks, ready, workers, read_only: self.read_only.is_some() }
    }
}
