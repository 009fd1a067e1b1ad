//! States as they were left in every format: each is opened as a state's folder, goes on, and is written in today's.
//!
//! Of 2, the state machine of its time made one: a job of two layers whose activations are recorded, a training that failed twice
//! and is leased again, and its worker. Of 4, a coordinator of deltaconv 0.1.0 did: a job of the shipped teacher with two
//! trainings at work, one of them by a worker that is drained. That of 3 is the same in the words of its time, where one of the
//! trainings has a second lease, another failed once, and one is in quarantine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use deltaconv_proto::code::Code;
use deltaconv_proto::ids::{AttemptId, TaskId};
use deltaconv_proto::v1::{self, attempt_report, done, task_spec};
use deltaconv_proto::{keys, protocol};
use prost::encoding::decode_varint;
use tempfile::TempDir;

use super::MAGIC;
use crate::schedule::{Command, Effects, Export, Now, Settings, State};
use crate::store::{self, LocalStore, MemoryStore, Records, Store, Write, until_open};

const FORMAT_2: &[u8] = include_bytes!("format-2.records");
const FORMAT_3: &[u8] = include_bytes!("format-3.records");
const FORMAT_4: &[u8] = include_bytes!("format-4.records");
const SAMPLES: [(u8, &[u8]); 3] = [(2, FORMAT_2), (3, FORMAT_3), (4, FORMAT_4)];
const IDENTITY: &str = "052fbd61";

/// Keys and values as they lie in the database.
fn entries(sample: &[u8]) -> Vec<(String, Vec<u8>)> {
    let (mut rest, mut entries) = (&sample[MAGIC.len() + 1..], Vec::new());
    loop {
        let length = decode_varint(&mut rest).expect("a length") as usize;
        if length == 0 {
            return entries;
        }
        let (key, after) = rest.split_at(length);
        rest = after;
        let length = decode_varint(&mut rest).expect("a length") as usize;
        let (value, after) = rest.split_at(length - 1);
        rest = after;
        entries.push((String::from_utf8(key.to_vec()).expect("text"), value.to_vec()));
    }
}

fn database(folder: &Path) -> sled::Db {
    let path = folder.join(store::DATABASE);
    until_open(|| sled::open(&path).map_err(|source| store::Error::Database { path: path.clone(), source }))
}

