//! Workers that joined.

use std::time::Duration;

use deltaconv_proto::ids::WorkerId;
use deltaconv_proto::v1;

use super::{Effects, Error, Now, State};
use crate::store::Write;

/// A process that joined.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Its id.
    pub id: WorkerId,
    /// What people call it.
    pub name: String,
    /// What it computes on.
    pub device: v1::Device,
    /// Its version of deltaconv.
    pub version: String,
    /// Its last Sync, as [`Now::monotonic`].
    pub last_seen: Duration,
    /// It is leaving and takes nothing new.
    pub draining: bool,
}

impl Worker {
    fn is_alive(&self, lease_ttl: Duration, now: Now) -> bool {
        now.monotonic < self.last_seen + lease_ttl
    }
}

impl State {
    /// A worker joins; it is given an id of its own, also when it was here before under another.
    pub fn join(&mut self, request: v1::JoinRequest, now: Now, effects: &mut Effects) -> Result<WorkerId, Error> {
        self.meta.workers += 1;
        let id = WorkerId::new(format!("w{}-{}", self.meta.workers, self.settings.identity))?;
        let printable = |text: String| text.chars().filter(|c| !c.is_control()).take(128).collect::<String>();
        let worker = Worker {
            id: id.clone(),
            name: printable(request.name),
            device: request.device.unwrap_or_default(),
            version: printable(request.version),
            last_seen: now.monotonic,
            draining: false,
        };
        effects.writes.push(Write::Meta(self.meta));
        effects.writes.push(Write::Worker(worker.record()));
        self.workers.insert(id.clone(), worker);
        Ok(id)
    }

    /// Whether the worker was heard of within the time of a lease.
    pub(super) fn is_alive(&self, worker: &Worker, now: Now) -> bool {
        worker.is_alive(self.settings.lease_ttl, now)
    }

    /// Forgets workers that have long been lost, and at once what lost ones said of their nodes.
    pub(super) fn forget_lost_workers(&mut self, now: Now, effects: &mut Effects) {
        let lease_ttl = self.settings.lease_ttl;
        self.placement.retain(|id| self.workers.get(id).is_some_and(|worker| worker.is_alive(lease_ttl, now)));
        let forget_before = now.monotonic.saturating_sub(self.settings.forget_workers);
        let has_lease = |id: &WorkerId| self.tasks.values().any(|t| t.leased().is_some_and(|l| &l.worker == id));
        let gone: Vec<WorkerId> = self
            .workers
            .values()
            .filter(|w| w.last_seen < forget_before && !has_lease(&w.id))
            .map(|w| w.id.clone())
            .collect();
        for id in gone {
            self.workers.remove(&id);
            effects.writes.push(Write::ForgetWorker(id));
        }
    }
}
