//! What is written is read back, and nothing else is.

use deltaconv_proto::ids::WorkerId;
use deltaconv_proto::v1;

use super::*;
use crate::store::{Entry, Write};

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
        Write::Worker(v1::WorkerRecord { worker_id: "w1-x".into(), ..v1::WorkerRecord::default() }.into()),
        Write::Node(Box::new(v1::NodeRecord { node: "n".into(), faulty: "hot".into(), ..v1::NodeRecord::default() })),
        Write::Request(v1::RequestRecord { request_id: "q".into(), sequence: 4 }),
        Write::Invitation(v1::InvitationRecord { id: "inv1-x".into(), ..v1::InvitationRecord::default() }.into()),
        Write::Identity(v1::IdentityRecord { identity: "worker:1-x".into(), ..v1::IdentityRecord::default() }.into()),
        Write::ForgetInvitation("inv1-x".into()),
        Write::ForgetIdentity("worker:1-x".into()),
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
    let newer = store::VERSION + 1;
    let known = format!("reads formats {} to {}", store::OLDEST, store::VERSION);
    // However it is cut: the release that wrote it is what comes first.
    let release = Entry { key: store::format::RELEASE.into(), value: Some([&[newer][..], b"9.8.7"].concat()) };
    for piece in [1, 3, 64] {
        let refused = decode(&bytes(newer, std::slice::from_ref(&release)), piece).expect_err("refused").to_string();
        assert!(refused.contains(&format!("format {newer}, written by deltaconv 9.8.7")), "{refused}");
        assert!(refused.contains(&known), "{refused}");
    }
    for unsaid in [bytes(newer, &[]), bytes(newer, &[Entry::of(&writes()[0])])] {
        let refused = decode(&unsaid, 64).expect_err("refused").to_string();
        assert!(refused.contains("install the release that wrote it") && refused.contains(&known), "{refused}");
    }
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
