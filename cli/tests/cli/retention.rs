//! What jobs leave under their output, and what removes it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::process::{said, until};
use crate::scaled;
use crate::service::{Coordinator, digest};

/// The small job with further settings, which stand before its tables.
fn job_file(folder: &Path, output: &str, settings: &str) -> PathBuf {
    let path = scaled::job_file(folder, &scaled::teacher(), &folder.join(output));
    let text = fs::read_to_string(&path).expect("written");
    fs::write(&path, format!("{settings}\n{text}")).expect("written");
    path
}

/// The sizes of the files below `folder`, by path. What the coordinator removes meanwhile is not there.
fn files(folder: &Path) -> BTreeMap<PathBuf, u64> {
    fn there<T>(looked_at: io::Result<T>) -> Option<T> {
        match looked_at {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            looked_at => Some(looked_at.expect("readable")),
        }
    }
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in there(fs::read_dir(&next)).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            let Some(metadata) = there(fs::metadata(&path)) else { continue };
            if metadata.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).expect("below").to_path_buf(), metadata.len());
            }
        }
    }
    found
}

fn below<'a>(files: &'a BTreeMap<PathBuf, u64>, folder: &'a str) -> impl Iterator<Item = (&'a PathBuf, &'a u64)> {
    files.iter().filter(move |(path, _)| path.starts_with(folder))
}

/// Objects and bytes that were removed as `kind`.
fn removed(collected: &Value, kind: &str) -> (u64, u64) {
    let kinds = collected["removed"].as_array().expect("kinds");
    let found = kinds.iter().find(|garbage| garbage["kind"] == kind).expect("the kind");
    (found["objects"].as_u64().expect("a number"), found["bytes"].as_u64().expect("a number"))
}

#[test]
fn what_is_collected_by_hand_and_by_retention_is_the_same_and_no_result() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut coordinator = Coordinator::start(folder.path());
    let _workers = ["a", "b"].map(|name| coordinator.worker(name));

    let (all, results) = (folder.path().join("all"), folder.path().join("results"));
    let kept = coordinator.submit(&job_file(folder.path(), "all", ""));
    let reclaimed = coordinator.submit(&job_file(folder.path(), "results", "retention = 'results'"));
    let kept_status = coordinator.done(&kept);
    let reclaimed_status = coordinator.done(&reclaimed);
    // It may be removing by now; the next one goes on.
    coordinator.process.kill();
    let coordinator = coordinator.start_again();
    assert_eq!(digest(&kept_status), scaled::quiet().digest);
    assert_eq!(digest(&reclaimed_status), scaled::quiet().digest);
    until("the activations to be gone", || {
        let left = files(&results);
        let is_recorded = |folder: &str| below(&left, folder).next().is_some();
        (!is_recorded("rounds/0/activations") && !is_recorded("checkpoints")).then_some(())
    });

    // What an upload that was killed leaves, an attempt that is long gone, and what somebody put beside it.
    let before = files(&all);
    let activations: Vec<u64> = below(&before, "rounds/0/activations").map(|(_, size)| *size).collect();
    assert!(!activations.is_empty(), "{before:?}");
    let layer = below(&before, "rounds/0/blocks").next().expect("a block").0.with_file_name("");
    for (path, bytes) in [
        (layer.join("a9-999-elsewhere.safetensors"), 10),
        (layer.join("a9-999-elsewhere.safetensors#1"), 100),
        (PathBuf::from("notes.txt"), 1000),
    ] {
        fs::write(all.join(path), vec![0; bytes]).expect("written");
    }
    let left = files(&all);
    let planned = coordinator.json(&["gc", &kept, "--dry-run"]);
    // On a machine that is busy enough a lease may have ended on the way, and its attempt left more.
    let (shards, orphans) = (removed(&planned, "activations"), removed(&planned, "orphaned attempts"));
    assert!(shards.0 > 0 && shards.0 + orphans.0 > activations.len() as u64, "{planned}");
    assert!(orphans.1 >= 10 && shards.1 + orphans.1 >= activations.iter().sum::<u64>() + 10, "{planned}");
    assert_eq!(removed(&planned, "interrupted uploads"), (1, 100));
    assert_eq!((&planned["unknown_objects"], &planned["running"]), (&1.into(), &false.into()));
    assert_eq!(files(&all), left, "a dry run removed something");

    let told = coordinator.run(&["gc", &kept, "--yes"]);
    assert!(told.status.success(), "{}", said(&told));
    for part in ["activations", &shards.0.to_string(), "1 object that is no part of a job stays"] {
        assert!(said(&told).contains(part), "{part:?} is not in: {}", said(&told));
    }
    let after = files(&all);
    // Collecting took a term of the output, in the place of the former.
    let is_gone = |path: &Path| !after.contains_key(path) && !path.starts_with("coordinator");
    let gone: Vec<u64> = left.iter().filter(|(path, _)| is_gone(path)).map(|(_, size)| *size).collect();
    let of_all_kinds = |figure: &str| {
        let kinds = planned["removed"].as_array().expect("kinds").iter();
        kinds.map(|garbage| garbage[figure].as_u64().expect("a number")).sum::<u64>()
    };
    assert_eq!((gone.len() as u64, gone.iter().sum()), (of_all_kinds("objects"), of_all_kinds("bytes")));
    for folder in ["output", "report", "spec.json", "notes.txt"] {
        assert!(below(&after, folder).eq(below(&left, folder)), "{folder} is not what it was: {after:?}");
    }
    // Of each layer its block, and what the block's training started from.
    let blocks = 2 * kept_status["layers"].as_array().expect("layers").len();
    assert_eq!(below(&after, "rounds/0/blocks").count(), blocks, "{after:?}");
    assert!(!all.join("rounds/0/activations").exists() && !all.join("checkpoints").exists(), "{after:?}");
    // What was written is what was planned, but for headers; the job is large enough for these not to matter.
    let job_toml = folder.path().join("again.toml");
    let text = fs::read_to_string(folder.path().join("all.toml")).expect("written");
    fs::write(&job_toml, text.replace("/all'", "/again'")).expect("written");
    let dry_run = coordinator.json(&["submit", "--dry-run", job_toml.to_str().expect("UTF-8")]);
    let sum = |folder: &str| below(&after, folder).map(|(_, size)| *size).sum::<u64>();
    for (stage, written) in [("capture", shards.1), ("assemble", sum("output")), ("evaluate", sum("evaluate"))] {
        let stages = dry_run["plan"]["stages"].as_array().expect("stages");
        let planned = stages.iter().find(|planned| planned["stage"] == stage).expect("the stage");
        let planned = planned["written_bytes"].as_u64().expect("a number");
        assert!(planned.abs_diff(written) <= planned / 20, "{stage} wrote {written} bytes; planned were {planned}");
    }
    let names =
        |files: &BTreeMap<PathBuf, u64>| below(files, "output").map(|(path, _)| path.clone()).collect::<Vec<_>>();
    assert_eq!(names(&after), names(&files(&results)));
    assert_eq!(below(&files(&results), "rounds").count(), blocks);

    let again = coordinator.json(&["gc", &kept, "--yes"]);
    assert!(again["removed"].as_array().expect("kinds").iter().all(|garbage| garbage["objects"] == 0), "{again}");
    assert_eq!(coordinator.submit(&folder.path().join("all.toml")), kept, "the job is done as before");
    assert!(fs::read_to_string(all.join("spec.json")).is_ok_and(|spec| !spec.contains("retention")));
}