/// The state's folder that a coordinator of its time left: the database was sled's of today, with the same keys.
fn left(entries: &[(String, Vec<u8>)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let database = database(folder.path());
    for (key, value) in entries {
        database.insert(key, value.as_slice()).expect("inserted");
    }
    database.flush().expect("flushed");
    std::fs::write(folder.path().join(store::IDENTITY), IDENTITY).expect("written");
    folder
}

fn open(folder: &Path) -> LocalStore {
    until_open(|| LocalStore::open(folder, 0))
}

/// What a sample has, as a coordinator finds it that starts on it.
fn loaded(sample: &[u8]) -> Records {
    let folder = left(&entries(sample));
    open(folder.path()).load().expect("loads")
}

/// The format of each record in a state's folder that nobody has open.
fn formats(folder: &Path) -> BTreeMap<String, u8> {
    let entry = |entry: sled::Result<(sled::IVec, sled::IVec)>| {
        let (key, value) = entry.expect("read");
        (String::from_utf8(key.to_vec()).expect("text"), value[0])
    };
    database(folder).iter().map(entry).collect()
}

fn restored(records: Records) -> (State, Effects) {
    let settings = Settings::new(IDENTITY, Duration::from_secs(10));
    State::restore(settings, records, Now::default()).expect("understood")
}

/// All that is durable of a state, as a snapshot has it.
fn exported(state: &State) -> Vec<Write> {
    let (mut export, mut writes) = (Export::default(), Vec::new());
    while let Some(piece) = state.export(&mut export) {
        writes.extend(piece);
    }
    writes
}

fn in_memory(writes: &[Write]) -> Records {
    let mut store = MemoryStore::default();
    store.apply(writes).expect("memory takes everything");
    store.load().expect("loads")
}

/// Who holds what.
fn leases(records: &Records) -> Vec<(String, v1::Lease)> {
    let of_task = |task: &v1::TaskRecord| {
        let first = task.lease.clone().map(|lease| (task.worker_id.clone(), lease));
        let spare = task.spare.clone().map(|lease| (task.spare_worker_id.clone(), lease));
        first.into_iter().chain(spare)
    };
    records.tasks.iter().flat_map(of_task).collect()
}

/// What a worker is answered that says this of its lease, or that it has none.
fn told(
    state: &mut State,
    effects: &mut Effects,
    worker: &str,
    report: Option<(&v1::Lease, attempt_report::State)>,
) -> v1::SyncResponse {
    let report = report.map(|(lease, state)| v1::AttemptReport { lease: Some(lease.clone()), state: Some(state) });
    let attempts = report.into_iter().collect();
    let request = v1::SyncRequest { worker_id: worker.into(), attempts, ..v1::SyncRequest::default() };
    state.sync(&request, Now::default(), effects).expect("the worker is known")
}

/// The layer that a training is of.
fn layer(task: &str) -> &str {
    task.split_once("/r0/distill/").expect("a training").1
}

/// What a training reports that is done.
fn trained(lease: &v1::Lease) -> v1::Done {
    let attempt = AttemptId::new(lease.attempt_id.clone()).expect("an id");
    let key = keys::block(0, layer(&lease.task_id), &attempt);
    let block = Some(v1::ObjectRef { key, size: 9, digest: "0".repeat(64) });
    let output = v1::DistillOutput { block, relative_error: 0.1, ..v1::DistillOutput::default() };
    v1::Done { output: Some(done::Output::Distill(output)), ..v1::Done::default() }
}

fn committed(records: &Records) -> usize {
    records.tasks.iter().filter(|task| task.committed).count()
}

#[test]
fn there_is_a_sample_of_every_format_that_is_read() {
    let formats: Vec<u8> = SAMPLES.iter().map(|(format, _)| *format).collect();
    assert_eq!(formats, (store::OLDEST..=store::VERSION).collect::<Vec<_>>(), "a new format needs a sample");
    for (format, sample) in SAMPLES {
        assert_eq!(sample[MAGIC.len()], format);
        assert!(entries(sample).iter().all(|(_, value)| value[0] == format));
    }
}

#[test]
fn a_state_of_every_format_goes_on_where_it_stood_and_is_written_in_todays() {
    for (format, sample) in SAMPLES {
        let folder = left(&entries(sample));
        let mut store = open(folder.path());
        assert_eq!(store.identity(), IDENTITY);
        let records = store.load().expect("loads");
        assert_eq!(
            records.clone().into_writes().count(),
            entries(sample).len(),
            "no record of format {format} is lost"
        );
        let (mut state, mut effects) = restored(records.clone());

        // Who held a lease goes on with it.
        let leases = leases(&records);
        for (worker, lease) in &leases {
            let running = attempt_report::State::Running(v1::Progress::default());
            let answer = told(&mut state, &mut effects, worker, Some((lease, running)));
            assert_eq!((answer.cancel, answer.start), (vec![], vec![]), "format {format}");
        }
        // One is done, and accepted.
        let (worker, lease) = &leases[0];
        let done = trained(lease);
        told(&mut state, &mut effects, worker, Some((lease, attempt_report::State::Done(done.clone()))));
        let task = TaskId::new(lease.task_id.clone()).expect("an id");
        let is_checked = |command: &Command| matches!(command, Command::Verify { task: of, .. } if *of == task);
        assert!(effects.commands.iter().any(is_checked), "format {format}");
        state.verified(&task, lease, done, Ok(()), Now::default(), &mut effects);
        store.apply(&effects.writes).expect("applied");
        let after = store.load().expect("loads");
        assert_eq!(committed(&after), committed(&records) + 1, "format {format}");
        store.close().expect("closes");
        // What changed is of today's format, and the folder says so; the rest is as it was.
        let found = formats(folder.path());
        let untouched = records.tasks.iter().find(|task| task.committed).expect("a recorded range");
        assert_eq!(found[&format!("task/{task}")], store::VERSION);
        assert_eq!(found[&format!("task/{}", untouched.task_id)], format);
        let said = std::fs::read_to_string(folder.path().join(store::format::FILE)).expect("written");
        assert_eq!(said, format!("{} {}\n", store::VERSION, protocol::RELEASE));

        // A snapshot or a backup has all of it in today's, and what is made of that is the same.
        let (all, anew) = (exported(&state), tempfile::tempdir().expect("a folder"));
        let mut store = open(anew.path());
        store.apply(&all).expect("applied");
        store.close().expect("closes");
        assert!(formats(anew.path()).values().all(|format| *format == store::VERSION));
        let (again, _) = restored(open(anew.path()).load().expect("loads"));
        assert_eq!(in_memory(&exported(&again)), in_memory(&all), "format {format}");
    }
}

#[test]
fn a_task_that_failed_in_format_2_has_failed_so_often_today() {
    let (mut state, mut effects) = restored(loaded(FORMAT_2));
    // Its worker is known and goes on with its lease; when that fails, too, the task has failed three times.
    let lease = v1::Lease { task_id: "tiny-1/r0/distill/down".into(), attempt_id: "a3-6-test".into(), epoch: 6 };
    let failure = v1::Failure { message: "no memory".into(), ..v1::Failure::default() };
    told(&mut state, &mut effects, "w1-test", Some((&lease, attempt_report::State::Failed(failure))));
    let records = in_memory(&exported(&state));
    let failed = records.tasks.iter().find(|task| task.task_id == lease.task_id).expect("the task");
    assert_eq!((failed.failures, failed.failed.len(), failed.attempts), (0, 3, 3));
    assert!(failed.failed.iter().all(|failed| failed.message == "no memory"), "{failed:?}");
    assert_eq!(committed(&records), 3, "what was accepted stays so");
}

#[test]
fn what_format_3_had_of_failures_machines_and_operators_stands() {
    let records = loaded(FORMAT_3);
    let (mut state, mut effects) = restored(records.clone());
    let quarantined = "tiny-1/r0/distill/up_blocks.2.attentions.1.transformer_blocks.0";
    assert_eq!(state.explain(quarantined, Now::default()).expect("known").state, "quarantined");
    let workers = state.worker_statuses(Now::default());
    let states: Vec<&str> = workers.iter().map(|worker| worker.state.as_str()).collect();
    assert_eq!(states, ["busy", "draining", "busy"]);
    let today = in_memory(&exported(&state));
    assert_eq!((&today.nodes, today.nodes.len()), (&records.nodes, 1));
    let failures = |records: &Records| records.tasks.iter().map(|task| task.failed.clone()).collect::<Vec<_>>();
    assert_eq!(failures(&today), failures(&records));
    // What an operator asked for is not done again.
    let request = records.requests[0].request_id.clone();
    let again = state.once(&request, &mut effects, |_, _| panic!("it was made"));
    again.expect("made before");
}

/// Format 3 had the keys of shards, and later ones what they follow from.
#[test]
fn shards_have_the_keys_that_they_were_written_under() {
    let recorded = loaded(FORMAT_3);
    for sample in [FORMAT_3, FORMAT_4] {
        let (mut state, mut effects) = restored(loaded(sample));
        let worker = state.join(v1::JoinRequest::default(), Now::default(), &mut effects).expect("joins");
        let start = told(&mut state, &mut effects, worker.as_str(), None).start.remove(0);
        let task = start.lease.expect("a lease").task_id;
        let Some(task_spec::Kind::Distill(training)) = start.task.expect("a task").kind else { panic!("no training") };
        let given: Vec<v1::ObjectRef> = training.shards.into_iter().filter_map(|shard| shard.object).collect();
        let shards = recorded.tasks.iter().flat_map(|task| &task.shards).filter(|shard| shard.layer == layer(&task));
        assert_eq!(given, shards.filter_map(|shard| shard.object.clone()).collect::<Vec<_>>());
        assert_eq!(given.len(), 3);
    }
}

/// Every file below a folder, with its bytes.
fn files(folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files(&path, found),
            false => _ = found.insert(path.clone(), std::fs::read(&path).expect("read")),
        }
    }
}

