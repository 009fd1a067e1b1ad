//! Backups of real states, and what is made of them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use object_store::memory::InMemory;
use serde_json::{Value, json};
use url::Url;

use super::*;
use crate::restore::{self, Restored, restore};
use crate::running::Running;
use crate::store::Records;

const TOKEN: &str = "the token of these workers";

fn url(path: &Path) -> String {
    Url::from_file_path(path).expect("absolute").to_string()
}

fn path(url: &str) -> PathBuf {
    Url::parse(url).expect("a URL").to_file_path().expect("a path")
}

async fn taken(running: &Running) -> v1::BackupResponse {
    let url = url(&running.fixture.path("backups"));
    running.backups().take(v1::BackupRequest { url, with_secrets: false }).await.expect("written")
}

/// Restores what lies at a URL to a folder of this name.
async fn restored(running: &Running, url: &str, name: &str) -> Result<Restored, restore::Error> {
    let (state, backup) = (running.fixture.path(name), Some(url.to_owned()));
    let options =
        restore::Options { state, backup, snapshots: None, snapshot: None, jobs: Vec::new(), host: "node-b".into() };
    restore(options).await
}

fn records(state: &Path) -> Records {
    store::until_open(|| LocalStore::open(state, 0)).load().expect("loads")
}

/// Who may do what with it.
#[cfg(unix)]
fn mode(path: &Path) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).expect("there").permissions()) & 0o777
}

#[tokio::test]
async fn a_backup_of_a_coordinator_that_runs_is_restored_with_all_that_lay_beside_its_records() {
    let running = Running::new().await;
    running.capture_ranges(1).await;
    let state = running.fixture.path("state");
    fs::write(state.join("worker.token"), TOKEN).expect("written");
    fs::write(state.join("webhook.sequence"), "7").expect("written");
    fs::write(state.join("audit.log"), vec![b'x'; 3 << 20]).expect("written");
    fs::write(state.join("probe.new"), "not whole").expect("written");
    let before = running.records().await;
    let written = taken(&running).await;
    let files = ["audit.log", "webhook.sequence", "worker.token"];
    assert_eq!((&written.files[..], &written.left_out[..]), (&files.map(str::to_owned)[..], &[][..]));
    assert!(written.bytes > 3 << 20 && written.records > 3, "{written:?}");
    #[cfg(unix)]
    {
        let folder = path(&written.url);
        assert_eq!(mode(&folder), 0o700);
        for file in ["state.records", "backup.json", "files/worker.token", "files/audit.log"] {
            assert_eq!(mode(&folder.join(file)), 0o600, "{file}");
        }
    }
    // What comes later is in the next one alone.
    running.capture_ranges(1).await;
    let restored = restored(&running, &written.url, "restored").await.expect("restored");
    assert_eq!((&restored.backup, &restored.files[..]), (&written.url, &files.map(str::to_owned)[..]));
    assert_eq!((restored.remarks.len(), restored.jobs[0].committed), (0, 1), "{restored:?}");
    assert_ne!(restored.identity, running.identity, "no attempt may be called as one before");
    let made = running.fixture.path("restored");
    assert_eq!(fs::read_to_string(made.join("worker.token")).expect("there"), TOKEN);
    assert_eq!(fs::metadata(made.join("audit.log")).expect("there").len(), 3 << 20);
    #[cfg(unix)]
    assert_eq!(mode(&made.join("worker.token")), 0o600);
    let after = records(&made);
    assert_eq!(Records { meta: before.meta, ..after }, before);

    // The newest counts, and what lies in the new folder already stays.
    taken(&running).await;
    let state = running.fixture.path("again");
    fs::create_dir(&state).expect("made");
    fs::write(state.join("worker.token"), "another one").expect("written");
    let again = self::restored(&running, &url(&running.fixture.path("backups")), "again").await.expect("restored");
    assert_eq!((again.jobs[0].committed, again.files.len()), (2, 2), "{again:?}");
    assert!(again.remarks[0].starts_with("worker.token lies in the folder already"), "{again:?}");
    assert_eq!(fs::read_to_string(state.join("worker.token")).expect("there"), "another one");
}

#[tokio::test]
async fn who_may_read_a_bucket_is_not_known_so_that_it_gets_secrets_only_where_that_is_meant() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["worker.token", "workers-authority.key", "webhook.sequence"] {
        fs::write(folder.path().join(name), "x").expect("written");
    }
    let bucket = Objects::new("memory:", Arc::new(InMemory::new()));
    let mut taken = Vec::new();
    for with_secrets in [false, true] {
        let place = Place::beside(&bucket, "0a1b2c3d", folder.path(), with_secrets).await.expect("begins");
        let written = place.finish(0, 0).await.expect("written");
        taken.push((written.files, written.left_out));
    }
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let secrets = names(&["worker.token", "workers-authority.key"]);
    assert_eq!(taken[0], (names(&["webhook.sequence"]), secrets));
    assert_eq!(taken[1], (names(&["webhook.sequence", "worker.token", "workers-authority.key"]), Vec::new()));
    let written = Name::list(&bucket).await.expect("lists");
    assert!(written.len() == 2 && written[0] < written[1], "{written:?}");
}

