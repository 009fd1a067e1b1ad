//! What the coordinator must not forget, behind a narrow trait.

mod entry;
pub(crate) mod format;
mod journal;
mod local;
mod memory;

use deltaconv_proto::ids::WorkerId;
use deltaconv_proto::v1;

pub(crate) use entry::Entry;
pub(crate) use format::{OLDEST, VERSION};
pub(crate) use journal::Journal;
#[cfg(test)]
pub(crate) use local::until_open;
pub(crate) use local::{BESIDE, DATABASE, IDENTITY, LOCK, MAX_VALUE, RUNNING};
pub use local::{Error, LocalStore};
pub use memory::MemoryStore;

/// One change of the durable state.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Counters.
    Meta(v1::MetaRecord),
    /// A job, whole.
    Job(Box<v1::JobRecord>),
    /// A task, whole.
    Task(Box<v1::TaskRecord>),
    /// A worker, whole.
    Worker(Box<v1::WorkerRecord>),
    /// A worker that will not come back.
    ForgetWorker(WorkerId),
    /// A machine, whole.
    Node(Box<v1::NodeRecord>),
    /// A machine of which there is nothing to say any more.
    ForgetNode(String),
    /// A change that was asked for and made.
    Request(v1::RequestRecord),
    /// One so long ago that nobody asks again.
    ForgetRequest(String),
    /// An invitation, whole.
    Invitation(Box<v1::InvitationRecord>),
    /// One that has long been over.
    ForgetInvitation(String),
    /// An identity, whole.
    Identity(Box<v1::IdentityRecord>),
    /// One whose certificate is over.
    ForgetIdentity(String),
    /// Something that happened, in the place of what did so many events before.
    Event(Box<v1::Event>),
}

/// Everything that is stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// Counters.
    pub meta: v1::MetaRecord,
    /// By id.
    pub jobs: Vec<v1::JobRecord>,
    /// By id. A task without a record is as it was planned.
    pub tasks: Vec<v1::TaskRecord>,
    /// By id.
    pub workers: Vec<v1::WorkerRecord>,
    /// By name.
    pub nodes: Vec<v1::NodeRecord>,
    /// By id.
    pub requests: Vec<v1::RequestRecord>,
    /// By id.
    pub invitations: Vec<v1::InvitationRecord>,
    /// By identity.
    pub identities: Vec<v1::IdentityRecord>,
    /// In no order.
    pub events: Vec<v1::Event>,
}

impl Records {
    /// Takes a record that is written for the first time.
    fn add(&mut self, record: Write) {
        match record {
            Write::Meta(meta) => self.meta = meta,
            Write::Job(job) => self.jobs.push(*job),
            Write::Task(task) => self.tasks.push(*task),
            Write::Worker(worker) => self.workers.push(*worker),
            Write::Node(node) => self.nodes.push(*node),
            Write::Request(request) => self.requests.push(request),
            Write::Event(event) => self.events.push(*event),
            Write::Invitation(invitation) => self.invitations.push(*invitation),
            Write::Identity(identity) => self.identities.push(*identity),
            Write::ForgetWorker(_) | Write::ForgetNode(_) | Write::ForgetRequest(_) => {}
            Write::ForgetInvitation(_) | Write::ForgetIdentity(_) => {}
        }
    }

    /// Each of them, as what it takes to write it: a job comes before its tasks.
    pub(crate) fn into_writes(self) -> impl Iterator<Item = Write> {
        let jobs = self.jobs.into_iter().map(|job| Write::Job(job.into()));
        let tasks = self.tasks.into_iter().map(|task| Write::Task(task.into()));
        let workers = self.workers.into_iter().map(|worker| Write::Worker(worker.into()));
        let nodes = self.nodes.into_iter().map(|node| Write::Node(node.into()));
        let requests = self.requests.into_iter().map(Write::Request);
        let events = self.events.into_iter().map(|event| Write::Event(event.into()));
        let invitations = self.invitations.into_iter().map(|invitation| Write::Invitation(invitation.into()));
        let identities = self.identities.into_iter().map(|identity| Write::Identity(identity.into()));
        let others = workers.chain(nodes).chain(requests).chain(invitations).chain(identities).chain(events);
        std::iter::once(Write::Meta(self.meta)).chain(jobs).chain(tasks).chain(others)
    }
}

/// Durable state with one owner.
pub trait Store: Send {
    /// Gives every record to `take`, one after the other: there may be millions. A job comes before its tasks.
    fn each(&mut self, take: &mut dyn FnMut(Write)) -> Result<(), Error>;

    /// Reads everything.
    fn load(&mut self) -> Result<Records, Error> {
        let mut records = Records::default();
        self.each(&mut |record| records.add(record))?;
        Ok(records)
    }

    /// Finds out whether a store that failed can be written again, and makes it ready for [`Self::each`].
    fn probe(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Makes `writes` durable, all or none of them. They are when this returns. After an error nothing is known of them until
    /// [`Self::each`] says what is stored.
    fn apply(&mut self, writes: &[Write]) -> Result<(), Error>;
}
