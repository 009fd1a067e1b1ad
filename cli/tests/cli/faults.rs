//! A bucket whose answers fail now and then, under a whole job.

use std::fs;
use std::path::Path;

use deltaconv_proto::objects::testing::{Fault, Faults, S3Server};

use crate::scaled;
use crate::service::Coordinator;

/// Of the requests: seldom enough that no request is refused as often as it is repeated.
const RATE: f64 = 0.2;
const BLOCKS: &str = "output/blocks.safetensors";
const REPORT: &str = "report/report.json";
/// Which requests fail.
const SEEDS: [u64; 2] = [1, 2];
/// Bits in shards don't flip as often as the rest: a shard that is found broken three times ends its job.
const MOST_FLIPS: u64 = 2;

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).expect("copied")),
        }
    }
}

/// Runs the small job in a bucket with these faults.
fn convert(faults: &Faults) {
    let folder = tempfile::tempdir().expect("a folder");
    let server = S3Server::with(faults);
    copy(&scaled::teacher(), &server.folder().join("teacher"));
    let coordinator = Coordinator::start_in(folder.path(), &server.environment());
    let _workers = ["a", "b"].map(|name| coordinator.worker(name));
    let job = scaled::job_file(folder.path(), Path::new("s3://bucket/teacher"), Path::new("s3://bucket/out"));
    let job = coordinator.submit(&job);
    let done = coordinator.done(&job);
    assert_eq!(done["figures"], scaled::quiet().told["figures"], "{faults:?}");

    let out = server.folder().join("out");
    let written = [fs::read(out.join(BLOCKS)), fs::read(out.join(REPORT))].map(|read| read.expect("a result"));
    // The newest objects are results, which stay whether they are listed or not.
    faults.change(1.0, &[Fault::Stale]);
    coordinator.run(&["gc", &job, "--yes"]);
    assert_eq!(shards(&out), 0, "{faults:?}");
    assert!([BLOCKS, REPORT].map(|key| fs::read(out.join(key)).expect("a result")) == written);
}

/// How many are left.
fn shards(out: &Path) -> usize {
    let layers = fs::read_dir(out.join("rounds/0/activations")).into_iter().flatten();
    layers.map(|layer| fs::read_dir(layer.expect("a layer").path()).expect("a folder").count()).sum()
}

#[test]
fn whatever_goes_wrong_in_its_bucket_a_job_gives_the_same_model() {
    // What happens to fewer requests than others is drawn more often.
    let kinds = [&Fault::ALL[..], &[Fault::Short, Fault::Flipped]].concat();
    let all = SEEDS.map(|seed| Faults::new(seed, RATE, &kinds, MOST_FLIPS, "teacher"));
    // At the same time: most of it is pauses.
    std::thread::scope(|scope| all.iter().for_each(|faults| drop(scope.spawn(|| convert(faults)))));
    let fired = Fault::ALL.map(|fault| all.iter().map(|faults| faults.fired(fault)).sum::<u64>());
    let never: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| fired[*fault as usize] == 0).collect();
    assert!(never.is_empty(), "{never:?} never happened: {fired:?}");
}
