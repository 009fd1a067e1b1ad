//! A state that is lost, and found again.

use std::path::Path;

use deltaconv_proto::keys;
use deltaconv_proto::v1;
use url::Url;

use super::*;
use crate::archive::Writer;
use crate::manifest;
use crate::running::Running;
use crate::snapshot::Keeper;
use crate::store::{self, LocalStore};

fn url(path: &Path) -> String {
    Url::from_file_path(path).expect("absolute").to_string()
}

fn options(running: &Running) -> Options {
    Options {
        state: running.fixture.path("restored"),
        backup: None,
        snapshots: Some(url(&running.fixture.path("snapshots"))),
        snapshot: None,
        jobs: Vec::new(),
        host: "node-b".into(),
    }
}

async fn snapshot(running: &Running) {
    let objects = Objects::open(&url(&running.fixture.path("snapshots"))).expect("opens");
    let (core, journal) = (running.core.clone(), running.journal.clone());
    let mut keeper = Keeper::new(objects, Duration::from_secs(300), core, journal, running.identity.clone());
    keeper.take_if_changed().await.expect("taken");
}

async fn put_manifests(running: &Running) {
    let objects = Objects::open(&running.fixture.spec.output_url).expect("opens");
    manifest::write(&running.core, &running.job, &objects, 1, &running.identity).await.expect("written");
}

fn snapshots(running: &Running) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(running.fixture.path("snapshots")).expect("a folder");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

fn records(state: &Path) -> Records {
    LocalStore::open(state, 0).expect("opens").load().expect("loads")
}

#[tokio::test]
async fn a_state_is_as_its_last_snapshot_and_workers_go_on_with_their_leases() {
    let running = Running::new().await;
    running.capture_ranges(1).await;
    let lease = running.sync(Vec::new()).await.expect("a start").lease.expect("a lease");
    snapshot(&running).await;
    let before = running.records().await;
    let options = options(&running);
    std::fs::create_dir_all(&options.state).expect("made");
    std::fs::write(options.state.join("worker.token"), "the token of these workers").expect("written");

    let restored = restore(options.clone()).await.expect("restored");
    assert_eq!(restored.remarks, Vec::<String>::new());
    assert_eq!((restored.jobs.len(), restored.jobs[0].committed, restored.jobs[0].from_manifests), (1, 1, 0));
    let after = records(&options.state);
    assert_eq!(after.meta.epoch, before.meta.epoch + EPOCHS);
    assert_eq!(Records { meta: before.meta, ..after.clone() }, before);
    assert_ne!(restored.identity, running.identity, "no attempt may be called as one before");

    let settings = Settings::new(restored.identity.as_str(), Duration::from_secs(10));
    let (mut state, _) = State::restore(settings, after, Now::default()).expect("understood");
    let report = v1::attempt_report::State::Running(v1::Progress::default());
    let report = v1::AttemptReport { lease: Some(lease), state: Some(report) };
    let worker_id = running.worker.to_string();
    let request = v1::SyncRequest { worker_id, attempts: vec![report], ..v1::SyncRequest::default() };
    let now = Now { monotonic: Duration::from_secs(9), unix_ms: 0 };
    let answer = state.sync(&request, now, &mut Default::default()).expect("the worker is known");
    assert_eq!(answer.cancel, [], "the lease stands for its whole time");

    // The output is the new state's now, and what is left of making it is gone.
    let term: crate::term::Term =
        serde_json::from_slice(&std::fs::read(running.fixture.path("job").join(keys::term(1))).expect("a term"))
            .expect("a term");
    assert_eq!((term.identity, term.host), (restored.identity, "node-b".to_owned()));
    let names: Vec<_> =
        std::fs::read_dir(&options.state).expect("a folder").map(|e| e.expect("an entry").file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().contains(".new")), "{names:?}");
    let refused = restore(options).await.expect_err("refused").to_string();
    assert!(refused.contains("has a state"), "{refused}");
}