#[test]
fn a_job_that_would_store_too_much_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let too_much = job_file(folder.path(), "out", "max_storage = '1 MB'");
    for arguments in [vec!["submit"], vec!["submit", "--dry-run"]] {
        let refused = coordinator.run(&[&arguments[..], &[too_much.to_str().expect("UTF-8")]].concat());
        assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
        for part in ["max_storage", "1.0 MB (1000000 bytes)", "stage capture", "recipe.samples"] {
            assert!(said(&refused).contains(part), "{part:?} is not in: {}", said(&refused));
        }
    }
    assert!(!folder.path().join("out").exists() && coordinator.json(&["jobs"])["jobs"] == Value::Array(Vec::new()));

    // The same job under a limit that it keeps says what it will write and read.
    let enough = job_file(folder.path(), "out", "max_storage = '1 GiB'");
    let planned = coordinator.json(&["submit", "--dry-run", enough.to_str().expect("UTF-8")]);
    let stages = planned["plan"]["stages"].as_array().expect("stages").clone();
    let written = |stage: &Value| stage["written_bytes"].as_u64().expect("a number");
    assert_eq!(planned["plan"]["stored_bytes"], stages.iter().map(written).sum::<u64>());
    let submitted = coordinator.run(&["submit", enough.to_str().expect("UTF-8")]);
    let text = said(&submitted);
    assert!(submitted.status.success(), "{text}");
    for part in ["WRITES", "READS", "capture", "distill", "assemble", "evaluate", "stored at a time"] {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }

    // While it waits for workers, nothing of it is removed.
    let job = String::from_utf8_lossy(&submitted.stdout).trim().to_owned();
    let collected = coordinator.json(&["gc", &job, "--yes"]);
    assert_eq!((&collected["running"], &collected["unknown_objects"]), (&true.into(), &0.into()));
    assert!(folder.path().join("out/spec.json").exists());
}
