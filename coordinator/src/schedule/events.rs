//! What happened that an operator may want to know: durable with the change that it tells of, and the last of them kept.

use std::collections::VecDeque;

use deltaconv_proto::ids::{JobId, WorkerId};
use deltaconv_proto::{utc, v1};

use super::tasks::Slot;
use super::{Effects, Now, State};
use crate::store::Write;

/// So many are kept.
pub(crate) const KEPT: u64 = 10_000;
/// Characters of a message.
const LONGEST: usize = 1000;

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    /// As it should be.
    Info,
    /// Dealt with, and worth a look.
    Warning,
    /// Somebody has to do something.
    Error,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Whom an event is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum About<'a> {
    /// A job.
    Job(&'a JobId),
    /// A task, and who worked on it.
    Task(Slot, Option<&'a WorkerId>),
    /// A worker.
    Worker(&'a WorkerId),
    /// A machine.
    Node(&'a str),
    /// The coordinator itself.
    Coordinator,
}

/// The last events, in order.
#[derive(Debug, Default)]
pub(super) struct Events(VecDeque<v1::Event>);

impl Events {
    /// Takes a record.
    pub(super) fn add(&mut self, event: v1::Event) {
        self.0.push_back(event);
    }

    /// Puts records in order that came in none, and forgets those that were kept too long.
    pub(super) fn arrange(&mut self, last: u64) {
        self.0.retain(|event| event.sequence <= last && last - event.sequence < KEPT);
        self.0.make_contiguous().sort_by_key(|event| event.sequence);
    }

    /// All that are kept.
    pub(super) fn records(&self) -> impl Iterator<Item = &v1::Event> {
        self.0.iter()
    }
}

impl State {
    /// Says what happened.
    pub(super) fn note(
        &mut self,
        (severity, kind): (Severity, &str),
        about: About<'_>,
        message: impl AsRef<str>,
        effects: &mut Effects,
    ) {
        self.meta.events += 1;
        let message: String = message.as_ref().chars().take(LONGEST).collect();
        let mut event = v1::Event {
            sequence: self.meta.events,
            unix_ms: self.unix_ms,
            severity: severity.name().into(),
            kind: kind.into(),
            message,
            ..v1::Event::default()
        };
        match about {
            About::Job(job) => event.job_id = job.to_string(),
            About::Task(slot, worker) => {
                let task = &self.tasks[slot];
                (event.job_id, event.task_id) = (task.job.to_string(), task.id.to_string());
                event.worker_id = worker.map(ToString::to_string).unwrap_or_default();
                event.node = worker.and_then(|id| self.workers.get(id)).map(|w| w.node.clone()).unwrap_or_default();
            }
            About::Worker(id) => {
                event.worker_id = id.to_string();
                event.node = self.workers.get(id).map(|worker| worker.node.clone()).unwrap_or_default();
            }
            About::Node(node) => event.node = node.into(),
            About::Coordinator => {}
        }
        self.events.add(event.clone());
        if self.events.0.len() as u64 > KEPT {
            self.events.0.pop_front();
        }
        effects.writes.extend([Write::Meta(self.meta), Write::Event(Box::new(event))]);
    }

    /// A process began to serve the state.
    pub fn started(&mut self, version: &str, effects: &mut Effects) {
        let message = format!("the coordinator started, version {version}");
        self.note((Severity::Info, "coordinator-started"), About::Coordinator, message, effects);
    }

    /// The certificates that connections are encrypted with were replaced.
    pub(crate) fn certificates_changed(&mut self, now: Now, effects: &mut Effects) {
        self.unix_ms = now.unix_ms;
        let message = "the certificates changed; new connections have the new ones";
        self.note((Severity::Info, "certificates-changed"), About::Coordinator, message, effects);
    }

    /// A certificate ends at this time, in milliseconds since 1970.
    pub(crate) fn certificate_ends(
        &mut self,
        (name, unix_ms): (&str, u64),
        is_over: bool,
        now: Now,
        effects: &mut Effects,
    ) {
        self.unix_ms = now.unix_ms;
        let (severity, verb) = if is_over { (Severity::Error, "ended") } else { (Severity::Warning, "ends") };
        let message = format!("the certificate {name} {verb} at {}; put another in its place", utc(unix_ms));
        self.note((severity, "certificate-ends"), About::Coordinator, message, effects);
    }

    /// What could not be written, for this reason, can be written again.
    pub(crate) fn writable_again(&mut self, reason: &str, effects: &mut Effects) {
        let message = format!("the state can be written again; it could not: {reason}");
        self.note((Severity::Warning, "state-writable"), About::Coordinator, message, effects);
    }

    /// Events after one of this sequence, of one job or of all; at most `limit` of them.
    pub fn events_after(&self, sequence: u64, job: Option<&JobId>, limit: usize) -> Vec<v1::Event> {
        let first = self.events.0.partition_point(|event| event.sequence <= sequence);
        let later = self.events.0.range(first..);
        let of_job = |event: &&v1::Event| job.is_none_or(|job| event.job_id == job.as_str());
        later.filter(of_job).take(limit).cloned().collect()
    }

    /// The latest events in order, of one job or of all.
    pub(crate) fn latest_events(&self, job: Option<&JobId>, limit: usize) -> Vec<v1::Event> {
        let of_job = |event: &&v1::Event| job.is_none_or(|job| event.job_id == job.as_str());
        let mut latest: Vec<v1::Event> = self.events.0.iter().rev().filter(of_job).take(limit).cloned().collect();
        latest.reverse();
        latest
    }

    /// The sequence of the last event.
    pub fn last_event(&self) -> u64 {
        self.meta.events
    }
}
