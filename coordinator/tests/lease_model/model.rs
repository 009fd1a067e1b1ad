//! Coordinator, workers and the network between them, as the checker steps through them, and what must hold.

use std::collections::BTreeSet;

use stateright::{Model, Property};

use crate::coordinator::{Answer, Coordinator, Epoch, Lease, Phase, Record, Report, Verdict, WorkerId};
use crate::mutation::Mutation;

pub(crate) const COMMITS_ONCE: &str = "a task commits at most once";
pub(crate) const EPOCHS: &str = "no two leases share an epoch";
pub(crate) const TWO_LEASES: &str = "at most two leases stand";
pub(crate) const FENCED: &str = "a fenced attempt changes nothing";
pub(crate) const NOTHING_LOST: &str = "what a worker was told stands";
pub(crate) const STAYS_COMMITTED: &str = "a committed task stays committed";
/// The properties that hold always.
pub(crate) const ALWAYS: [&str; 6] = [COMMITS_ONCE, EPOCHS, TWO_LEASES, FENCED, NOTHING_LOST, STAYS_COMMITTED];

/// What keeps the states few.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) workers: WorkerId,
    /// Leases that are given, by their epochs.
    pub(crate) leases: Epoch,
    /// Whether the coordinator crashes: if so, any number of times.
    pub(crate) crashes: bool,
}

pub(crate) struct LeaseModel {
    pub(crate) bounds: Bounds,
    pub(crate) mutation: Option<Mutation>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) coordinator: Coordinator,
    /// What workers run.
    running: BTreeSet<Lease>,
    /// All that was ever sent. Nothing leaves it: a message may arrive any time later, any number of times, or never, which
    /// is delay, repetition, loss and another order at once.
    pub(crate) network: Network,
    past: Past,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Network {
    reports: BTreeSet<(Lease, Report)>,
    answers: BTreeSet<(Lease, Answer)>,
}

/// What happened, as far as the properties speak of it. No step depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Past {
    /// Leases that the coordinator ended, whether or not that became durable.
    ended: BTreeSet<Lease>,
    /// Whether the task was committed when the coordinator had settled.
    was_committed: bool,
    /// Whether word of a lease that did not stand changed something.
    fenced_changed: bool,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A worker asks for work. Any may at any time: the question may be an old one.
    Ask(WorkerId),
    /// A report reaches the coordinator.
    Report(Lease, Report),
    /// A check of an output ends.
    Verified(Lease, Verdict),
    /// A lease's time is over.
    Expire(Lease),
    /// What the coordinator did becomes durable, and is answered.
    Settle,
    /// The coordinator is killed, and begins anew.
    Crash,
    /// A worker learns of its lease, begins, and soon has a checkpoint.
    Begin(Lease),
    /// An attempt has written its output.
    Finish(Lease),
    /// A worker hands an attempt back.
    HandBack(Lease),
    /// A worker learns that its attempt is over.
    Stop(Lease),
    /// All that a worker runs ends without a word. That it comes back under its own name is more than the code allows.
    WorkerCrash(WorkerId),
}

