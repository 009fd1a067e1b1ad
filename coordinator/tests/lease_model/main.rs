//! A model of how one task is leased, fenced and committed, whose every reachable state a checker visits.
//!
//! The simulation runs the real code through a few thousand fates out of very many. This runs a small copy of it through every one:
//! any message may come late, again, in another order or never; a lease may end at any moment; coordinator and workers
//! may crash between any two steps, any number of times. Bounded are only the workers and the leases that are given, and there is
//! one task: others share no more with it than the counter of epochs. Renewals bring a checkpoint, so that they have
//! something to change.
//!
//! What stands for what:
//!
//! | here | in `coordinator/src` |
//! |---|---|
//! | [`coordinator::Coordinator::ask`] | `schedule/offer.rs`: `offer`, and `schedule/spare.rs`: `next_spare`, to which any attempt may seem slow; `remind` says again what is in [`model::State::network`] for good |
//! | [`coordinator::Coordinator::report`] | `schedule/lease.rs`: `report`, `renew`, `done`, `release` (to a lease, a failure is a release) |
//! | [`coordinator::Coordinator::verified`] | `schedule/lease.rs`: `verified` and `commit`, told by `carry_out.rs`: `verify` |
//! | [`coordinator::Coordinator::expire`] | `schedule/lease.rs`: `tick`, `schedule/blame.rs`: `lost`. It may happen at any time, so whatever the clock says is among what is checked, and so is a lease that ends early |
//! | [`coordinator::Coordinator::settle`] | `core.rs`: `settle`. Transitions queue up, their writes become durable together, then their answers leave |
//! | [`coordinator::Coordinator::crash`] | a kill, and `schedule/mod.rs`: `restore` |
//! | [`coordinator::Record`] | `schedule/record.rs`: `Task::record`, and the store's counters |
//!
//! As the checker prints them: two workers and three leases with crashes are 2,091,321 states; three workers and three leases
//! without the coordinator's are 613,937. Both together take a debug build 20 s of CPU time. [`mutation::Mutation`] has a
//! bug for each property at least, and each bug must yield a counterexample.

mod coordinator;
mod model;
mod mutation;

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model};

use model::{Bounds, LeaseModel};
use mutation::Mutation;

const THREADS: usize = 2;

/// All that may happen to two workers.
const WITH_CRASHES: Bounds = Bounds { workers: 2, leases: 3, crashes: true };
/// A third worker, which may be given what the other two lost, where the coordinator goes on.
const MORE_WORKERS: Bounds = Bounds { workers: 3, leases: 3, crashes: false };

#[test]
fn every_property_holds_whenever_either_side_crashes() {
    let checker = LeaseModel { bounds: WITH_CRASHES, mutation: None }.checker().threads(THREADS).spawn_dfs().join();
    println!("{} states, {} steps deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
}

#[test]
fn what_must_not_happen_does_not_among_more_workers() {
    let checker = LeaseModel { bounds: MORE_WORKERS, mutation: None }.checker().threads(THREADS).spawn_dfs().join();
    println!("{} states, {} steps deep", checker.unique_state_count(), checker.max_depth());
    model::ALWAYS.into_iter().for_each(|property| checker.assert_no_discovery(property));
}

#[test]
fn each_mutation_yields_a_counterexample() {
    for mutation in Mutation::ALL {
        let broken = mutation.breaks();
        let bounds = Bounds { crashes: true, ..MORE_WORKERS };
        let checker = LeaseModel { bounds, mutation: Some(mutation) }.checker().threads(THREADS);
        // The first counterexamples are short, and the search ends with them.
        let checker = checker.finish_when(HasDiscoveries::AnyOf(BTreeSet::from([broken]))).spawn_bfs().join();
        let path = checker.discovery(broken).unwrap_or_else(|| panic!("{mutation:?}: {broken:?} holds all the same"));
        println!("{mutation:?} breaks {broken:?}: {:?}", path.into_actions());
    }
}

#[test]
fn each_property_is_broken_by_some_mutation() {
    let broken: BTreeSet<&str> = Mutation::ALL.map(Mutation::breaks).into();
    assert_eq!(broken, BTreeSet::from(model::ALWAYS));
}
