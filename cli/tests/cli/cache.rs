//! Samples that no memory has room for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use deltaconv_proto::digest;

use crate::process::Running;
use crate::scaled;
use crate::service::{self, Coordinator};

#[test]
fn samples_come_from_the_store_or_a_folder_with_the_same_result() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let cache = folder.path().join("cache");
    let in_folder = ["--memory-cache", "1B", "--read-memory", "8MiB", "--disk-cache", cache.to_str().expect("UTF-8")];
    let convert_with = |name: &str, options: &[&[&str]]| {
        let start = |(index, options): (usize, &&[&str])| coordinator.worker_with(&format!("{name}-{index}"), options);
        let workers: Vec<Running> = options.iter().enumerate().map(start).collect();
        let output = folder.path().join(name);
        let job = coordinator.submit(&scaled::job_file(folder.path(), &scaled::teacher(), &output));
        let digest = service::digest(&coordinator.done(&job));
        (digest, workers.iter().map(Running::stderr).collect::<String>(), job)
    };
    let convert = |name: &str, options: &[&str]| convert_with(name, &[options]);
    let files = || -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(&cache).expect("a folder").flatten().map(|entry| entry.path()).collect();
        files.sort();
        files
    };
    let is_whole = |file: &PathBuf| {
        let bytes = fs::read(file).expect("read");
        file.file_name().is_some_and(|name| *name == *digest::of(&bytes))
    };

    let expected = &scaled::quiet().digest;
    assert_eq!(&convert("from-store", &in_folder[..2]).0, expected);
    let (found, _, first) = convert("from-folder", &in_folder);
    assert_eq!(&found, expected);
    let written = files();
    // Seven layers' four training shards.
    assert_eq!(written.len(), 28);
    assert!(written.iter().all(is_whole));

    let mut bytes = fs::read(&written[3]).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&written[3], &bytes).expect("damaged");
    fs::write(&written[5], &bytes[..100]).expect("damaged");
    let (found, log, job) = convert("from-damaged-folder", &in_folder);
    assert_eq!(&found, expected);
    assert!(log.contains("a file of the cache is broken") && log.contains(&digest::of(&bytes)), "{log}");
    assert_eq!(files(), written);
    assert!(written.iter().all(is_whole), "what was broken is replaced");

    // The first time the folder was empty; the second time each task was given to a worker whose node had most of it.
    let near = |job: &str| near_by_worker(&coordinator.process.stderr(), job).into_values().flatten();
    assert!(near(&first).all(|is_near| !is_near) && near(&job).all(|is_near| is_near));

    let halves = [0, 1].map(|half| folder.path().join(format!("half-{half}")));
    share_out(&folder.path().join("from-store/rounds/0/activations"), &halves);
    let of_half = halves.each_ref().map(|half| [&in_folder[..5], &[half.to_str().expect("UTF-8")]].concat());
    let (found, _, job) = convert_with("from-halves", &of_half.each_ref().map(Vec::as_slice));
    assert_eq!(&found, expected);
    let near = near_by_worker(&coordinator.process.stderr(), &job);
    assert!(near.values().flatten().any(|is_near| *is_near));
    // Each worker begins with what it has, and helps with the rest.
    assert!(near.values().all(|near| near.is_sorted_by_key(|is_near| !is_near)), "{near:?}");
}

/// Whether its node held most of a layer's shards, for each that a worker was given first, in their order.
fn near_by_worker(log: &str, job: &str) -> BTreeMap<String, Vec<bool>> {
    let (mut near, mut layers) = (BTreeMap::<_, Vec<bool>>::new(), BTreeSet::new());
    let tasks = format!("{job}/r0/distill/");
    for line in log.lines().filter(|line| line.contains("task leased")) {
        let field = |name: &str| line.split_once(name).and_then(|(_, rest)| rest.split(' ').next()).expect("a field");
        let task = field(" task=");
        if task.contains(&tasks) && layers.insert(task) {
            near.entry(field(" worker=").to_owned()).or_default().push(line.contains("its node holds"));
        }
    }
    assert_eq!(layers.len(), 7, "{log}");
    near
}

/// Puts the shards of every other layer into each of two folders, as workers would.
fn share_out(activations: &Path, folders: &[PathBuf; 2]) {
    folders.iter().for_each(|folder| fs::create_dir(folder).expect("made"));
    let paths = |folder: &Path| fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path());
    for (index, layer) in paths(activations).enumerate() {
        for shard in paths(&layer) {
            let name = digest::of(&fs::read(&shard).expect("read"));
            fs::copy(&shard, folders[index % 2].join(name)).expect("copied");
        }
    }
}