impl Model for LeaseModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let coordinator = Coordinator::new();
        vec![State { coordinator, running: BTreeSet::new(), network: Network::default(), past: Past::default() }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let State { coordinator, running, network, .. } = state;
        if coordinator.memory.epoch < self.bounds.leases {
            // Workers differ by name alone, so those that had no lease yet come in their order.
            actions.extend((0..self.bounds.workers).take(usize::from(coordinator.memory.epoch) + 1).map(Action::Ask));
        }
        actions.extend(network.reports.iter().map(|(lease, report)| Action::Report(*lease, *report)));
        for verdict in [Verdict::Accepted, Verdict::Refused, Verdict::NotMade] {
            actions.extend(coordinator.checks.iter().map(|lease| Action::Verified(*lease, verdict)));
        }
        actions.extend(coordinator.memory.leases().iter().map(|lease| Action::Expire(*lease)));
        if !coordinator.is_settled() {
            actions.push(Action::Settle);
        }
        if self.bounds.crashes {
            actions.push(Action::Crash);
        }
        for (lease, answer) in &network.answers {
            match answer {
                Answer::Start => actions.push(Action::Begin(*lease)),
                Answer::Acknowledged | Answer::Cancel { .. } => actions.push(Action::Stop(*lease)),
            }
        }
        actions.extend(running.iter().flat_map(|lease| [Action::Finish(*lease), Action::HandBack(*lease)]));
        actions.extend((0..self.bounds.workers).map(Action::WorkerCrash));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let State { coordinator, running, network, .. } = &mut state;
        match action {
            Action::Ask(worker) => coordinator.ask(worker, self.mutation),
            Action::Report(lease, report) => coordinator.report(lease, report, self.mutation),
            Action::Verified(lease, verdict) => coordinator.verified(lease, verdict, self.mutation),
            Action::Expire(lease) => coordinator.expire(lease),
            Action::Settle => network.answers.append(&mut coordinator.settle()),
            Action::Crash => coordinator.crash(self.mutation),
            Action::Begin(lease) => {
                // Its outcome is kept until it is answered, so it doesn't begin again.
                let has_ended =
                    [Report::Done, Report::Released].iter().any(|end| network.reports.contains(&(lease, *end)));
                if !has_ended {
                    running.insert(lease);
                    network.reports.insert((lease, Report::Running));
                }
            }
            Action::Finish(lease) => {
                running.remove(&lease);
                network.reports.insert((lease, Report::Done));
            }
            Action::HandBack(lease) => {
                running.remove(&lease);
                network.reports.insert((lease, Report::Released));
            }
            Action::Stop(lease) => drop(running.remove(&lease)),
            Action::WorkerCrash(worker) => running.retain(|lease| lease.worker != worker),
        }
        // Where there is nothing to make durable, answers leave at once.
        if coordinator.memory == coordinator.disk || self.mutation == Some(Mutation::AckBeforeDurable) {
            network.answers.append(&mut coordinator.answer());
        }
        state.remember(last, action);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(COMMITS_ONCE, |_, state: &State| {
                state.records().iter().all(|record| record.accepted.len() <= 1)
            }),
            Property::always(EPOCHS, |_, state: &State| state.epochs_differ()),
            Property::always(TWO_LEASES, |_, state: &State| {
                state.records().iter().all(|record| record.leases().len() <= 2)
            }),
            Property::always(FENCED, |_, state: &State| !state.past.fenced_changed),
            Property::always(NOTHING_LOST, |_, state: &State| {
                state.network.answers.iter().all(|(lease, answer)| state.stands_by(*lease, *answer))
            }),
            Property::always(STAYS_COMMITTED, |_, state: &State| {
                !state.past.was_committed || state.coordinator.memory.phase == Phase::Committed
            }),
            Property::sometimes("an output is accepted after a restart", |_, state: &State| {
                state.coordinator.disk.accepted.iter().any(|accepted| accepted.after_restart)
            }),
            Property::sometimes("a spare's output is accepted before the first attempt's", |_, state: &State| {
                let is_spares = |epoch, beside: Option<Epoch>| beside.is_some_and(|first| first < epoch);
                state.coordinator.disk.accepted.iter().any(|accepted| is_spares(accepted.epoch, accepted.beside))
            }),
            Property::sometimes("the first attempt's output is accepted before its spare's", |_, state: &State| {
                let is_firsts = |epoch, beside: Option<Epoch>| beside.is_some_and(|spare| epoch < spare);
                state.coordinator.disk.accepted.iter().any(|accepted| is_firsts(accepted.epoch, accepted.beside))
            }),
            Property::sometimes("what one worker handed back another finishes", |_, state: &State| {
                let mut handed_back =
                    state.network.answers.iter().filter(|(_, answer)| *answer == Answer::Acknowledged);
                !state.coordinator.disk.accepted.is_empty() && handed_back.next().is_some()
            }),
            Property::sometimes("a check ends after its lease", |_, state: &State| {
                state.coordinator.checks.iter().any(|lease| !state.coordinator.memory.stands(*lease))
            }),
            Property::sometimes("a worker runs what it doesn't know to be over", |_, state: &State| {
                state.running.iter().any(|lease| !state.coordinator.disk.stands(*lease))
            }),
        ]
    }
}

impl State {
    fn remember(&mut self, last: &State, action: Action) {
        let (before, after) = (&last.coordinator.memory, &self.coordinator.memory);
        let past = &mut self.past;
        match action {
            Action::Crash => return,
            Action::Report(lease, _) | Action::Verified(lease, _) => {
                past.fenced_changed |= !before.stands(lease) && before != after;
            }
            Action::Settle => past.was_committed |= after.phase == Phase::Committed,
            _ => {}
        }
        past.ended.extend(before.leases().iter().filter(|lease| !after.stands(**lease)));
    }

    /// What the coordinator knows, and what it would know if it crashed now.
    fn records(&self) -> [&Record; 2] {
        [&self.coordinator.memory, &self.coordinator.disk]
    }

    fn epochs_differ(&self) -> bool {
        let given: Vec<Lease> =
            self.network.answers.iter().filter(|(_, a)| *a == Answer::Start).map(|(l, _)| *l).collect();
        // They are in order, and those that were given twice are in it once.
        given.windows(2).all(|pair| pair[0].epoch != pair[1].epoch)
    }

    /// Whether what a worker was told is so, and would be after a crash.
    fn stands_by(&self, lease: Lease, answer: Answer) -> bool {
        self.records().iter().all(|record| match answer {
            Answer::Start => record.stands(lease) || self.past.ended.contains(&lease),
            Answer::Acknowledged => !record.stands(lease),
            Answer::Cancel { committed } => !record.stands(lease) && (!committed || record.phase == Phase::Committed),
        })
    }
}
