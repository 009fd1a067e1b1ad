//! What is written is read back, and nothing else is.

use std::time::Duration;

use deltaconv_proto::ids::WorkerId;
use deltaconv_proto::v1::{self, attempt_report};

use super::*;
use crate::schedule::{Now, Settings, State};
use crate::store::{Entry, LocalStore, Store, Write};

fn writes() -> Vec<Write> {
    let task =
        |step| v1::TaskRecord { task_id: "a-1/r0/distill/mid".into(), samples: step, ..v1::TaskRecord::default() };
    vec![
        Write::Meta(v1::MetaRecord { epoch: 7, jobs: 1, workers: 2, ..v1::MetaRecord::default() }),
        Write::Job(Box::new(v1::JobRecord {
            job_id: "a-1".into(),
            state: "running".into(),
            ..v1::JobRecord::default()
        })),
        Write::Task(Box::new(task(300))),
        Write::Worker(v1::WorkerRecord { worker_id: "w1-x".into(), ..v1::WorkerRecord::default() }),
        Write::Node(Box::new(v1::NodeRecord { node: "n".into(), faulty: "hot".into(), ..v1::NodeRecord::default() })),
        Write::Request(v1::RequestRecord { request_id: "q".into(), sequence: 4 }),
        Write::ForgetWorker(WorkerId::new("w1-x").expect("an id")),
        Write::ForgetNode("n".into()),
        Write::ForgetRequest("q".into()),
        Write::Task(Box::new(task(600))),
    ]
}

fn bytes(version: u8, entries: &[Entry]) -> Vec<u8> {
    let mut bytes = [MAGIC, &[version]].concat();
    entries.iter().for_each(|entry| encode(entry, &mut bytes));
    bytes.push(0);
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    bytes
}

fn whole() -> Vec<u8> {
    bytes(store::VERSION, &writes().iter().map(Entry::of).collect::<Vec<_>>())
}

fn decode(bytes: &[u8], piece: usize) -> Result<Vec<Write>, Error> {
    let mut decoder = Decoder::default();
    let mut writes = Vec::new();
    for piece in bytes.chunks(piece) {
        writes.extend(decoder.push(piece)?);
    }
    decoder.finish().map(|()| writes)
}

#[test]
fn records_are_read_back_in_pieces_of_any_size() {
    let bytes = whole();
    for piece in [1, 2, 7, bytes.len()] {
        assert_eq!(decode(&bytes, piece).expect("whole"), writes());
    }
}

#[test]
fn what_is_cut_short_or_goes_on_is_refused() {
    let bytes = whole();
    for length in 0..bytes.len() {
        assert!(decode(&bytes[..length], 16).is_err(), "{length} of {} bytes were taken", bytes.len());
    }
    assert!(matches!(decode(&[&bytes[..], b"x"].concat(), 64), Err(Error::Broken { .. })));
    assert!(matches!(decode(b"PK\x03\x04", 64), Err(Error::Foreign(_))));
    // A length in more bytes than it takes.
    assert!(matches!(decode(&[MAGIC, &[store::VERSION, 0x81, 0]].concat(), 64), Err(Error::Broken { .. })));
}

#[test]
fn whichever_bit_flips_it_is_refused() {
    let bytes = whole();
    for bit in 0..8 * bytes.len() {
        let mut altered = bytes.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&altered, 64).is_err(), "bit {bit} made no difference");
    }
}

#[test]
fn a_later_format_is_refused_by_name_and_an_older_one_is_read() {
    let newer = decode(&bytes(store::VERSION + 1, &[]), 64).expect_err("refused").to_string();
    let known =
        format!("format {}, and this version reads {} to {}", store::VERSION + 1, store::OLDEST, store::VERSION);
    assert!(newer.contains(&known), "{newer}");
    // Also where only a record is newer than what it lies in.
    let mut entry = Entry::of(&writes()[0]);
    entry.value.as_mut().expect("a value")[0] = store::VERSION + 1;
    assert!(matches!(
        decode(&bytes(store::VERSION, &[entry.clone()]), 64),
        Err(Error::Record(store::Error::Version { .. }))
    ));
    entry.value.as_mut().expect("a value")[0] = store::OLDEST;
    assert_eq!(decode(&bytes(store::OLDEST, &[entry]), 64).expect("read"), writes()[..1]);
}

/// A state that a coordinator of format 2 left: a job of two layers whose activations are recorded, a training that failed twice
/// and is leased again, and its worker.
const FORMAT_2: &[u8] = include_bytes!("format-2.records");

#[test]
fn a_state_of_format_2_becomes_one_of_today() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut store = LocalStore::open(folder.path(), 0).expect("opens");
    store.apply(&decode(FORMAT_2, 100).expect("read")).expect("applied");
    let settings = Settings::new("test", Duration::from_secs(10));
    let records = store.load().expect("loads");
    let (mut state, mut effects) = State::restore(settings, records, Now::default()).expect("understood");

    // Its worker is known and goes on with its lease; when that fails, too, the task has failed three times.
    let lease = v1::Lease { task_id: "tiny-1/r0/distill/down".into(), attempt_id: "a3-6-test".into(), epoch: 6 };
    let mut told = |report| {
        let report = v1::AttemptReport { lease: Some(lease.clone()), state: Some(report) };
        let request =
            v1::SyncRequest { worker_id: "w1-test".into(), attempts: vec![report], ..v1::SyncRequest::default() };
        state.sync(&request, Now::default(), &mut effects).expect("the worker is known")
    };
    assert_eq!(told(attempt_report::State::Running(v1::Progress::default())).cancel, []);
    told(attempt_report::State::Failed(v1::Failure { message: "no memory".into(), ..v1::Failure::default() }));
    store.apply(&effects.writes).expect("applied");
    let records = store.load().expect("loads");
    let failed = records.tasks.iter().find(|task| task.task_id == lease.task_id).expect("the task");
    assert_eq!((failed.failures, failed.failed.len(), failed.attempts), (0, 3, 3));
    assert!(failed.failed.iter().all(|failed| failed.message == "no memory"), "{failed:?}");
    assert_eq!(records.tasks.iter().filter(|task| task.committed).count(), 3, "what was accepted stays so");
}
