//! Each command in a process of its own.

use std::net::TcpListener;

use deltaconv_proto::objects::testing::S3Server;

use crate::process::{deltaconv, said, until};
use crate::scaled;
use crate::service::{self, Coordinator};

#[test]
fn a_job_without_workers_says_so_and_waits() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let job_file = scaled::job_file(folder.path(), &scaled::teacher(), &folder.path().join("out"));

    let planned = coordinator.run(&["submit", "--dry-run", job_file.to_str().expect("UTF-8")]);
    let text = said(&planned);
    assert!(planned.status.success() && text.contains("UNet2DConditionModel") && text.contains("mid_block"), "{text}");
    assert!(!folder.path().join("out").exists(), "a dry run wrote something");
    assert_eq!(coordinator.json(&["jobs"])["jobs"].as_array().map(Vec::len), Some(0));

    let job = coordinator.submit(&job_file);
    assert_eq!(coordinator.submit(&job_file), job, "the same job again is the same job");
    let status = coordinator.status(&job);
    assert_eq!(status["version"], 1);
    assert_eq!(status["summary"]["state"], "running");
    assert!(status["waiting_for"].as_str().is_some_and(|text| text.contains("worker")), "{status:#}");
    let text = said(&coordinator.run(&["status", &job]));
    assert!(text.contains("waiting: ") && text.contains("capture"), "{text}");

    let cancelled = coordinator.run(&["cancel", &job, "--yes"]);
    assert!(cancelled.status.success(), "{}", said(&cancelled));
    let watched = coordinator.run(&["watch", &job]);
    assert_eq!(watched.status.code(), Some(1), "{}", said(&watched));
    assert!(said(&watched).contains("cancelled"), "{}", said(&watched));
}

#[test]
fn a_worker_started_first_waits_and_joins() {
    let folder = tempfile::tempdir().expect("a folder");
    // A port that was free a moment ago, for a worker that must know it before its coordinator does.
    let reserved = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = reserved.local_addr().expect("an address").to_string();
    drop(reserved);
    let mut early = service::worker(folder.path(), &format!("http://{address}"), "early", &[]);
    until("the worker to say that it waits", || early.stderr().contains("waiting").then_some(()));
    assert!(!early.has_ended(), "{}", early.stderr());

    let coordinator = Coordinator::listen(folder.path(), &address, &[], &[]);
    let joined = || {
        let workers = coordinator.json(&["workers"]);
        workers["workers"].as_array().is_some_and(|workers| workers.iter().any(|worker| worker["name"] == "early"))
    };
    until("the worker to join", || joined().then_some(()));
    let text = said(&coordinator.run(&["workers"]));
    assert!(text.contains("early") && text.contains("cpu"), "{text}");
}

#[test]
fn a_shipped_teacher_is_put_into_a_bucket_with_a_job_that_converts_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = S3Server::start();
    let put = || {
        let mut command = deltaconv();
        command.args(["teacher", "tiny-unet", "--out", "s3://bucket/models/tiny-unet"]).envs(server.environment());
        command.output().expect("runs")
    };
    let first = put();
    assert!(first.status.success(), "{}", said(&first));
    let job_file = folder.path().join("any-name.toml");
    std::fs::write(&job_file, &first.stdout).expect("written");

    let coordinator = Coordinator::start_in(folder.path(), &server.environment());
    let planned = coordinator.json(&["submit", "--dry-run", job_file.to_str().expect("UTF-8")]);
    assert_eq!(planned["plan"]["layers"].as_array().map(Vec::len), Some(7), "{planned:#}");
    let again = put();
    assert!(again.status.success(), "it can be given again: {}", said(&again));
    assert_eq!(again.stdout, first.stdout);
    std::fs::write(server.folder().join("models/tiny-unet/unet/config.json"), "{}").expect("changed");
    let refused = put();
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("error[DC0317]: s3://bucket/models/tiny-unet holds"), "{}", said(&refused));
}

#[test]
fn every_command_tells_how_it_is_used() {
    let of_jobs =
        ["demo", "coordinator", "worker", "submit", "jobs", "status", "watch", "workers", "cancel", "gc", "events"];
    for command in of_jobs.into_iter().chain(["inspect", "analyze", "sample", "bench", "teacher"]) {
        let help = deltaconv().args([command, "--help"]).output().expect("runs");
        assert!(help.status.success() && help.stderr.is_empty(), "{command}: {}", said(&help));
    }
}
