//! Which task a worker is given, by what nodes hold.

use std::cmp::Reverse;

use super::*;
use crate::schedule::placement::{Fit, Piece, Placement};

const LAYERS: [&str; 3] = ["down", "mid", "up"];

/// The digests' prefixes of a layer's shards: two for training and a held-out one.
fn shards(layer: &str) -> Vec<u64> {
    let attempt = AttemptId::new("a").expect("an id");
    let range = |start| v1::SampleRange { start, end: start + 2 };
    let digest = |start| shard(0, layer, &range(start), &attempt).digest;
    [0, 2, 4].map(|start| digest::prefix(&digest(start)).expect("a digest")).to_vec()
}

fn cache(shards: Vec<u64>) -> v1::NodeCache {
    v1::NodeCache { version: shards.iter().fold(0, |version, shard| version ^ shard), shards }
}

/// One of the 64 parts of the first two layers' shards.
pub(super) fn part(version: u64) -> v1::NodeCache {
    let all = LAYERS[..2].iter().flat_map(|layer| shards(layer)).enumerate();
    let shards = all.filter(|(index, _)| version >> index & 1 == 1).map(|(_, shard)| shard).collect();
    v1::NodeCache { version, shards }
}

/// What is kept beside the tasks says the same as the tasks.
pub(super) fn assert_is_current(state: &State) {
    let mut anew: Placement = state.placement.without_tasks();
    let running = state.jobs.values().filter(|job| job.is_running());
    for (reader, piece) in running.flat_map(|job| job.slots.iter()).flat_map(|task| state.readers(task)) {
        anew.add(reader, piece);
    }
    for (id, task) in state.tasks.values().map(|task| (&task.id, state.tasks.slot(&task.id).expect("known"))) {
        assert_eq!(anew.standing(task), state.placement.standing(task), "{id}");
        for worker in state.workers.keys() {
            assert_eq!(anew.share(task, worker), state.placement.share(task, worker), "{id} {worker}");
        }
    }
}

/// A coordinator whose job has come to its distill tasks, and so many idle workers.
fn distilling<const N: usize>() -> (Coordinator, [WorkerId; N]) {
    let mut c = Coordinator::new();
    let layer = |(index, name): (usize, &&str)| v1::LayerPlan {
        index: index as u32,
        name: (*name).into(),
        ..v1::LayerPlan::default()
    };
    let plan = v1::JobPlan { layers: LAYERS.iter().enumerate().map(layer).collect(), ..job_plan() };
    c.run(|state, now, effects| state.submit(spec(), plan, now, effects)).expect("accepted");
    let worker = c.join();
    let start = first_distill(&mut c, &worker);
    c.sync(&worker, vec![report(&start.lease, Report::Released(v1::Progress::default()))]);
    let workers = [(); N].map(|()| c.join());
    (c, workers)
}

/// The layer of the task that the worker is given when it asks.
fn next_layer(c: &mut Coordinator, worker: &WorkerId) -> String {
    let start = c.sync(worker, Vec::new()).start.remove(0);
    let Some(v1::task_spec::Kind::Distill(task)) = start.task.and_then(|task| task.kind) else {
        panic!("no distill task")
    };
    task.layer.expect("a layer").name
}

#[test]
fn a_task_goes_to_the_worker_whose_node_holds_its_shards() {
    let (mut c, [first, second]) = distilling();
    c.caches.insert(first.clone(), cache(shards("mid")[..2].to_vec()));
    assert_eq!(next_layer(&mut c, &first), "mid");
    let job = c.state.jobs.keys().next().expect("a job").clone();
    let held = |c: &Coordinator| -> Vec<Option<f64>> {
        let tasks = c.state.status(&job, c.now).expect("known").tasks;
        tasks.into_iter().filter(|task| task.task_id.ends_with("/mid")).map(|task| task.held).collect()
    };
    assert_eq!(held(&c), [Some(2.0 / 3.0)]);
    assert_eq!(next_layer(&mut c, &second), "down");
}

#[test]
fn without_a_holder_tasks_are_given_in_their_order() {
    let (mut c, [first, second]) = distilling();
    c.caches.insert(second.clone(), cache(vec![1, 2, 3]));
    assert_eq!([&first, &second].map(|worker| next_layer(&mut c, worker)), LAYERS[..2]);
}

/// A worker is at a task and its node holds the first two; it reports `state`, and another one asks.
fn given_beside_a_holder(state: Report, draining: bool) -> String {
    let (mut c, [holder, other]) = distilling();
    c.caches.insert(holder.clone(), cache(LAYERS[..2].iter().flat_map(|layer| shards(layer)).collect()));
    let start = c.sync(&holder, Vec::new()).start.remove(0);
    c.sync(&holder, vec![report(&start.lease, state)]);
    c.state.workers.get_mut(&holder).expect("known").draining = draining;
    let given = next_layer(&mut c, &other);
    // What was left to the holder doesn't wait for it: whoever else asks gets the rest.
    let is_ready = |task: &&Task| c.state.is_ready(&c.state.jobs[&task.job], task);
    for _ in 0..c.state.tasks.values().filter(is_ready).count() {
        let another = c.join();
        next_layer(&mut c, &another);
    }
    given
}