#[tokio::test]
async fn a_broken_snapshot_is_passed_over_and_a_newer_format_is_not() {
    let running = Running::new().await;
    snapshot(&running).await;
    running.capture_ranges(1).await;
    snapshot(&running).await;
    let newest = snapshots(&running).pop().expect("a snapshot");
    let whole = std::fs::read(&newest).expect("reads");
    std::fs::write(&newest, &whole[..whole.len() - 5]).expect("writes");
    let restored = restore(options(&running)).await.expect("restored");
    assert_eq!(restored.jobs[0].committed, 0, "from the one before");
    let name = newest.file_name().expect("a name").to_str().expect("UTF-8").to_owned();
    assert!(restored.remarks[0].contains(&name) && restored.remarks[0].contains("in the middle"), "{restored:?}");

    let elsewhere = |name: &str| Options { state: running.fixture.path(name), ..options(&running) };
    let named = restore(Options { snapshot: Some(name.clone()), ..elsewhere("named") }).await.expect_err("broken");
    assert!(named.to_string().contains(&name), "{named}");
    let mut newer = whole.clone();
    newer[b"deltaconv records\n".len()] += 1;
    std::fs::write(&newest, newer).expect("writes");
    let refused = restore(elsewhere("newer")).await.expect_err("refused").to_string();
    let (newer, oldest, ours) = (store::VERSION + 1, store::OLDEST, store::VERSION);
    let release = deltaconv_proto::protocol::RELEASE;
    assert!(refused.contains(&format!("has format {newer}, written by deltaconv {release}")), "{refused}");
    assert!(refused.contains(&format!("which reads formats {oldest} to {ours}")), "{refused}");
    assert!(!running.fixture.path("newer/IDENTITY").exists());
}

#[tokio::test]
async fn where_there_is_nothing_to_restore_from_that_is_said() {
    let running = Running::new().await;
    let options = options(&running);
    let none = restore(options.clone()).await.expect_err("refused").to_string();
    assert!(none.contains("has no snapshots") && none.contains("--job URL"), "{none}");
    snapshot(&running).await;
    let key = Some("snapshot-0.records".to_owned());
    let no_such = restore(Options { snapshot: key, ..options.clone() }).await.expect_err("refused").to_string();
    assert!(no_such.contains(r#"no snapshot "snapshot-0.records""#), "{no_such}");
    let job = running.fixture.spec.output_url.clone();
    let of_job = Options { snapshots: None, jobs: vec![job], ..options.clone() };
    let no_manifests = restore(of_job).await.expect_err("refused").to_string();
    assert!(no_manifests.contains("has no manifests of a job"), "{no_manifests}");
    let nothing = restore(Options { snapshots: None, ..options.clone() }).await.expect_err("refused").to_string();
    assert!(nothing.contains("nothing is named"), "{nothing}");
    assert!(!options.state.join("IDENTITY").exists());
}

#[tokio::test]
async fn manifests_tell_what_came_after_the_snapshot_and_are_enough_alone() {
    let running = Running::new().await;
    running.capture_ranges(1).await;
    snapshot(&running).await;
    running.capture_ranges(running.ranges() - 1).await;
    put_manifests(&running).await;
    let ranges = running.ranges() as u64;
    let before = running.records().await;
    let captured = |records: &Records| records.tasks.iter().filter(|task| task.committed).cloned().collect::<Vec<_>>();

    let both = options(&running);
    let restored = restore(both.clone()).await.expect("restored");
    assert_eq!((restored.jobs[0].committed, restored.jobs[0].from_manifests), (ranges, ranges));
    let after = records(&both.state);
    assert_eq!((captured(&after), &after.jobs), (captured(&before), &before.jobs));

    let state = running.fixture.path("alone");
    let jobs = vec![running.fixture.spec.output_url.clone()];
    let alone = Options { state: state.clone(), snapshots: None, jobs: jobs.clone(), ..both.clone() };
    let restored = restore(alone.clone()).await.expect("restored");
    assert_eq!((restored.jobs[0].committed, restored.snapshot.as_str()), (ranges, ""));
    let after = records(&state);
    assert_eq!((captured(&after), &after.jobs), (captured(&before), &before.jobs));
    assert_eq!((after.meta.jobs, after.meta.epoch), (1, before.meta.epoch + EPOCHS));
    let twice = Options { state: running.fixture.path("twice"), jobs: [&jobs[..], &jobs[..]].concat(), ..alone };
    assert!(matches!(restore(twice).await, Err(Error::Twice { .. })));
}

/// Records that don't fit together are no state, whatever their digest says.
#[tokio::test]
async fn records_that_make_no_state_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let snapshots = url(&folder.path().join("snapshots"));
    let objects = Objects::open(&snapshots).expect("opens");
    let mut writer = Writer::new(&objects, "snapshot-0000000000001-0a1b2c3d.records").await.expect("begins");
    let task = v1::TaskRecord { task_id: "a-1/r0/distill/mid".into(), ..v1::TaskRecord::default() };
    writer.write(&[Write::Task(Box::new(task))]).await.expect("written");
    writer.finish().await.expect("finished");
    let (state, host) = (folder.path().join("state"), "node".to_owned());
    let snapshots = Some(snapshots);
    let options = Options { state: state.clone(), backup: None, snapshots, snapshot: None, jobs: Vec::new(), host };
    let refused = restore(options).await.expect_err("refused").to_string();
    assert!(refused.contains("of no job") && !state.join("IDENTITY").exists(), "{refused}");
}
