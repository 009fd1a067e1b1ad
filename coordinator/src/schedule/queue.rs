//! Whose turn it is: jobs that have something to do, by priority, and of one priority so that owners, and the jobs of one owner,
//! get as many workers.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use deltaconv_proto::ids::JobId;

use super::Job;

/// Where a job stands among those of its owner: attempts at work, then the order in which jobs came.
type Turn = (usize, u64, JobId);

/// Jobs that have something to do.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// By priority, the highest first, and owner.
    classes: BTreeMap<Reverse<i32>, BTreeMap<String, BTreeSet<Turn>>>,
    /// Attempts at work, by owner.
    owners: BTreeMap<String, usize>,
}

/// Where in the queue a job was put.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Place {
    turn: Option<Turn>,
    /// Of its attempts, those that count as its owner's.
    counted: usize,
}

impl Queue {
    /// Puts the job where it belongs by now.
    pub(super) fn update(&mut self, job: &mut Job) {
        let (owner, class) = (&job.spec.owner, Reverse(job.spec.priority()));
        if job.place.counted != job.attempts {
            let of_owner = self.owners.entry(owner.clone()).or_default();
            *of_owner = *of_owner + job.attempts - job.place.counted;
            if *of_owner == 0 {
                self.owners.remove(owner);
            }
            job.place.counted = job.attempts;
        }
        let has_work = job.is_running() && !job.paused && job.ready().next().is_some();
        let turn = has_work.then(|| (job.attempts, job.sequence, job.id.clone()));
        if turn == job.place.turn {
            return;
        }
        let owners = self.classes.entry(class).or_default();
        let turns = owners.entry(owner.clone()).or_default();
        if let Some(former) = &job.place.turn {
            turns.remove(former);
        }
        turns.extend(turn.clone());
        job.place.turn = turn;
        if turns.is_empty() {
            owners.remove(owner);
        }
        if owners.is_empty() {
            self.classes.remove(&class);
        }
    }

    /// The jobs in the order in which a worker that asks is given their tasks.
    pub(super) fn jobs(&self) -> impl Iterator<Item = &JobId> {
        self.classes.values().flat_map(|owners| {
            let at_work = |owner: &String| self.owners.get(owner).copied().unwrap_or(0);
            let mut order: Vec<(usize, &BTreeSet<Turn>)> =
                owners.iter().map(|(owner, turns)| (at_work(owner), turns)).collect();
            order.sort_by_key(|(at_work, _)| *at_work);
            order.into_iter().flat_map(|(_, turns)| turns.iter().map(|(_, _, job)| job))
        })
    }
}