#[tokio::test]
async fn backups_that_are_broken_or_not_finished_are_passed_over_and_later_ones_are_not() {
    let running = Running::new().await;
    fs::write(running.fixture.path("state").join("worker.token"), TOKEN).expect("written");
    let all = url(&running.fixture.path("backups"));
    let none = restored(&running, &all, "none").await.expect_err("refused");
    assert!(none.to_string().contains("has no backups") && none.code() == Code::NothingToRestore, "{none}");
    let first = taken(&running).await;
    running.capture_ranges(1).await;
    let last = path(&taken(&running).await.url);

    let whole = |name: &str| fs::read(last.join(name)).expect("there");
    let (records, token, json) = (whole("state.records"), whole("files/worker.token"), whole("backup.json"));
    let (cut, altered) = (&records[..records.len() - 5], TOKEN.to_uppercase().into_bytes());
    let breaks: [(&str, Option<&[u8]>, &str); 6] = [
        ("state.records", Some(cut), "in the middle"),
        ("state.records", None, "does not exist"),
        ("files/worker.token", Some(&altered), "was altered"),
        ("files/worker.token", Some(b"shorter"), "has another size"),
        ("backup.json", Some(&json[..json.len() / 2]), "backup.json"),
        ("backup.json", None, "was not finished"),
    ];
    for (number, (name, bytes, says)) in breaks.into_iter().enumerate() {
        let file = last.join(name);
        match bytes {
            Some(bytes) => fs::write(&file, bytes).expect("written"),
            None => fs::remove_file(&file).expect("removed"),
        }
        let restored = restored(&running, &all, &format!("broken-{number}")).await.expect("restored");
        assert_eq!((&restored.backup, restored.jobs[0].committed), (&first.url, 0), "{says}: {restored:?}");
        assert!(restored.remarks[0].contains(says), "{says}: {restored:?}");
        if name != "backup.json" {
            // Named itself, there is no other; and without a description it is none that could be named.
            let alone = self::restored(&running, &url(&last), &format!("alone-{number}")).await;
            assert!(alone.expect_err("refused").to_string().contains(says), "{says}");
        }
        for (name, bytes) in [("state.records", &records), ("files/worker.token", &token), ("backup.json", &json)] {
            fs::write(last.join(name), bytes).expect("written");
        }
    }

    let with = |change: &dyn Fn(&mut Value)| {
        let mut description: Value = serde_json::from_slice(&json).expect("JSON");
        change(&mut description);
        fs::write(last.join("backup.json"), description.to_string()).expect("written");
    };
    for (field, value) in [("format", json!(store::VERSION + 1)), ("version", json!(99))] {
        with(&|description| {
            description["release"] = json!("9.8.7");
            description[field] = value.clone();
            description["files"] = json!("written in another way");
        });
        let refused = restored(&running, &all, "later").await.expect_err("refused");
        assert!(refused.to_string().contains("install deltaconv 9.8.7 or a later one"), "{refused}");
        assert_eq!(refused.code(), Code::LaterVersion);
        assert!(!running.fixture.path("later").exists(), "nothing was changed");
    }
    // A name leads nowhere else.
    with(&|description| description["files"][0]["name"] = json!("../worker.token"));
    let refused = restored(&running, &url(&last), "outside").await.expect_err("refused").to_string();
    assert!(refused.contains("a file of the name") && !running.fixture.path("worker.token").exists(), "{refused}");
}

#[tokio::test]
async fn a_state_on_which_nobody_runs_is_backed_up_and_one_that_is_in_use_by_who_has_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (state, to) = (folder.path().join("state"), url(&folder.path().join("backups")));
    let options = Options { state: state.clone(), to: to.clone(), with_secrets: false };
    let refused = backup(options.clone()).await.expect_err("refused");
    assert!(matches!(refused, Error::NoState(_)) && !state.exists(), "{refused}");

    let mut store = LocalStore::open(&state, 0).expect("opens");
    let request = |sequence| Write::Request(v1::RequestRecord { request_id: format!("q{sequence}"), sequence });
    let requests = 2 * PIECE as u64 + 100;
    let mut writes: Vec<Write> = (0..requests).map(request).collect();
    writes.push(Write::Meta(v1::MetaRecord { epoch: 7, requests, ..v1::MetaRecord::default() }));
    store.apply(&writes).expect("applied");
    let in_use = backup(options.clone()).await.expect_err("refused");
    assert!(in_use.to_string().contains("coordinator backup --to URL` without --state"), "{in_use}");
    let before = store.load().expect("loads");
    store.close().expect("closes");
    let written = loop {
        match backup(options.clone()).await {
            // sled's threads let go of its file a moment after it was closed.
            Err(Error::Store(store::Error::Database { source: sled::Error::Io(_), .. })) => {
                tokio::task::yield_now().await
            }
            written => break written.expect("written"),
        }
    };
    assert_eq!(written.records, requests + 1);
    assert!(!state.join(store::RUNNING).exists(), "it was closed in order");

    let state = folder.path().join("restored");
    let (backup, host) = (Some(to), "node-b".to_owned());
    let options = restore::Options { state, backup, snapshots: None, snapshot: None, jobs: Vec::new(), host };
    restore(options.clone()).await.expect("restored");
    let after = records(&options.state);
    assert_eq!(Records { meta: before.meta, ..after }, before);
}

#[tokio::test]
async fn where_nothing_says_where_it_goes_that_is_said() {
    let running = Running::new().await;
    let take = |url: &str| {
        let (backups, url) = (running.backups(), url.to_owned());
        async move { backups.take(v1::BackupRequest { url, with_secrets: false }).await }
    };
    assert!(matches!(take("").await, Err(Error::NoPlace)));
    let refused = take("s3://key:secret@bucket/backups").await.expect_err("refused").to_string();
    assert!(refused.contains("credentials") && !refused.contains("secret"), "{refused}");
}
