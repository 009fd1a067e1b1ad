//! Processes killed in the middle of their work.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::process::until;
use crate::scaled;
use crate::service::{
    self, Checkpoint, Coordinator, attempts, checkpoints, digest, freeze, logged, steps, tasks_in, thaw,
};

/// Long enough to be in the middle of a training for some seconds.
const STEPS: u32 = 400;
/// From when a coordinator listens again to the first lease that it renews.
const MOST_SECONDS: f64 = 2.0;

#[test]
fn a_worker_killed_in_the_middle_of_a_task_costs_nothing_but_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let job = scaled::job_file(folder.path(), &scaled::teacher(), &folder.path().join("out"));
    let job = coordinator.submit(&job);
    let mut victim = coordinator.worker("victim");
    let _survivor = coordinator.worker("survivor");

    let task = until("the victim to train a block", || {
        let status = coordinator.status(&job);
        tasks_in(&status, "distill", "running").first()?;
        let victim_id = coordinator.worker_id("victim").expect("the worker has joined");
        // Frozen, it can't finish between the look and the kill.
        freeze(&[&victim]);
        let status = coordinator.status(&job);
        let running = tasks_in(&status, "distill", "running");
        let hit = running.iter().find(|task| task["worker_id"] == victim_id.as_str());
        let hit = hit.map(|task| task["task_id"].as_str().expect("an id").to_owned());
        if hit.is_none() {
            thaw(&[&victim]);
        }
        hit
    });
    victim.kill();

    let done = coordinator.done(&job);
    assert!(attempts(&done, &task) >= 2, "{task} was not in the middle: {done:#}");
    assert_eq!(digest(&done), scaled::quiet().digest);
}

#[test]
fn what_a_killed_worker_stored_last_is_gone_on_from() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let coordinator = Coordinator::start(folder.path());
    let job = coordinator.submit(&scaled::job_file(folder.path(), &scaled::teacher(), &out));
    let mut victim = coordinator.worker("victim");

    let mut seen = BTreeSet::new();
    let (task, known) = until("the victim to replace a checkpoint", || {
        seen.extend(checkpoints(&out));
        freeze(&[&victim]);
        let stored = checkpoints(&out);
        // The coordinator has removed it, since it knows a later one.
        let is_gone = |of: &&Checkpoint| stored.iter().any(|other| other.attempt == of.attempt) && !stored.contains(of);
        let status = coordinator.status(&job);
        let running = tasks_in(&status, "distill", "running").into_iter();
        let mut hit = running.filter_map(|task| {
            let task = task["task_id"].as_str().expect("an id");
            let of_task = |of: &&Checkpoint| task.ends_with(&of.layer);
            let gone = seen.iter().filter(of_task).filter(is_gone).map(|gone| gone.step).max()?;
            let stored: Vec<u64> = stored.iter().filter(of_task).map(|stored| stored.step).collect();
            Some((task.to_owned(), (gone, stored)))
        });
        let hit = hit.next();
        if hit.is_none() {
            thaw(&[&victim]);
        }
        hit
    });
    victim.kill();

    let successor = coordinator.worker("successor");
    let done = coordinator.done(&job);
    let (gone, stored) = known;
    let resumed = logged(&successor, "resumed from a checkpoint", &task, "step").expect("it went on");
    assert!(resumed > gone && stored.contains(&resumed), "went on from {resumed}; {stored:?} were there, not {gone}");
    assert_eq!(digest(&done), scaled::quiet().digest);
}

#[test]
fn a_coordinator_killed_in_the_middle_of_a_job_goes_on_where_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut coordinator = Coordinator::start(folder.path());
    let job = scaled::job_file(folder.path(), &scaled::teacher(), &folder.path().join("out"));
    let job = coordinator.submit(&job);
    let workers = ["a", "b"].map(|name| coordinator.worker(name));
    let frozen: Vec<_> = workers.iter().collect();

    let before = until("some blocks to be done and others in work", || {
        let is_between = |status: &Value| {
            !tasks_in(status, "distill", "committed").is_empty() && !tasks_in(status, "distill", "running").is_empty()
        };
        if !is_between(&coordinator.status(&job)) {
            return None;
        }
        freeze(&frozen);
        let status = coordinator.status(&job);
        if is_between(&status) {
            return Some(status);
        }
        thaw(&frozen);
        None
    });
    coordinator.process.kill();
    let coordinator = coordinator.start_again();
    let after = coordinator.status(&job);
    let committed = |status: &Value| {
        let names = |task: &&Value| task["task_id"].as_str().expect("an id").to_owned();
        tasks_in(status, "distill", "committed").iter().map(names).collect::<Vec<_>>()
    };
    assert_eq!(committed(&after), committed(&before), "accepted work was lost, or more appeared");
    thaw(&frozen);

    assert_eq!(digest(&coordinator.done(&job)), scaled::quiet().digest);
    for worker in &workers {
        assert!(service::state(folder.path()).exists() && !worker.stderr().contains("panicked"), "{}", worker.stderr());
    }
}

/// When the first line with `text` was logged, in seconds of the day.
fn logged_at(log: &str, text: &str) -> f64 {
    let line = log.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("no {text:?} in {log}"));
    let time = line.split(['T', 'Z']).nth(1).expect("a time");
    time.split(':').fold(0.0, |seconds, part| 60.0 * seconds + part.parse::<f64>().expect("a number"))
}

#[test]
fn trainings_go_on_while_their_coordinator_is_killed_and_started_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut coordinator = Coordinator::start(folder.path());
    let job = scaled::job_file_of(folder.path(), &scaled::teacher(), &folder.path().join("out"), STEPS);
    let job = coordinator.submit(&job);
    let workers = ["a", "b"].map(|name| coordinator.worker(name));

    let attempts_of = |status: &Value| {
        let name = |task: &&Value| ["task_id", "attempt_id"].map(|key| task[key].as_str().expect("an id").to_owned());
        tasks_in(status, "distill", "running").iter().map(name).collect::<Vec<_>>()
    };
    let before = until("two blocks to train", || {
        let status = coordinator.status(&job);
        let running = attempts_of(&status);
        let all_train = running.iter().all(|[task, _]| steps(&status, task) > 0);
        (running.len() == workers.len() && all_train).then_some(status)
    });
    coordinator.process.kill();
    let coordinator = coordinator.start_again();

    let back = "the coordinator is back";
    until("the workers to be back", || workers.iter().all(|worker| worker.stderr().contains(back)).then_some(()));
    let listens = logged_at(&coordinator.process.stderr(), "coordinator listens");
    let renewed = workers.iter().map(|worker| (logged_at(&worker.stderr(), back) - listens).rem_euclid(24.0 * 3600.0));
    let first = renewed.min_by(f64::total_cmp).expect("a worker");
    assert!(first <= MOST_SECONDS, "the first lease was renewed after {first:.2} s");

    let running = attempts_of(&before);
    let ended = until("their blocks to be done", || {
        let status = coordinator.status(&job);
        let committed = tasks_in(&status, "distill", "committed");
        let is_committed = |[id, _]: &[String; 2]| committed.iter().any(|task| task["task_id"] == id.as_str());
        running.iter().all(is_committed).then_some(status)
    });
    for [task, attempt] in &running {
        assert_eq!(attempts(&ended, task), 1, "{task} was given away again: {ended:#}");
        let begun = workers.iter().flat_map(|worker| worker.stderr().lines().map(str::to_owned).collect::<Vec<_>>());
        let begun = begun.filter(|line| line.contains("attempt started") && line.contains(attempt.as_str())).count();
        assert_eq!(begun, 1, "{attempt} of {task} began {begun} times");
    }
}
