//! Records of a state, from its folder, a snapshot or a manifest.

use std::time::Duration;

use deltaconv_proto::fuzzing::{Input, check_error};
use deltaconv_proto::ids::JobId;
use deltaconv_proto::v1;

use super::messages;
use crate::archive::{self, Decoder, MAGIC, encode};
use crate::schedule::{Effects, Export, Now, Settings, State, counts_almost_too_far};
use crate::store::{Entry, MemoryStore, Store, VERSION, Write};

/// An object of records: as it is, in pieces of any size; and with the digest that belongs to it, which no mutation gets past.
pub(super) fn of_manifest(bytes: &[u8]) {
    let piece = 1 + bytes.len() % 61;
    match (decode(bytes, bytes.len().max(1)), decode(bytes, piece)) {
        (Ok(whole), Ok(pieces)) => assert_eq!(entries(&whole), entries(&pieces)),
        (Err(whole), Err(pieces)) => {
            check_error(&whole);
            check_error(&pieces);
        }
        (whole, pieces) => panic!("{} in one piece, {} in several", whole.is_ok(), pieces.is_ok()),
    }
    let mut sealed = [MAGIC, &[VERSION], bytes].concat();
    let digest = blake3::hash(&sealed);
    sealed.extend_from_slice(digest.as_bytes());
    let Ok(writes) = decode(&sealed, piece) else { return };
    // What is written of them is read as the same.
    let entries = entries(&writes);
    let mut again = [MAGIC, &[VERSION]].concat();
    entries.iter().for_each(|entry| encode(entry, &mut again));
    again.push(0);
    let digest = blake3::hash(&again);
    again.extend_from_slice(digest.as_bytes());
    assert_eq!(self::entries(&decode(&again, piece).expect("what is written is read")), entries);
    restore(&writes);
}

/// One record of the table that the first byte names, in a state with a job.
pub(super) fn of_record(bytes: &[u8]) {
    const TABLES: [&str; 10] =
        ["meta", "job", "task", "worker", "node", "request", "event", "other", "invitation", "identity"];
    let mut input = Input(bytes);
    let table = TABLES[usize::from(input.byte()) % TABLES.len()];
    let name = input.byte().into();
    let key = format!("{table}/{}", String::from_utf8_lossy(input.piece(name)));
    let value = if input.byte() == 0 { None } else { Some([&[VERSION], input.0].concat()) };
    let mut entry = Entry { key, value };
    // Once more under the key that belongs to it.
    for _ in 0..2 {
        match entry.write() {
            Ok(Some(write)) => {
                assert_eq!(Entry::of(&write).key, entry.key);
                restore(&[messages::records(), vec![write]].concat());
            }
            Ok(None) => {}
            Err(error) => check_error(&error),
        }
        let Some(own) = own_key(table, &entry) else { return };
        entry.key = own;
    }
}

fn own_key(table: &str, entry: &Entry) -> Option<String> {
    use prost::Message;
    let bytes = entry.value.as_ref()?.get(1..)?;
    let write = match table {
        "meta" => Write::Meta(v1::MetaRecord::decode(bytes).ok()?),
        "job" => Write::Job(Box::new(v1::JobRecord::decode(bytes).ok()?)),
        "task" => Write::Task(Box::new(v1::TaskRecord::decode(bytes).ok()?)),
        "worker" => Write::Worker(Box::new(v1::WorkerRecord::decode(bytes).ok()?)),
        "node" => Write::Node(Box::new(v1::NodeRecord::decode(bytes).ok()?)),
        "request" => Write::Request(v1::RequestRecord::decode(bytes).ok()?),
        "event" => Write::Event(Box::new(v1::Event::decode(bytes).ok()?)),
        "invitation" => Write::Invitation(Box::new(v1::InvitationRecord::decode(bytes).ok()?)),
        "identity" => Write::Identity(Box::new(v1::IdentityRecord::decode(bytes).ok()?)),
        _ => return None,
    };
    Some(Entry::of(&write).key)
}

fn decode(bytes: &[u8], piece: usize) -> Result<Vec<Write>, archive::Error> {
    let mut decoder = Decoder::default();
    let mut writes = Vec::new();
    for piece in bytes.chunks(piece) {
        writes.extend(decoder.push(piece)?);
    }
    decoder.finish().map(|()| writes)
}

/// As they are stored: numbers that are none differ from themselves.
fn entries(writes: &[Write]) -> Vec<Entry> {
    writes.iter().map(Entry::of).collect()
}

/// Begins on the records, if they make a state, and has it do all that it does by itself and for who looks.
fn restore(writes: &[Write]) {
    if writes.iter().any(|write| matches!(write, Write::Meta(meta) if counts_almost_too_far(meta))) {
        return;
    }
    let mut store = MemoryStore::default();
    store.apply(writes).expect("memory takes everything");
    let settings = || Settings::new("test", Duration::from_secs(10));
    let now = Now { monotonic: Duration::from_secs(100), unix_ms: 1 << 40 };
    let restored = |store: &mut MemoryStore| State::restore(settings(), store.load().expect("memory"), now);
    let (mut state, first) = match restored(&mut store) {
        Ok(restored) => restored,
        Err(error) => return check_error(&error),
    };
    store.apply(&first.writes).expect("memory");
    // What is exported makes the same state.
    let exported = export(&state);
    let mut copy = MemoryStore::default();
    copy.apply(&exported).expect("memory");
    let (again, _) = restored(&mut copy).expect("what is exported is understood");
    assert_eq!(entries(&export(&again)), entries(&exported));

    messages::look(&state, now);
    let mut effects = Effects::default();
    let worker = state.join(v1::JoinRequest::default(), now, &mut effects).expect("joins");
    let request = v1::SyncRequest { worker_id: worker.to_string(), ..v1::SyncRequest::default() };
    state.sync(&request, now, &mut effects);
    let later = Now { monotonic: now.monotonic + Duration::from_secs(11), ..now };
    state.tick(later, &mut effects);
    for job in state.summaries() {
        if let Ok(id) = JobId::new(job.job_id) {
            let _ = state.retry(id.as_str(), later, &mut effects);
            let _ = state.cancel(&id, later, &mut effects);
        }
    }
    messages::look(&state, later);
    store.apply(&effects.writes).expect("memory");
    restored(&mut store).expect("what it wrote is understood");
}

fn export(state: &State) -> Vec<Write> {
    let (mut export, mut writes) = (Export::default(), Vec::new());
    while let Some(piece) = state.export(&mut export) {
        writes.extend(piece);
    }
    writes
}