#[test]
fn a_state_of_a_later_format_is_refused_with_what_to_install_and_not_touched() {
    let later = store::VERSION + 1;
    let folder = tempfile::tempdir().expect("a folder");
    // Nobody has these open: sled would be found busy before anything else.
    let left_there: [(&str, &[u8]); 3] =
        [("sled/db", b"as a later sled has it"), ("sled/conf", b"x"), (store::RUNNING, b"052fbd61")];
    std::fs::create_dir(folder.path().join("sled")).expect("made");
    for (name, bytes) in left_there {
        std::fs::write(folder.path().join(name), bytes).expect("written");
    }
    std::fs::write(folder.path().join(store::IDENTITY), IDENTITY).expect("written");
    std::fs::write(folder.path().join(store::format::FILE), format!("{later} 9.8.7\n")).expect("written");
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    files(folder.path(), &mut before);
    let refused = LocalStore::open(folder.path(), 0).err().expect("refused");
    files(folder.path(), &mut after);
    assert!(before == after && before.len() == 5, "{:?} became {:?}", before.keys(), after.keys());
    assert!(refused.to_string().contains("install deltaconv 9.8.7 or a later one"), "{refused}");
    assert_eq!(refused.code(), Code::LaterVersion);

    // And where only a record tells.
    let mut entries = entries(FORMAT_4);
    entries.last_mut().expect("a record").1[0] = later;
    let folder = left(&entries);
    let refused = open(folder.path()).load().expect_err("refused");
    assert!(refused.to_string().contains(&format!("the state has format {later}")), "{refused}");
    assert_eq!(refused.code(), Code::LaterVersion);
}
