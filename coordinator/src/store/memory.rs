//! State that lasts as long as the process, for simulation.

use deltaconv_proto::v1;

use super::{Error, Records, Store, Write};
use crate::schedule::KEPT;

/// Keeps what is applied, in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    records: Records,
}

impl Store for MemoryStore {
    fn each(&mut self, take: &mut dyn FnMut(Write)) -> Result<(), Error> {
        self.records.clone().into_writes().for_each(take);
        Ok(())
    }

    fn apply(&mut self, writes: &[Write]) -> Result<(), Error> {
        for write in writes.iter().cloned() {
            match write {
                Write::Meta(meta) => self.records.meta = meta,
                Write::Job(job) => put(&mut self.records.jobs, *job, |j| &j.job_id),
                Write::Task(task) => put(&mut self.records.tasks, *task, |t| &t.task_id),
                Write::Worker(worker) => put(&mut self.records.workers, *worker, |w| &w.worker_id),
                Write::ForgetWorker(id) => self.records.workers.retain(|w| w.worker_id != id.as_str()),
                Write::Node(node) => put(&mut self.records.nodes, *node, |n| &n.node),
                Write::ForgetNode(name) => self.records.nodes.retain(|n| n.node != name),
                Write::Request(request) => put(&mut self.records.requests, request, |r| &r.request_id),
                Write::Event(event) => {
                    let place = |event: &v1::Event| event.sequence % KEPT;
                    self.records.events.retain(|kept| place(kept) != place(&event));
                    self.records.events.push(*event);
                }
                Write::ForgetRequest(id) => self.records.requests.retain(|r| r.request_id != id),
                Write::Invitation(record) => put(&mut self.records.invitations, *record, |r| &r.id),
                Write::ForgetInvitation(id) => self.records.invitations.retain(|r| r.id != id),
                Write::Identity(record) => put(&mut self.records.identities, *record, |r| &r.identity),
                Write::ForgetIdentity(id) => self.records.identities.retain(|r| r.identity != id),
            }
        }
        Ok(())
    }
}

fn put<T>(records: &mut Vec<T>, record: T, id: impl Fn(&T) -> &String) {
    match records.binary_search_by(|probe| id(probe).cmp(id(&record))) {
        Ok(at) => records[at] = record,
        Err(at) => records.insert(at, record),
    }
}
