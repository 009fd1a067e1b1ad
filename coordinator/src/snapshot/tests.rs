//! Snapshots of a real core, in a folder.

use std::time::Duration;

use deltaconv_proto::v1;
use url::Url;

use super::*;
use crate::archive;
use crate::running::Running;
use crate::store::{self, MemoryStore, Records, Store};

fn keeper(running: &Running) -> Keeper {
    let url = Url::from_file_path(running.fixture.path("snapshots")).expect("absolute");
    let objects = Objects::open(url.as_str()).expect("opens");
    let (core, journal) = (running.core.clone(), running.journal.clone());
    Keeper::new(objects, Duration::from_secs(300), core, journal, running.identity.clone())
}

async fn keys(running: &Running) -> Vec<String> {
    let url = Url::from_file_path(running.fixture.path("snapshots")).expect("absolute");
    let snapshots = Snapshot::list(&Objects::open(url.as_str()).expect("opens")).await.expect("lists");
    snapshots.iter().map(Snapshot::key).collect()
}

async fn newest(running: &Running) -> Records {
    let url = Url::from_file_path(running.fixture.path("snapshots")).expect("absolute");
    let objects = Objects::open(url.as_str()).expect("opens");
    let key = keys(running).await.pop().expect("a snapshot");
    let mut store = MemoryStore::default();
    archive::read(&objects, &key, |writes| store.apply(&writes)).await.map_err(drop).expect("whole");
    let loaded: Result<Records, store::Error> = store.load();
    loaded.expect("loads")
}

#[tokio::test]
async fn a_snapshot_has_everything_and_there_is_one_where_something_changed() {
    let running = Running::new().await;
    let mut keeper = keeper(&running);
    running.capture_ranges(1).await;
    running.sync(Vec::new()).await.expect("a second one is leased");
    keeper.take_if_changed().await.expect("taken");
    let records = newest(&running).await;
    assert_eq!(records, running.records().await);
    assert!(records.tasks.iter().any(|task| task.committed) && records.tasks.iter().any(|task| task.lease.is_some()));

    keeper.take_if_changed().await.expect("nothing to do");
    assert_eq!(keys(&running).await.len(), 1, "nothing changed");
    let mut before = keys(&running).await;
    for _ in 0..4 {
        let joined = running.core.call(|state, now, effects| state.join(v1::JoinRequest::default(), now, effects));
        joined.await.expect("runs").expect("joins");
        keeper.take_if_changed().await.expect("taken");
        let now = keys(&running).await;
        assert!(now.last() > before.last(), "{now:?} after {before:?}");
        before = now;
    }
    assert_eq!((before.len(), newest(&running).await), (3, running.records().await));
}

#[tokio::test]
async fn what_changes_while_a_snapshot_is_taken_is_in_it() {
    let running = Running::new().await;
    let url = Url::from_file_path(running.fixture.path("snapshots")).expect("absolute");
    let objects = Objects::open(url.as_str()).expect("opens");
    let key = Snapshot { unix_ms: 1, identity: running.identity.clone() }.key();
    let mut store = MemoryStore::default();
    // Workers that come while the first piece, which has the workers, is out already.
    let joining = async {
        for _ in 0..50 {
            let joined = running.core.call(|state, now, effects| state.join(v1::JoinRequest::default(), now, effects));
            joined.await.expect("runs").expect("joins");
        }
    };
    let (taken, ()) = tokio::join!(take(&running.core, &running.journal, &objects, &key), joining);
    taken.expect("taken");
    archive::read(&objects, &key, |writes| store.apply(&writes)).await.map_err(drop).expect("whole");
    let found = store.load().expect("loads");
    // It is the state of one moment: the counter and the workers that it counts.
    assert_eq!(found.workers.len() as u64, found.meta.workers);
}

#[tokio::test]
async fn a_store_that_fails_is_tried_again_and_harms_nobody() {
    let running = Running::new().await;
    let mut keeper = keeper(&running);
    std::fs::write(running.fixture.path("snapshots"), "in the way").expect("written");
    keeper.take_if_changed().await.expect_err("no folder");
    running.capture_ranges(1).await;
    std::fs::remove_file(running.fixture.path("snapshots")).expect("removed");
    keeper.take_if_changed().await.expect("taken");
    assert_eq!(newest(&running).await, running.records().await);
}

#[tokio::test]
async fn a_coordinator_that_stops_leaves_a_last_one() {
    let running = Running::new().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let kept = tokio::spawn(keeper(&running).run(stop.clone()));
    while keys(&running).await.is_empty() {
        tokio::task::yield_now().await;
    }
    running.capture_ranges(1).await;
    stop.cancel();
    kept.await.expect("ends");
    assert_eq!((keys(&running).await.len(), newest(&running).await), (2, running.records().await));
}
