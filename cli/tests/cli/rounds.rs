//! A job with a further round, in which the student's inputs are recorded, and whose blocks are then trained together.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::process::until;
use crate::scaled;
use crate::service::{Coordinator, digest, tasks_in};

fn job_file(folder: &Path, name: &str) -> std::path::PathBuf {
    let job = scaled::job_file(folder, &scaled::teacher(), &folder.join(name));
    let rounds = "[recipe]\nrounds = 1\nround_steps = 40\nteacher_share = 0.5\nbudget = 'gain'\nwiden = 0.0";
    let together = "[recipe.finetune]\nsteps = 8\nbatch = 8\nlearning_rate = 1e-4";
    let text = fs::read_to_string(&job).expect("read").replacen("[recipe]", rounds, 1) + "\n" + together + "\n";
    fs::write(&job, text).expect("written");
    job
}

#[test]
fn a_further_round_gives_the_same_blocks_whoever_works_on_it_and_is_told_beside_the_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let first = job_file(folder.path(), "first");
    let planned = coordinator.json(&["submit", "--dry-run", first.to_str().expect("UTF-8")]);
    let stages = planned["plan"]["stages"].as_array().expect("stages").clone();
    let written = |index: usize| stages[index]["written_bytes"].as_f64().expect("bytes");
    let names: Vec<_> = stages.iter().map(|s| (s["stage"].as_str().expect("a name"), s["round"].clone())).collect();
    let rounds = [("capture", 0), ("distill", 0), ("capture", 1), ("distill", 1)];
    let expected = [&rounds[..], &[("finetune", 0), ("assemble", 0), ("evaluate", 0)]].concat();
    let expected: Vec<_> = expected.into_iter().map(|(stage, round)| (stage, Value::from(round))).collect();
    assert_eq!(names, expected);
    // What goes into the first layer stays the same.
    assert!(written(2) < written(0));

    let alone = coordinator.worker("alone");
    let first = coordinator.done(&coordinator.submit(&first));
    drop(alone);

    let second = coordinator.submit(&job_file(folder.path(), "second"));
    let mut victim = coordinator.worker("victim");
    until("the further round's capture to run", || {
        let status = coordinator.status(&second);
        let running = tasks_in(&status, "capture", "running");
        running.iter().find(|task| task["task_id"].as_str().expect("an id").contains("/r1/")).map(drop)
    });
    victim.kill();
    let mut others = ["a", "b"].map(|name| coordinator.worker(name));
    let at_it = until("the training of all blocks together to run", || {
        let status = coordinator.status(&second);
        let task = tasks_in(&status, "finetune", "running").first().cloned()?;
        let worker = task["worker_id"].as_str().expect("an id").to_owned();
        let workers = coordinator.json(&["workers"]);
        let names = workers["workers"].as_array().expect("workers").iter();
        let name = names.filter(|of| of["worker_id"] == worker.as_str()).map(|of| of["name"].as_str().expect("a name"));
        name.map(str::to_owned).next()
    });
    others[usize::from(at_it == "b")].kill();
    let second = coordinator.done(&second);
    assert_eq!(digest(&first), digest(&second));

    let report: Value =
        serde_json::from_slice(&fs::read(folder.path().join("first/report/report.json")).expect("read"))
            .expect("a report");
    let quiet = &scaled::quiet().told["figures"];
    let error = |of: &Value| of["epsilon_relative_mse"].as_f64().expect("a number");
    // The first round is the job that has no other.
    assert!((error(&report["rounds"][0]) / error(quiet) - 1.0).abs() < 1e-6, "{report:#}");
    let psnr = |of: &Value| of["psnr_db"].as_f64().expect("a number");
    assert!((psnr(&report["rounds"][0]) / psnr(quiet) - 1.0).abs() < 1e-6, "{report:#}");
    let (second_round, finetune) = (&report["rounds"][1], &report["finetune"]);
    assert!(error(second_round) < error(&report["rounds"][0]), "{report:#}");
    assert!(error(&report) < error(second_round), "{report:#}");
    assert!(finetune["error_after"].as_f64() < finetune["error_before"].as_f64(), "{report:#}");
    // The first layer is as the first round left it, some others are wider, and not all were trained for as long.
    let layers = report["layers"].as_array().expect("layers");
    let column = |name: &str| layers.iter().map(|layer| layer[name].as_f64().expect("a number")).collect::<Vec<_>>();
    let (steps, widths) = (column("steps"), column("inter_ratio"));
    assert_eq!((steps[0], widths[0]), (40.0, 0.5));
    assert!(steps[1..].iter().any(|of| *of < 40.0) && steps[1..].iter().any(|of| *of > 40.0), "{steps:?}");
    assert!(widths[1..].contains(&1.0) && widths[1..].contains(&0.5), "{widths:?}");
    let status = String::from_utf8(coordinator.run(&["status", "tiny-1"]).stdout).expect("text");
    for told in ["capture, round 1", "distill, round 1", "ALONE"] {
        assert!(status.contains(told), "{status} lacks {told}");
    }

    let json = String::from_utf8(coordinator.run(&["report", "tiny-1", "-o", "json"]).stdout).expect("text");
    assert_eq!(serde_json::from_str::<Value>(&json).expect("JSON"), report);
    let told = String::from_utf8(coordinator.run(&["report", "tiny-1"]).stdout).expect("text");
    let first = format!("{:.5}", error(&report["rounds"][0]));
    let rows =
        ["attention removed", "student of round 0", "student, end to end", "distill, round 1", "finetune", "total"];
    for row in rows.into_iter().chain([first.as_str()]) {
        assert!(told.contains(row), "{told} lacks {row}");
    }
    let unknown = String::from_utf8(coordinator.run(&["report", "tiny-9"]).stderr).expect("text");
    assert!(unknown.contains("there is no job tiny-9"), "{unknown}");
}
