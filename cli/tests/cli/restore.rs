//! Coordinators that lose their disk, and two that want the same output.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::faults::copy;
use crate::process::{Running, deltaconv, said, until};
use crate::scaled;
use crate::service::{self, Coordinator, digest, freeze, tasks_in, thaw};

/// The names in a folder, in their order.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Waits until some blocks are done and others in work, and leaves the workers frozen there.
fn freeze_between(coordinator: &Coordinator, job: &str, workers: &[&Running]) {
    until("some blocks to be done and others in work", || {
        let is_between = |status: &Value| {
            !tasks_in(status, "distill", "committed").is_empty() && !tasks_in(status, "distill", "running").is_empty()
        };
        if !is_between(&coordinator.status(job)) {
            return None;
        }
        freeze(workers);
        if is_between(&coordinator.status(job)) {
            return Some(());
        }
        thaw(workers);
        None
    });
}

/// Kills the coordinator, and loses its state but for the token that its workers have.
fn lose(coordinator: &mut Coordinator, folder: &Path) {
    coordinator.process.kill();
    let token = fs::read(coordinator.token_file()).expect("a token");
    fs::remove_dir_all(service::state(folder)).expect("removed");
    fs::create_dir(service::state(folder)).expect("made");
    fs::write(coordinator.token_file(), token).expect("written");
}

/// Restores a state, and answers with what it says of its one job.
fn restore(state: &Path, from: &[&str]) -> Value {
    let mut command = deltaconv();
    command.args(["coordinator", "restore", "-o", "json", "--state"]).arg(state).args(from);
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{}", said(&output));
    let restored: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&restored["remarks"], &restored["jobs"][1]), (&Value::Array(Vec::new()), &Value::Null), "{restored}");
    restored["jobs"][0].clone()
}

/// Its snapshots and its backups all have what it had; with a backup not even the token is needed.
#[test]
fn a_coordinator_without_its_state_goes_on_from_a_snapshot_or_a_backup() {
    let folder = tempfile::tempdir().expect("a folder");
    let snapshots = folder.path().join("snapshots");
    let to = snapshots.to_str().expect("UTF-8");
    let mut coordinator = Coordinator::start_with(folder.path(), &["--snapshots", to, "--snapshot-every", "200ms"]);
    let job = scaled::job_file(folder.path(), &scaled::teacher(), &folder.path().join("out"));
    let job = coordinator.submit(&job);
    let workers = ["a", "b"].map(|name| coordinator.worker(name));
    let frozen: Vec<_> = workers.iter().collect();
    freeze_between(&coordinator, &job, &frozen);
    let committed = tasks_in(&coordinator.status(&job), "distill", "committed").len() as u64;
    // Their leases end, which is a change, if there was none before.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    let newest = format!("snapshot-{now:013}");
    until("a snapshot of that", || names(&snapshots).last().is_some_and(|name| *name > newest).then_some(()));
    assert!(names(&snapshots).len() <= 4, "{:?}", names(&snapshots));

    let backups = folder.path().join("backups");
    let at = backups.to_str().expect("UTF-8");
    let running = coordinator.json(&["coordinator", "backup", "--to", at]);
    let state = service::state(folder.path());
    let stopped = ["coordinator", "backup", "-o", "json", "--to", at, "--state", state.to_str().expect("UTF-8")];
    let in_use = deltaconv().args(stopped).output().expect("runs");
    assert!(said(&in_use).contains("error[DC0603]"), "{}", said(&in_use));
    let token = fs::read(coordinator.token_file()).expect("a token");
    coordinator.process.kill();
    let stopped = deltaconv().args(stopped).output().expect("runs");
    assert!(stopped.status.success(), "{}", said(&stopped));
    fs::remove_dir_all(&state).expect("removed");

    let running = running["url"].as_str().expect("a URL");
    let elsewhere = ["from-snapshots", "from-stopped"].map(|name| folder.path().join(name));
    let from = [["--snapshots", to], ["--backup", at], ["--backup", running]];
    for (state, from) in elsewhere.iter().chain([&state]).zip(from) {
        let restored = restore(state, &from);
        assert_eq!((&restored["job_id"], &restored["state"]), (&job.clone().into(), &"running".into()), "{from:?}");
        assert!(restored["committed"].as_u64().expect("a number") > committed, "{from:?}: {restored}");
    }
    assert!(fs::read(coordinator.token_file()).expect("a token") == token, "the workers' token is the same");
    let coordinator = coordinator.start_again();
    thaw(&frozen);
    assert_eq!(digest(&coordinator.done(&job)), scaled::quiet().digest);
}

#[test]
fn a_coordinator_without_its_state_goes_on_from_what_lies_in_the_output() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut coordinator = Coordinator::start(folder.path());
    let output = folder.path().join("out");
    let job = coordinator.submit(&scaled::job_file(folder.path(), &scaled::teacher(), &output));
    let workers = ["a", "b"].map(|name| coordinator.worker(name));
    let frozen: Vec<_> = workers.iter().collect();
    freeze_between(&coordinator, &job, &frozen);
    let manifests = output.join("manifests").join(&job);
    until("the capture's manifest", || names(&manifests).iter().any(|name| name.contains("capture")).then_some(()));

    lose(&mut coordinator, folder.path());
    let restored = restore(&service::state(folder.path()), &["--job", output.to_str().expect("UTF-8")]);
    assert_eq!((&restored["job_id"], &restored["state"]), (&job.clone().into(), &"running".into()));
    assert!(restored["from_manifests"].as_u64().expect("a number") > 0, "{restored}");
    let coordinator = coordinator.start_again();
    thaw(&frozen);
    let done = coordinator.done(&job);
    assert_eq!(digest(&done), scaled::quiet().digest);
    let captured = service::tasks(&done, "capture");
    assert!(captured.iter().all(|task| task["attempts"] == 1), "what was recorded is not recorded again: {done:#}");
    // One term is left, which says that the output is anybody's, and all that is there is known.
    until("the output to be given back", || (names(&output.join("coordinator")).len() == 1).then_some(()));
    let collected = coordinator.json(&["gc", &job, "--dry-run"]);
    assert_eq!(collected["unknown_objects"], 0, "{collected}");
}

#[test]
fn a_second_coordinator_on_a_copied_state_fences_the_first() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let first = Coordinator::start(folders[0].path());
    let output = folders[0].path().join("out");
    let job_file = scaled::job_file(folders[0].path(), &scaled::teacher(), &output);
    let job = first.submit(&job_file);
    copy(&service::state(folders[0].path()), &service::state(folders[1].path()));
    let second = Coordinator::start(folders[1].path());
    let reason = until("the first one to see it", || {
        let summary = first.status(&job)["summary"].clone();
        (summary["state"] == "failed").then(|| summary["reason"].as_str().expect("a reason").to_owned())
    });
    assert!(reason.contains("another coordinator took the output over"), "{reason}");
    for command in [vec!["retry", &job], vec!["gc", &job, "--yes"], vec!["submit", job_file.to_str().expect("UTF-8")]] {
        let refused = first.run(&command);
        assert!(!refused.status.success() && said(&refused).contains("--take-over"), "{}", said(&refused));
    }

    let _workers = ["a", "b"].map(|name| second.worker(name));
    assert_eq!(digest(&second.done(&job)), scaled::quiet().digest);
}
