//! The coordinator's disk: what is written is durable once it is flushed, and either may fail.

use std::io;
use std::sync::Arc;

use deltaconv_coordinator::store::{Error, MemoryStore, Store, Write};

use crate::world::{World, lock};

/// What is on the disk.
#[derive(Default)]
pub(crate) struct Platters {
    flushed: MemoryStore,
    /// Written and not flushed: a crash decides whether it is there afterwards.
    written: Vec<Write>,
    /// The next write fails, whatever the weather.
    breaks: bool,
}

impl Platters {
    /// The next write fails.
    pub(crate) fn break_once(&mut self) {
        self.breaks = true;
    }
}

/// A process' handle of the disk.
pub(crate) struct Disk(pub(crate) Arc<World>);

impl Store for Disk {
    fn each(&mut self, take: &mut dyn FnMut(Write)) -> Result<(), Error> {
        let world = &self.0;
        // What a write left that failed is found or isn't, as after a crash.
        crash(world);
        world.check(|audit, now| audit.restarted(now));
        lock(&world.platters).flushed.each(take)
    }

    fn apply(&mut self, writes: &[Write]) -> Result<(), Error> {
        let world = &self.0;
        let failing = std::mem::take(&mut lock(&world.platters).breaks) || world.chance(world.weather().disk_errors);
        if failing {
            lock(&world.audit).disk_fails();
        }
        if failing && world.chance(0.5) {
            return Err(broken("write"));
        }
        lock(&world.platters).written.extend_from_slice(writes);
        if failing {
            return Err(broken("flush"));
        }
        flush(world);
        Ok(())
    }
}

/// Nobody writes any more; what was written and not flushed may be gone, too.
pub(crate) fn crash(world: &World) {
    if world.chance(0.5) {
        flush(world);
    }
    lock(&world.platters).written.clear();
}

fn flush(world: &World) {
    let mut platters = lock(&world.platters);
    let written = std::mem::take(&mut platters.written);
    // Memory takes everything.
    let _ = platters.flushed.apply(&written);
    drop(platters);
    if !written.is_empty() {
        world.trace(format_args!("durable: {}", Listed(&written)));
        world.check(|audit, now| audit.becomes_durable(&written, now));
    }
}

fn broken(what: &str) -> Error {
    let source = io::Error::other(format!("the simulated {what} failed"));
    Error::Io { path: "disk".into(), source }
}

/// Writes, shortly.
struct Listed<'a>(&'a [Write]);

impl std::fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for write in self.0 {
            match write {
                Write::Meta(meta) => write!(f, "epoch {}; ", meta.epoch)?,
                Write::Job(job) => write!(f, "{} {}; ", job.job_id, job.state)?,
                Write::Worker(worker) => write!(f, "{}; ", worker.worker_id)?,
                Write::ForgetWorker(worker) => write!(f, "not {worker}; ")?,
                Write::Node(node) => write!(f, "{node:?}; ")?,
                Write::ForgetNode(node) => write!(f, "nothing of {node}; ")?,
                Write::Request(request) => write!(f, "request {}; ", request.request_id)?,
                Write::ForgetRequest(request) => write!(f, "no request {request}; ")?,
                Write::Invitation(_) | Write::ForgetInvitation(_) | Write::Identity(_) | Write::ForgetIdentity(_) => {}
                Write::Event(event) => write!(f, "event {} {}; ", event.sequence, event.kind)?,
                Write::Task(task) => {
                    let state = match (&task.lease, task.committed) {
                        (_, true) => "committed".into(),
                        (Some(lease), false) => format!("leased as {} to {}", lease.attempt_id, task.worker_id),
                        (None, false) => "pending".to_owned(),
                    };
                    let step = task.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step);
                    write!(f, "{} {state}, step {step}, {} failures; ", task.task_id, task.failed.len())?;
                }
            }
        }
        Ok(())
    }
}