#[test]
fn a_task_is_left_to_a_holder_that_asks_soon_while_there_is_another() {
    let running = |step| Report::Running(v1::Progress { step, steps: 10, ..v1::Progress::default() });
    let released = || Report::Released(v1::Progress::default());
    // Its own task is the first layer's; "mid" is next in order.
    assert_eq!(given_beside_a_holder(running(9), false), "up");
    assert_eq!(given_beside_a_holder(running(1), false), "mid", "it has long to go");
    assert_eq!(given_beside_a_holder(released(), false), "up");
    assert_eq!(given_beside_a_holder(released(), true), "down", "it leaves");
}

#[test]
fn the_holders_of_what_is_ready_are_woken_first() {
    let (mut c, [at_work, second, third, _idle, holder]) = distilling();
    let start = c.sync(&at_work, Vec::new()).start.remove(0);
    for worker in [&second, &third] {
        c.sync(worker, Vec::new());
    }
    c.caches.insert(holder.clone(), cache(shards("down")));
    c.sync(&holder, Vec::new());
    c.commands.clear();
    c.sync(&at_work, vec![report(&start.lease, Report::Released(v1::Progress::default()))]);
    assert_eq!(c.commands, [Command::Wake(holder)]);
}

#[test]
fn after_a_restart_a_worker_is_asked_what_its_node_holds_before_it_is_given_a_task() {
    let (mut c, [worker]) = distilling();
    c.caches.insert(worker.clone(), cache(shards("mid")));
    let start = c.sync(&worker, Vec::new()).start.remove(0);
    let version = c.caches[&worker].version;
    let answer = c.sync(&worker, vec![report(&start.lease, Report::Released(v1::Progress::default()))]);
    assert_eq!(answer.cache_version, version);
    c.crash();
    let request = v1::SyncRequest {
        worker_id: worker.to_string(),
        cache: Some(v1::NodeCache { version, shards: Vec::new() }),
        ..v1::SyncRequest::default()
    };
    let answer = c.run(|state, now, effects| state.sync(&request, now, effects)).expect("known");
    assert_eq!((answer.cache_version, answer.start), (0, Vec::new()));
    assert_eq!(next_layer(&mut c, &worker), "mid");
}

#[test]
fn of_what_a_worker_states_only_so_much_is_kept_and_only_while_it_is_here() {
    let (mut c, [liar, other]) = distilling();
    let all: Vec<u64> = LAYERS.iter().flat_map(|layer| shards(layer)).chain(0..1_000_000).collect();
    c.caches.insert(liar.clone(), cache(all));
    let start = c.sync(&liar, Vec::new()).start.remove(0);
    c.sync(&liar, vec![report(&start.lease, Report::Released(v1::Progress::default()))]);
    let kept = |c: &Coordinator| c.state.worker_statuses(c.now).iter().map(|w| w.cached_shards).max();
    assert_eq!(kept(&c), Some(digest::MAX_STATED as u32));
    // All of it is near to the liar, which doesn't ask. Another one is given it.
    assert_eq!(next_layer(&mut c, &other), "down");
    c.wait(TTL);
    assert_eq!(kept(&c), Some(0));
}

#[test]
fn a_small_part_of_a_task_changes_nothing_and_the_nearest_is_the_best() {
    let worker = |name: &str| WorkerId::new(name).expect("an id");
    let (a, b, anybody) = (worker("a"), worker("b"), |_: &WorkerId| true);
    let mut placement = Placement::default();
    let prefixes: Vec<u64> = (0..20).map(|number| 1 << number).collect();
    prefixes.iter().for_each(|prefix| placement.add(Slot::FIRST, Piece { prefix: *prefix, bytes: 10 }));
    for (of_a, of_b, expected) in [
        (0, 0, Fit::Anywhere),
        (4, 0, Fit::Anywhere),
        (5, 0, Fit::Held(Reverse(50))),
        (5, 9, Fit::Held(Reverse(50))),
        (5, 10, Fit::Awaited),
        (20, 20, Fit::Held(Reverse(200))),
        (0, 5, Fit::Awaited),
    ] {
        placement.state(&a, &cache(prefixes[..of_a].to_vec()));
        placement.state(&b, &cache(prefixes[..of_b].to_vec()));
        assert_eq!(placement.fit(Slot::FIRST, &a, anybody), expected, "{of_a} and {of_b} of 20");
    }
    assert_eq!(placement.fit(Slot::FIRST, &a, |_| false), Fit::Anywhere, "nobody else asks");
}
