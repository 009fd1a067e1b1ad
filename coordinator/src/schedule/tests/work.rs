//! What is kept beside the tasks.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::*;

/// What is kept beside the tasks says the same as the tasks.
pub(super) fn assert_is_current(state: &State) {
    let mut deadlines = BTreeSet::new();
    let mut leases: BTreeMap<&WorkerId, BTreeSet<Slot>> = BTreeMap::new();
    for job in state.jobs.values() {
        let (mut in_work, mut quarantined, mut attempts) = (BTreeSet::new(), BTreeSet::new(), 0);
        for (step, work) in Step::all(job.course()).zip(&job.work) {
            let (mut waiting, mut committed) = (BTreeSet::new(), 0);
            for slot in work.slots.iter() {
                let task = &state.tasks[slot];
                assert_eq!(Step::of(&task.kind), step, "{}", task.id);
                match &task.phase {
                    Phase::Pending => {
                        let stands = match task.kind {
                            Kind::Distill { round, .. } => state.placement.standing(slot) == job.shards[round as usize],
                            _ => true,
                        };
                        waiting.extend(stands.then_some((Reverse(task.rank), slot)));
                    }
                    Phase::Leased(of_task) => {
                        in_work.insert(slot);
                        attempts += of_task.len();
                        for leased in of_task {
                            deadlines.insert((leased.deadline, leased.epoch, slot));
                            leases.entry(&leased.worker).or_default().insert(slot);
                        }
                    }
                    Phase::Committed => committed += 1,
                    Phase::Quarantined => _ = quarantined.insert(slot),
                }
            }
            assert_eq!((&waiting, committed), (&work.waiting, work.committed), "{} {step:?}", job.id);
        }
        assert_eq!((&in_work, attempts, &quarantined), (&job.in_work, job.attempts, &job.quarantined), "{}", job.id);
        let is_queued = state.queue.jobs().any(|queued| *queued == job.id);
        assert_eq!(is_queued, job.is_running() && !job.paused && job.ready().next().is_some(), "{}", job.id);
    }
    assert_eq!(deadlines, state.deadlines);
    for worker in state.workers.values() {
        assert_eq!(leases.remove(&worker.id).unwrap_or_default(), worker.leases, "{}", worker.id);
    }
}
