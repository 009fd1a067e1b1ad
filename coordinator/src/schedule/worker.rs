//! Workers that joined.

use std::collections::BTreeSet;
use std::time::Duration;

use deltaconv_proto::ids::WorkerId;
use deltaconv_proto::protocol::Version;
use deltaconv_proto::v1;

use super::bounded::{self, printable};
use super::events::{About, Severity};
use super::tasks::Slot;
use super::{Effects, Error, Now, State};
use crate::store::Write;

/// A process that joined.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Its id.
    pub id: WorkerId,
    /// What people call it.
    pub name: String,
    /// Its machine. A name of its own where it didn't say.
    pub node: String,
    /// What it computes on.
    pub device: v1::Device,
    /// Who joined: a worker's identity, or "local".
    pub identity: String,
    /// Its version of deltaconv.
    pub version: String,
    /// What it speaks, and so what it can be asked to do.
    pub protocol: Version,
    /// Its last Sync, as [`Now::monotonic`].
    pub last_seen: Duration,
    /// It is leaving and takes nothing new.
    pub draining: bool,
    /// An operator wants it to take nothing new.
    pub drained: bool,
    /// How busy its machine is, as it last said.
    pub load: Option<v1::Load>,
    /// The tasks that it is leased.
    pub(super) leases: BTreeSet<Slot>,
}

impl Worker {
    fn is_alive(&self, lease_ttl: Duration, now: Now) -> bool {
        now.monotonic < self.last_seen + lease_ttl
    }

    /// Whether it is to be given nothing more.
    pub(super) fn takes_nothing(&self) -> bool {
        self.draining || self.drained
    }

    /// Whether it has what a job requires.
    pub(super) fn meets(&self, requires: Option<&v1::Requirements>) -> bool {
        self.lacks(requires).is_none()
    }

    /// What it lacks of what a job requires.
    pub(super) fn lacks(&self, requires: Option<&v1::Requirements>) -> Option<&'static str> {
        self.device.lacks(requires)
    }
}

impl State {
    /// A worker joins of which nothing is known but that it may.
    ///
    /// # Errors
    /// As [`State::join_as`].
    pub fn join(&mut self, request: v1::JoinRequest, now: Now, effects: &mut Effects) -> Result<WorkerId, Error> {
        self.join_as("", request, now, effects)
    }

    /// A worker of this identity joins; it is given an id of its own, also when it was here before under another.
    ///
    /// # Errors
    /// An id that can't be one, which is a fault of ours.
    pub fn join_as(
        &mut self,
        identity: &str,
        request: v1::JoinRequest,
        now: Now,
        effects: &mut Effects,
    ) -> Result<WorkerId, Error> {
        self.meta.workers += 1;
        let id = WorkerId::new(format!("w{}-{}", self.meta.workers, self.settings.identity))?;
        let node = printable(&request.node);
        let worker = Worker {
            id: id.clone(),
            name: printable(&request.name),
            node: if node.is_empty() { id.to_string() } else { node },
            device: bounded::device(request.device.unwrap_or_default()),
            identity: identity.to_owned(),
            version: printable(&request.version),
            protocol: Version::said(&request.protocol),
            last_seen: now.monotonic,
            draining: false,
            drained: false,
            load: None,
            leases: BTreeSet::new(),
        };
        effects.writes.push(Write::Meta(self.meta));
        effects.writes.push(Write::Worker(worker.record().into()));
        let message = format!("{} joined with {}", worker.name, worker.device.name);
        self.workers.insert(id.clone(), worker);
        self.unix_ms = now.unix_ms;
        self.note((Severity::Info, "worker-joined"), About::Worker(&id), message, effects);
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
        let gone: Vec<WorkerId> = self
            .workers
            .values()
            .filter(|w| w.last_seen < forget_before && w.leases.is_empty())
            .map(|w| w.id.clone())
            .collect();
        for id in gone {
            self.workers.remove(&id);
            self.idle.remove(&id);
            effects.writes.push(Write::ForgetWorker(id));
        }
    }
}
