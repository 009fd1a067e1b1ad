//! Manifests of a real job, in its folder.

use deltaconv_proto::keys::Manifest;
use deltaconv_proto::objects::Objects;

use super::*;
use crate::running::Running;

fn objects(running: &Running) -> Objects {
    Objects::open(&running.fixture.spec.output_url).expect("opens")
}

async fn put(running: &Running, term: u32, identity: &str) {
    write(&running.core, &running.job, &objects(running), term, identity).await.expect("written");
}

/// Step, term and identity of each, in order.
fn listed(running: &Running) -> Vec<(String, u32, String)> {
    let files = running.files();
    let manifests = files.iter().filter_map(|key| Manifest::parse(key));
    manifests.map(|manifest| (manifest.step, manifest.term, manifest.identity)).collect()
}

#[tokio::test]
async fn each_step_is_written_once_when_it_is_over() {
    let running = Running::new().await;
    let own = |step: &str, term| (step.to_owned(), term, "own".to_owned());
    put(&running, 1, "own").await;
    running.capture_ranges(running.ranges() - 1).await;
    put(&running, 2, "own").await;
    assert_eq!(listed(&running), [own("submitted", 1)], "a range is left");
    let found = find(&objects(&running), None, 0).await.expect("read").expect("there");
    assert_eq!((found.job.job_id.as_str(), found.tasks.len()), (running.job.as_str(), 0));

    running.capture_ranges(1).await;
    put(&running, 2, "own").await;
    put(&running, 3, "own").await;
    assert_eq!(listed(&running), [own("submitted", 1), own("capture-r0", 2)]);
    let found = find(&objects(&running), Some(&running.job), 0).await.expect("read").expect("there");
    let records = running.records().await;
    let captured: Vec<_> = records.tasks.iter().filter(|task| task.committed).cloned().collect();
    assert_eq!(found.tasks.into_values().collect::<Vec<_>>(), captured);
    assert_eq!((&found.job, found.meta.epoch), (&records.jobs[0], records.meta.epoch));

    running.cancel().await;
    put(&running, 3, "own").await;
    let found = find(&objects(&running), None, 0).await.expect("read").expect("there");
    assert_eq!((found.job.state.as_str(), found.tasks.len()), ("cancelled", running.ranges()));
}

#[tokio::test]
async fn of_several_coordinators_the_last_one_counts_and_what_it_had_to_do_again_does_not() {
    let running = Running::new().await;
    running.capture_ranges(running.ranges()).await;
    put(&running, 1, "first").await;
    // Another one, on a state from before the capture, which has none of this one's manifests.
    let again = Running::new().await;
    put(&again, 2, "second").await;
    for (step, term, identity) in listed(&again) {
        let key = Manifest { job: running.job.clone(), position: 0, step, term, identity }.to_string();
        let to = running.fixture.path("job").join(&key);
        std::fs::copy(again.fixture.path("job").join(&key), to).expect("copied");
    }
    let found = find(&objects(&running), None, 0).await.expect("read").expect("there");
    assert_eq!(found.tasks.len(), 0, "the capture is not over any more");
    put(&running, 3, "third").await;
    let found = find(&objects(&running), None, 0).await.expect("read").expect("there");
    assert_eq!(found.tasks.len(), running.ranges());
}

#[tokio::test]
async fn a_broken_manifest_is_named() {
    let running = Running::new().await;
    put(&running, 1, "own").await;
    let key = running.files().into_iter().find(|key| Manifest::parse(key).is_some()).expect("a manifest");
    let path = running.fixture.path("job").join(&key);
    let mut bytes = std::fs::read(&path).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).expect("writes");
    let refused = find(&objects(&running), None, 0).await.expect_err("refused").to_string();
    assert!(refused.contains(&key), "{refused}");
}
