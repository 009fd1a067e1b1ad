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

#[test]
fn inputs_alone_take_half_the_bytes_and_teach_as_much_wherever_they_lie() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let cache = folder.path().join("cache");
    let in_folder = ["--memory-cache", "1B", "--disk-cache", cache.to_str().expect("UTF-8")];
    let planned = |job: &Path| {
        let planned = coordinator.json(&["submit", "--dry-run", job.to_str().expect("UTF-8")]);
        planned["plan"]["stages"][0]["written_bytes"].as_f64().expect("of the capture")
    };
    let convert = |name: &str, options: &[&str]| {
        let _worker = coordinator.worker_with(name, options);
        let output = folder.path().join(name);
        let job = scaled::job_file(folder.path(), &scaled::teacher(), &output);
        let text = fs::read_to_string(&job).expect("read");
        let whole = planned(&job);
        fs::write(&job, text.replacen("[recipe]", "[recipe]\nstore = \"inputs\"", 1)).expect("written");
        assert!((planned(&job) / whole - 0.5).abs() < 0.01);
        let status = coordinator.done(&coordinator.submit(&job));
        let epsilon = status["figures"]["epsilon_relative_mse"].as_f64().expect("a number");
        let written = bytes_below(&output.join("rounds/0/activations")) as f64;
        assert!((written / planned(&job) - 1.0).abs() < 0.01, "{written} of {}", planned(&job));
        (service::digest(&status), epsilon)
    };
    let (digest, epsilon) = convert("in-memory", &[]);
    assert_eq!(convert("in-folder", &in_folder).0, digest);
    let whole = scaled::quiet();
    let expected = whole.told["figures"]["epsilon_relative_mse"].as_f64().expect("a number");
    assert!((epsilon / expected - 1.0).abs() < 0.05, "{epsilon} instead of {}", expected);
}

fn bytes_below(folder: &Path) -> u64 {
    let of_entry = |entry: fs::DirEntry| match entry.metadata().expect("there") {
        metadata if metadata.is_dir() => bytes_below(&entry.path()),
        metadata => metadata.len(),
    };
    fs::read_dir(folder).expect("a folder").flatten().map(of_entry).sum()
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
