//! Samples that no memory has room for.

use std::fs;
use std::path::PathBuf;

use deltaconv_proto::digest;

use crate::scaled;
use crate::service::{self, Coordinator};

#[test]
fn samples_come_from_the_store_or_a_folder_with_the_same_result() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let cache = folder.path().join("cache");
    let in_folder = ["--memory-cache", "1B", "--read-memory", "8MiB", "--disk-cache", cache.to_str().expect("UTF-8")];
    let convert = |name: &str, options: &[&str]| {
        let worker = coordinator.worker_with(name, options);
        let output = folder.path().join(name);
        let job = coordinator.submit(&scaled::job_file(folder.path(), &scaled::teacher(), &output));
        let digest = service::digest(&coordinator.done(&job));
        (digest, worker.stderr())
    };
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
    assert_eq!(&convert("from-folder", &in_folder).0, expected);
    let written = files();
    // Seven layers' four training shards.
    assert_eq!(written.len(), 28);
    assert!(written.iter().all(is_whole));

    let mut bytes = fs::read(&written[3]).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&written[3], &bytes).expect("damaged");
    fs::write(&written[5], &bytes[..100]).expect("damaged");
    let (found, log) = convert("from-damaged-folder", &in_folder);
    assert_eq!(&found, expected);
    assert!(log.contains("a file of the cache is broken") && log.contains(&digest::of(&bytes)), "{log}");
    assert_eq!(files(), written);
    assert!(written.iter().all(is_whole), "what was broken is replaced");
}
