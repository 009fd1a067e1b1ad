//! Shards that were damaged after they were written.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process::{Running, until};
use crate::scaled;
use crate::service::{Coordinator, digest, freeze, tasks, tasks_in, thaw};

/// Every shard of the range that a capture task is for.
fn shards_of(output: &Path, task: &serde_json::Value) -> Vec<PathBuf> {
    let range = task["task_id"].as_str().expect("an id").rsplit('/').next().expect("a range").to_owned();
    let layers = fs::read_dir(output.join("rounds/0/activations")).expect("activations");
    let mut shards: Vec<PathBuf> = layers.flat_map(|layer| of_range(&layer.expect("a layer").path(), &range)).collect();
    shards.sort();
    shards
}

/// The shards of a layer's folder that attempts at a range wrote.
fn of_range(layer: &Path, range: &str) -> Vec<PathBuf> {
    let name = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(range));
    fs::read_dir(layer).expect("a folder").map(|entry| entry.expect("a shard").path()).filter(name).collect()
}

/// Two shards of one range that is captured while others aren't yet, with the worker frozen so that this stays so:
/// nobody has read them. `None` if everything was captured before the first look.
fn unread_shards(coordinator: &Coordinator, worker: &Running, job: &str, output: &Path) -> Option<(PathBuf, PathBuf)> {
    until("a range to be captured", || {
        let status = coordinator.status(job);
        (!tasks_in(&status, "capture", "committed").is_empty()).then_some(())
    });
    freeze(&[worker]);
    let status = coordinator.status(job);
    let captured = tasks_in(&status, "capture", "committed");
    if captured.len() == tasks(&status, "capture").len() {
        thaw(&[worker]);
        return None;
    }
    let shards = shards_of(output, captured.first()?);
    Some((shards.first()?.clone(), shards.last()?.clone()))
}

#[test]
fn a_damaged_shard_is_noticed_and_captured_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let worker = coordinator.worker("worker");
    let mut jobs = (0..10).map(|number| {
        let output = folder.path().join(format!("out-{number}"));
        let job = coordinator.submit(&scaled::job_file(folder.path(), &scaled::teacher(), &output));
        let shards = unread_shards(&coordinator, &worker, &job, &output);
        (job, shards)
    });
    // On a machine that is busy enough a job may be past its capture before it is looked at; another one comes.
    let (job, (flipped, truncated)) =
        jobs.find_map(|(job, shards)| Some((job, shards?))).expect("one job in ten caught in its capture");
    assert_ne!(flipped, truncated);
    let originals = [&flipped, &truncated].map(|path| fs::read(path).expect("a shard"));
    let mut bytes = originals[0].clone();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x10;
    fs::write(&flipped, bytes).expect("damaged");
    fs::write(&truncated, &originals[1][..originals[1].len() / 2]).expect("damaged");
    thaw(&[&worker]);

    let done = coordinator.done(&job);
    assert_eq!(digest(&done), scaled::quiet().digest);
    for (path, original) in [&flipped, &truncated].into_iter().zip(originals) {
        let (layer, name) = (path.parent().expect("a layer"), path.file_name().expect("a name").to_string_lossy());
        let range = name.split('-').take(2).collect::<Vec<_>>().join("-");
        let others = of_range(layer, &range).into_iter().filter(|other| other != path);
        let again: Vec<Vec<u8>> = others.map(|other| fs::read(other).expect("a shard")).collect();
        assert!(again == [original], "{} was not captured again", path.display());
    }
}
