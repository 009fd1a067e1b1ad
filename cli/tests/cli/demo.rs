//! The first command.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::process::{Running, exists, said, signal, until};
use crate::{scaled, service};

fn read_json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The process ids that a demo's children had, by name, the last one of each.
fn children(demo: &Running) -> Vec<(String, i32)> {
    let stderr = demo.stderr();
    let starts = stderr.lines().filter_map(|line| {
        let (name, rest) = line.split_once(" started")?;
        let (_, pid) = rest.split_once("process ")?;
        Some((name.to_owned(), pid.trim().parse().ok()?))
    });
    let mut last = Vec::<(String, i32)>::new();
    for (name, pid) in starts {
        last.retain(|(other, _)| *other != name);
        last.push((name, pid));
    }
    last
}

fn child(demo: &Running, name: &str) -> i32 {
    let found = children(demo).into_iter().find(|(child, _)| child == name);
    found.unwrap_or_else(|| panic!("no {name} in {}", demo.stderr())).1
}

/// The demo's only job, once its coordinator knows it.
fn job(out: &Path) -> Option<(String, Value)> {
    let url = fs::read_to_string(out.join(".demo/address")).ok()?;
    let url = url.trim().to_owned();
    let jobs = crate::process::deltaconv().args(["jobs", "-o", "json", "--coordinator", &url]).output().expect("runs");
    let jobs: Value = serde_json::from_slice(&jobs.stdout).ok()?;
    let id = jobs["jobs"][0]["job_id"].as_str()?;
    Some((url.clone(), service::json(&url, &["status", id])))
}

/// Waits until the demo trains blocks, and answers with the coordinator's URL.
fn distilling(demo: &mut Running, out: &Path) -> String {
    until("a distill task to run", || {
        assert!(!demo.has_ended(), "{}", demo.stderr());
        let (url, status) = job(out)?;
        (!service::tasks_in(&status, "distill", "running").is_empty()).then_some(url)
    })
}

#[test]
fn what_the_demo_leaves_is_the_contract() {
    let quiet = scaled::quiet();
    let files = [
        "output/unet/config.json",
        "output/unet/diffusion_pytorch_model.safetensors",
        "output/scheduler/scheduler_config.json",
        "output/deltaconv.json",
        "output/deltaconv_diffusers.py",
        "output/blocks.safetensors",
        "report/report.json",
        "report/report.html",
        "report/samples.png",
        "report/loss.svg",
    ];
    for file in files {
        let size = fs::metadata(quiet.out.join(file)).unwrap_or_else(|e| panic!("{file}: {e}")).len();
        assert!(size > 0, "{file} is empty");
    }
    let report = read_json(&quiet.out.join("report/report.json"));
    for figures in [&report, &report["attention_removed"]] {
        assert!(figures["epsilon_relative_mse"].as_f64().is_some_and(f64::is_finite), "{report:#}");
        assert!(figures["psnr_db"].as_f64().is_some_and(f64::is_finite), "{report:#}");
    }
    // The first layer's input is the teacher's still; behind it, the student has left the teacher.
    let drift = report["layers"].as_array().expect("layers").iter().map(|layer| layer["residual_drift"].as_f64());
    let drift: Vec<f64> = drift.collect::<Option<_>>().expect("numbers");
    assert!(drift[0] == 0.0 && drift[1..].iter().all(|of| *of > 0.0), "{drift:?}");
    for layer in report["layers"].as_array().expect("layers") {
        let alone = layer["alone"]["epsilon_relative_mse"].as_f64().expect("a number");
        assert!(alone > 0.0 && alone < report["epsilon_relative_mse"].as_f64().expect("a number"), "{layer:#}");
    }
    let description = read_json(&quiet.out.join("output/deltaconv.json"));
    let layers = description["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), report["layers"].as_array().expect("layers").len());
    for field in ["name", "width", "kernel_size", "scales", "gate", "inter_ratio"] {
        assert!(layers.iter().all(|layer| !layer[field].is_null()), "a layer lacks {field}: {description:#}");
    }
    assert_eq!(quiet.told["layers"].as_u64(), Some(layers.len() as u64));

    let removed = ["rounds/0/activations", "checkpoints"].map(|below| quiet.out.join(below));
    assert!(removed.iter().all(|folder| !folder.exists()), "{removed:?} should be gone");
    assert!(quiet.out.join("logs/coordinator.log").exists());
}

#[test]
fn a_finished_demo_says_so_again_and_starts_nothing() {
    let quiet = scaled::quiet();
    let again = scaled::demo(&quiet.out, 2).output().expect("runs");
    assert!(again.status.success(), "{}", said(&again));
    assert_eq!(serde_json::from_slice::<Value>(&again.stdout).expect("JSON"), quiet.told);
    let stderr = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(stderr.contains("finished") && !stderr.contains("started, process"), "{stderr}");

    let other = scaled::demo(&quiet.out, 2).args(["--seed", "7"]).output().expect("runs");
    assert!(!other.status.success() && said(&other).contains("seed 7"), "{}", said(&other));
}

#[test]
fn one_worker_gives_the_same_blocks() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = scaled::demo(&folder.path().join("one"), 1).output().expect("runs");
    assert!(output.status.success(), "{}", said(&output));
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(told["figures"]["blocks_digest"], scaled::quiet().digest.as_str());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains(['\u{1b}', '\r']), "control characters where there is no terminal: {stderr:?}");
}

#[test]
fn an_interrupted_demo_leaves_no_process_and_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");

    let mut first = Running::start(&mut scaled::demo(&out, 2), folder.path(), "first");
    distilling(&mut first, &out);
    let second = scaled::demo(&out, 2).output().expect("runs");
    assert!(!second.status.success() && said(&second).contains("running"), "{}", said(&second));
    first.signal(Signal::INT);
    assert_eq!(first.wait().code(), Some(130), "{}", first.stderr());
    let left: Vec<_> = children(&first).into_iter().filter(|(_, pid)| exists(*pid)).collect();
    assert_eq!((children(&first).len(), left), (3, vec![]), "{}", first.stderr());

    // Not even a killed demo leaves anything, though it can no longer end its children itself.
    let mut killed = Running::start(&mut scaled::demo(&out, 2), folder.path(), "killed");
    until("the workers to start", || (children(&killed).len() == 3).then_some(()));
    killed.kill();
    until("the children of a killed demo to end", || {
        children(&killed).iter().all(|(_, pid)| !exists(*pid)).then_some(())
    });

    let last = scaled::demo(&out, 2).output().expect("runs");
    assert!(last.status.success(), "{}", said(&last));
    let told: Value = serde_json::from_slice(&last.stdout).expect("JSON");
    assert_eq!(told["figures"]["blocks_digest"], scaled::quiet().digest.as_str());
}

#[test]
fn a_demo_starts_killed_children_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let mut demo = Running::start(&mut scaled::demo(&out, 2), folder.path(), "demo");
    distilling(&mut demo, &out);
    for name in ["worker-1", "coordinator"] {
        signal(child(&demo, name), Signal::KILL);
    }
    assert!(demo.wait().success(), "{}", demo.stderr());
    for name in ["worker-1", "coordinator"] {
        let told = format!("{name} ended (signal 9), is started again");
        assert!(demo.stderr().contains(&told), "{}", demo.stderr());
    }
    let told: Value = serde_json::from_str(&demo.stdout()).expect("JSON");
    assert_eq!(told["figures"]["blocks_digest"], scaled::quiet().digest.as_str());
}
