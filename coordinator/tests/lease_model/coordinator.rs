//! The coordinator, as far as one task's leases go: what it has in memory, what is durable, and what lies between.

use std::collections::BTreeSet;

use crate::mutation::Mutation;

pub(crate) type Epoch = u8;
pub(crate) type WorkerId = u8;

/// One lease of the task; its epoch is also what tells the attempt's keys from others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lease {
    pub(crate) epoch: Epoch,
    pub(crate) worker: WorkerId,
}

/// What a worker says of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Report {
    /// It goes on, and has written a checkpoint.
    Running,
    /// Its output is written.
    Done,
    /// It is handed back.
    Released,
}

/// What the coordinator says of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Answer {
    /// The lease is the worker's.
    Start,
    /// It was handed back.
    Acknowledged,
    /// It is over; `committed` says that the task is, too.
    Cancel { committed: bool },
}

/// What came of the check of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted,
    Refused,
    /// The check could not be made.
    NotMade,
}

/// An output that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Accepted {
    pub(crate) epoch: Epoch,
    /// The lease that stood beside its own then.
    pub(crate) beside: Option<Epoch>,
    /// Whether the coordinator had begun anew before.
    pub(crate) after_restart: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Pending,
    Leased(Vec<Lease>),
    Committed,
}

/// What the coordinator must not forget.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    /// The last that was given.
    pub(crate) epoch: Epoch,
    pub(crate) phase: Phase,
    /// Whether there is a checkpoint that the next attempt goes on from.
    has_checkpoint: bool,
    /// Every output that was ever accepted: the code keeps one, this counts.
    pub(crate) accepted: Vec<Accepted>,
}

impl Record {
    pub(crate) fn leases(&self) -> &[Lease] {
        match &self.phase {
            Phase::Leased(leases) => leases,
            Phase::Pending | Phase::Committed => &[],
        }
    }

    pub(crate) fn stands(&self, lease: Lease) -> bool {
        self.leases().contains(&lease)
    }

    fn end_lease(&mut self, lease: Lease) {
        if let Phase::Leased(leases) = &mut self.phase {
            leases.retain(|standing| *standing != lease);
            if leases.is_empty() {
                self.phase = Phase::Pending;
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Coordinator {
    pub(crate) memory: Record,
    /// What will be durable once the writes that queued up are.
    written: Record,
    pub(crate) disk: Record,
    /// Answers that wait for those writes.
    unanswered: BTreeSet<(Lease, Answer)>,
    /// Outputs that are being checked. A lease's is checked once at a time.
    pub(crate) checks: BTreeSet<Lease>,
    has_restarted: bool,
}

impl Coordinator {
    pub(crate) fn new() -> Self {
        let record = Record { epoch: 0, phase: Phase::Pending, has_checkpoint: false, accepted: Vec::new() };
        Self {
            memory: record.clone(),
            written: record.clone(),
            disk: record,
            unanswered: BTreeSet::new(),
            checks: BTreeSet::new(),
            has_restarted: false,
        }
    }

    /// Whether nothing waits to become durable or to be answered.
    pub(crate) fn is_settled(&self) -> bool {
        self.memory == self.disk && self.unanswered.is_empty()
    }

    fn write_task(&mut self) {
        self.written = Record { epoch: self.written.epoch, ..self.memory.clone() };
    }

    /// A worker that does nothing asks for work, and gets the task or a spare attempt at it.
    pub(crate) fn ask(&mut self, worker: WorkerId, mutation: Option<Mutation>) {
        let standing = self.memory.leases();
        let is_free = standing.iter().all(|lease| lease.worker != worker);
        let may_be_given = match &self.memory.phase {
            Phase::Pending => true,
            Phase::Leased(leases) => leases.len() == 1 || mutation == Some(Mutation::AnyNumberOfSpares),
            Phase::Committed => false,
        };
        if !is_free || !may_be_given {
            return;
        }
        let epoch = self.memory.epoch + 1;
        let lease = Lease { epoch, worker };
        let leases = standing.iter().copied().chain([lease]).collect();
        self.memory.epoch = epoch;
        self.memory.phase = Phase::Leased(leases);
        if mutation != Some(Mutation::EpochNotDurable) {
            self.written.epoch = epoch;
        }
        if mutation != Some(Mutation::LeaseNotDurable) {
            self.write_task();
        }
        self.unanswered.insert((lease, Answer::Start));
    }

    pub(crate) fn report(&mut self, lease: Lease, report: Report, mutation: Option<Mutation>) {
        if !self.memory.stands(lease) && mutation != Some(Mutation::NoFenceAtReport) {
            let committed = self.memory.phase == Phase::Committed;
            self.unanswered.insert((lease, Answer::Cancel { committed }));
            return;
        }
        match report {
            Report::Running => self.renew(),
            Report::Done => {
                self.checks.insert(lease);
            }
            Report::Released => {
                self.unanswered.insert((lease, Answer::Acknowledged));
                self.renew();
                self.expire(lease);
            }
        }
    }

    fn renew(&mut self) {
        if !self.memory.has_checkpoint {
            self.memory.has_checkpoint = true;
            self.write_task();
        }
    }

    pub(crate) fn verified(&mut self, lease: Lease, verdict: Verdict, mutation: Option<Mutation>) {
        self.checks.remove(&lease);
        if !self.memory.stands(lease) && mutation != Some(Mutation::NoFenceAtCommit) {
            return;
        }
        match verdict {
            Verdict::Accepted => self.commit(lease, mutation),
            Verdict::Refused => self.expire(lease),
            Verdict::NotMade => {}
        }
    }

    fn commit(&mut self, lease: Lease, mutation: Option<Mutation>) {
        let beside = self.memory.leases().iter().map(|standing| standing.epoch).find(|epoch| *epoch != lease.epoch);
        self.memory.accepted.push(Accepted { epoch: lease.epoch, beside, after_restart: self.has_restarted });
        self.memory.has_checkpoint = false;
        match mutation {
            Some(Mutation::CommittedGoesOn) => self.memory.phase = Phase::Pending,
            Some(Mutation::CommitKeepsSpare) if beside.is_some() => self.memory.end_lease(lease),
            _ => self.memory.phase = Phase::Committed,
        }
        if mutation != Some(Mutation::CommitNotDurable) {
            self.write_task();
        }
    }

    /// Nobody works under the lease any more.
    pub(crate) fn expire(&mut self, lease: Lease) {
        self.memory.end_lease(lease);
        self.write_task();
    }

    /// Makes durable what was written, all of it or nothing; then answers.
    pub(crate) fn settle(&mut self) -> BTreeSet<(Lease, Answer)> {
        self.disk = self.written.clone();
        self.answer()
    }

    /// The answers that leave now.
    pub(crate) fn answer(&mut self) -> BTreeSet<(Lease, Answer)> {
        std::mem::take(&mut self.unanswered)
    }

    /// Everything but the disk is lost; then the coordinator begins anew.
    pub(crate) fn crash(&mut self, mutation: Option<Mutation>) {
        self.memory = self.disk.clone();
        if mutation == Some(Mutation::RestartDropsLeases) && !self.memory.leases().is_empty() {
            self.memory.phase = Phase::Pending;
        }
        self.written = self.disk.clone();
        self.unanswered.clear();
        self.checks.clear();
        self.has_restarted = true;
    }
}
