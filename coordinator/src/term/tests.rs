//! Coordinators that want the same output.

use std::future::pending;

use deltaconv_proto::v1;
use tempfile::TempDir;
use url::Url;

use super::*;
use crate::running::Running;
use crate::schedule::JobState;

fn output() -> (TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let url = Url::from_file_path(folder.path()).expect("absolute").to_string();
    (folder, url)
}

fn coordinator(identity: &str) -> Terms {
    Terms::new(identity, "node-a").expect("random numbers")
}

async fn terms(url: &str) -> Vec<u32> {
    let mut numbers = numbers(&Objects::open(url).expect("opens")).await.expect("lists");
    numbers.sort_unstable();
    numbers
}

#[tokio::test]
async fn an_output_is_anothers_until_it_is_taken_over_and_then_never_again() {
    let (_folder, url) = output();
    let (first, second) = (coordinator("first"), coordinator("second"));
    assert_eq!(first.own(&url).await.expect("free"), 1);
    assert_eq!(first.own(&url).await.expect("its own"), 1);
    let refused = second.own(&url).await.expect_err("held").to_string();
    assert!(refused.contains("coordinator first on node-a since 2") && refused.contains("--take-over"), "{refused}");

    assert_eq!(second.take_over(&url).await.expect("taken"), 2);
    for _ in 0..2 {
        let fenced = first.own(&url).await.expect_err("fenced");
        assert!(matches!(&fenced, Error::Held { by, .. } if by.identity == "second" && by.term == 2), "{fenced}");
    }
    assert_eq!((second.own(&url).await.expect("its own"), terms(&url).await), (2, vec![1, 2]));
}

#[tokio::test]
async fn a_restart_goes_on_and_of_two_processes_on_copies_of_a_state_the_later_one() {
    let (_folder, url) = output();
    let (process, restarted) = (coordinator("same"), coordinator("same"));
    assert_eq!(process.own(&url).await.expect("free"), 1);
    assert_eq!(restarted.own(&url).await.expect("of the same state"), 2);
    // It never ended, and does not take back what it had.
    assert!(matches!(process.own(&url).await, Err(Error::Held { .. })));
    assert_eq!(restarted.own(&url).await.expect("its own"), 2);
}

#[tokio::test]
async fn what_was_given_back_is_anybodys_and_numbers_go_on() {
    let (_folder, url) = output();
    let (first, second) = (coordinator("first"), coordinator("second"));
    first.own(&url).await.expect("free");
    first.take_over(&url).await.expect("its own");
    second.release(&url).await.expect("is not its own");
    assert!(matches!(second.own(&url).await, Err(Error::Held { .. })), "nobody gives back what is another's");
    first.release(&url).await.expect("given back");
    assert_eq!(terms(&url).await, [2], "those before are removed");
    assert_eq!(second.own(&url).await.expect("free"), 3);
    assert!(matches!(first.own(&url).await, Err(Error::Held { .. })));
}

#[tokio::test]
async fn of_all_that_want_a_new_output_one_has_it() {
    let (_folder, url) = output();
    let all: Vec<Terms> = (0..8).map(|number| coordinator(&format!("c{number}"))).collect();
    let owned = futures::future::join_all(all.iter().map(|terms| terms.own(&url))).await;
    assert_eq!(owned.iter().filter(|owned| owned.is_ok()).count(), 1, "{owned:?}");
    assert_eq!(terms(&url).await, [1]);
}

#[tokio::test]
async fn work_under_an_output_ends_when_another_takes_it() {
    let (_folder, url) = output();
    let (first, second) = (coordinator("first"), coordinator("second"));
    let taken = async {
        second.take_over(&url).await.expect("taken");
        // The look that its watch takes.
        assert!(first.own(&url).await.is_err());
        pending::<()>().await;
    };
    let work = first.hold(&url, async |_| taken.await);
    assert!(matches!(work.await, Err(Error::Held { .. })));
}

#[tokio::test]
async fn what_is_no_term_is_refused_by_name() {
    let (folder, url) = output();
    std::fs::create_dir_all(folder.path().join(keys::TERMS)).expect("made");
    for text in ["thesis", r#"{"term":2,"identity":"x","process":"y","host":"z","since_unix_ms":0}"#] {
        std::fs::write(folder.path().join(keys::term(1)), text).expect("written");
        let refused = coordinator("first").take_over(&url).await.expect_err("refused").to_string();
        assert!(refused.contains("coordinator/00000001.json is no term"), "{refused}");
    }
}

#[tokio::test]
async fn a_job_whose_output_was_taken_ends_and_says_who_did_and_removes_nothing_any_more() {
    let running = Running::new().await;
    let url = running.fixture.spec.output_url.clone();
    let (own, other) = (Terms::new(&running.identity, "node-a").expect("random"), coordinator("other"));
    own.own(&url).await.expect("free");
    let lease = running.sync(Vec::new()).await.expect("a start").lease;
    other.take_over(&url).await.expect("taken");
    let left = "rounds/0/blocks/mid/a1-98-test.safetensors";
    running.write(&[left]);

    let stop = CancellationToken::new();
    let watching = watch(running.core.clone(), own.clone(), stop.clone());
    let job = running.job.clone();
    let ended = async {
        loop {
            let id = job.clone();
            let state = running.core.call(move |state, _, _| state.job(&id).map(|job| job.state.clone())).await;
            match state.expect("runs").expect("known") {
                JobState::Running => tokio::task::yield_now().await,
                ended => break ended,
            }
        }
    };
    let ended = tokio::select! { () = watching => panic!("it watches until it is stopped"), ended = ended => ended };
    let JobState::Failed(reason) = ended else { panic!("{ended:?}") };
    for part in ["another coordinator took the output over", "coordinator other on node-a since", "retry --take-over"] {
        assert!(reason.contains(part), "{reason}");
    }
    // The worker is told to stop, and what it writes for the other one is not this one's to remove.
    let report = v1::attempt_report::State::Running(v1::Progress::default());
    let report = v1::AttemptReport { lease: lease.clone(), state: Some(report) };
    let request =
        v1::SyncRequest { worker_id: running.worker.to_string(), attempts: vec![report], ..v1::SyncRequest::default() };
    let synced = running.core.call(move |state, now, effects| state.sync(&request, now, effects)).await;
    assert_eq!(synced.expect("runs").expect("known").cancel[0].lease, lease);
    let refused = crate::reclaim::collect(&running.core, &own, &running.job, crate::reclaim::Extent::AndLogs)
        .await
        .expect_err("refused")
        .to_string();
    assert!(refused.contains("nothing is removed") && refused.contains("coordinator other"), "{refused}");
    assert!(running.files().contains(left));
}
