//! Workers that are asked to leave in the middle of their work.

use std::path::Path;
use std::time::{Duration, Instant};

use deltaconv_proto::objects::testing::{Fault, Faults, S3Server};
use rustix::process::Signal;
use serde_json::Value;

use crate::process::{Running, until};
use crate::scaled;
use crate::service::{Coordinator, checkpoints, digest, freeze, logged, tasks_in, thaw};

const HANDED_BACK: &str = "attempt handed back";
const RESUMED: &str = "resumed from a checkpoint";

/// Freezes the only worker in the middle of training a block, with a checkpoint stored below `out`; answers with the task.
fn freeze_in_the_middle(coordinator: &Coordinator, job: &str, out: &Path, worker: &Running) -> String {
    until("the worker to be in the middle of a block", || {
        if checkpoints(out).is_empty() {
            return None;
        }
        // Frozen, it can't finish between the look and what follows.
        freeze(&[worker]);
        let status = coordinator.status(job);
        let is_stored = |layer: &str| checkpoints(out).iter().any(|checkpoint| checkpoint.layer == layer);
        let running = tasks_in(&status, "distill", "running");
        let mut running = running.iter().filter_map(|task| task["task_id"].as_str());
        let hit = running.find(|task| is_stored(task.rsplit('/').next().expect("a layer"))).map(str::to_owned);
        if hit.is_none() {
            thaw(&[worker]);
        }
        hit
    })
}

/// A worker that is frozen is asked to leave; twice, as it is where what started it passes on what it hears itself.
fn leave(worker: &Running) {
    worker.signal(Signal::TERM);
    thaw(&[worker]);
    worker.signal(Signal::TERM);
}

fn task<'a>(status: &'a Value, id: &str) -> &'a Value {
    let tasks = status["tasks"].as_array().expect("tasks");
    tasks.iter().find(|task| task["task_id"] == id).expect("the task")
}

/// From which step the next attempt at a task goes on.
fn known_step(status: &Value, task: &str) -> u64 {
    let layers = status["layers"].as_array().expect("layers");
    let layer = layers.iter().find(|layer| task.ends_with(layer["name"].as_str().expect("a name"))).expect("the layer");
    layer["step"].as_u64().expect("a step")
}

fn failures(status: &Value) -> u64 {
    status["tasks"].as_array().expect("tasks").iter().map(|task| task["failures"].as_u64().expect("a number")).sum()
}

#[test]
fn a_worker_that_is_asked_to_leave_repeats_no_step_and_fails_nothing() {
    const GRACE: Duration = Duration::from_secs(20);
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let coordinator = Coordinator::start(folder.path());
    let job = coordinator.submit(&scaled::job_file(folder.path(), &scaled::teacher(), &out));
    let mut tries = 0..;
    let (id, step) = until("a worker to leave in the middle of a block", || {
        let name = format!("victim-{}", tries.next().expect("a number"));
        let mut victim = coordinator.worker_with(&name, &["--grace", "20s"]);
        let task = freeze_in_the_middle(&coordinator, &job, &out, &victim);
        let asked = Instant::now();
        leave(&victim);
        assert!(victim.wait().success(), "{}", victim.stderr());
        assert!(asked.elapsed() < GRACE, "it took {:?}", asked.elapsed());
        // Another one's turn, where this one was at the block's end.
        Some((task.clone(), logged(&victim, HANDED_BACK, &task, "step")?))
    });

    let status = coordinator.status(&job);
    assert_eq!((task(&status, &id)["state"].as_str(), failures(&status)), (Some("ready"), 0), "{status:#}");
    assert_eq!(known_step(&status, &id), step, "what it had reached is what is known");
    let explained = coordinator.json(&["explain", &id]);
    assert!(!explained.to_string().contains("fail"), "{explained:#}");

    let successor = coordinator.worker("successor");
    let done = coordinator.done(&job);
    assert_eq!(logged(&successor, RESUMED, &id, "step"), Some(step), "{}", successor.stderr());
    assert_eq!(failures(&done), 0, "{done:#}");
    assert_eq!(digest(&done), scaled::quiet().digest);
}

#[test]
fn a_worker_whose_store_is_down_leaves_in_time_and_loses_one_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let faults = Faults::new(1, 0.0, &[], 0, "teacher");
    let server = S3Server::with(&faults);
    crate::faults::copy(&scaled::teacher(), &server.folder().join("teacher"));
    let out = server.folder().join("out");
    let coordinator = Coordinator::start_in(folder.path(), &server.environment());
    let job = scaled::job_file(folder.path(), Path::new("s3://bucket/teacher"), Path::new("s3://bucket/out"));
    let job = coordinator.submit(&job);
    let mut victim = coordinator.worker_with("victim", &["--grace", "2s"]);
    let id = freeze_in_the_middle(&coordinator, &job, &out, &victim);
    let stored = checkpoints(&out).into_iter().filter(|checkpoint| id.ends_with(&checkpoint.layer));
    let stored = stored.map(|checkpoint| checkpoint.step).max().expect("a checkpoint");
    // It asks for minutes again, before it gives up.
    faults.change(1.0, &[Fault::Busy]);
    leave(&victim);
    // Whatever hangs after two seconds, the process is ended with another code.
    assert!(victim.wait().success(), "{}", victim.stderr());
    assert!(faults.fired(Fault::Busy) > 0, "nothing was refused: {}", victim.stderr());
    faults.change(0.0, &[]);

    let status = coordinator.status(&job);
    assert_eq!((task(&status, &id)["state"].as_str(), failures(&status)), (Some("ready"), 0), "{status:#}");
    let known = known_step(&status, &id);
    assert!(known >= stored, "{stored} was stored, {known} is known");
    let successor = coordinator.worker("successor");
    let done = coordinator.done(&job);
    assert_eq!(logged(&successor, RESUMED, &id, "step"), Some(known), "{}", successor.stderr());
    assert_eq!((failures(&done), &done["figures"]), (0, &scaled::quiet().told["figures"]));
}
