//! Removal from a real folder, decided by a real core.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use deltaconv_proto::ids::{AttemptId, TaskId, WorkerId};
use deltaconv_proto::v1::{self, attempt_report};
use tokio::sync::mpsc;

use super::*;
use crate::core::{Clock, Core};
use crate::plan::fixture;
use crate::schedule::{Settings, State};
use crate::store::LocalStore;

/// A coordinator's core with one job, whose output is a folder.
struct Running {
    core: Handle,
    job: JobId,
    fixture: fixture::Job,
    worker: WorkerId,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    async fn new() -> Self {
        let fixture = fixture::Job::new();
        let settings = Settings {
            lease_ttl: Duration::from_secs(600),
            max_failures: 3,
            max_lost: 5,
            max_recaptures: 3,
            forget_workers: Duration::from_secs(600),
            identity: "test".into(),
            #[cfg(feature = "planted-bugs")]
            planted: None,
        };
        let store = LocalStore::open(&fixture.path("state"), 0).expect("opens");
        let clock = Clock::start(std::time::SystemTime::now);
        let (core, handle, first) = Core::open(settings, store, clock, mpsc::unbounded_channel().0).expect("empty");
        let thread = core.spawn(first).expect("a thread").thread;

        plan::claim_output(&fixture.spec).await.expect("free");
        let layer = v1::LayerPlan { name: "mid".into(), ..v1::LayerPlan::default() };
        let plan = v1::JobPlan { denoiser_folder: "unet".into(), layers: vec![layer], ..v1::JobPlan::default() };
        let spec = fixture.spec.clone();
        let submitted = handle.call(move |state, now, effects| state.submit(spec, plan, now, effects));
        let (job, _) = submitted.await.expect("runs").expect("accepted");
        let joined = handle.call(|state, now, effects| state.join(v1::JoinRequest::default(), now, effects));
        let worker = joined.await.expect("runs").expect("joins");
        Self { core: handle, job, fixture, worker, thread: Some(thread) }
    }

    async fn sync(&self, attempts: Vec<v1::AttemptReport>) -> Option<v1::Start> {
        let request = v1::SyncRequest { worker_id: self.worker.to_string(), attempts, ..v1::SyncRequest::default() };
        let synced = self.core.call(move |state, now, effects| state.sync(&request, now, effects));
        synced.await.expect("runs").expect("known").start.pop()
    }

    /// Has the attempt's shard of the only layer accepted, writes it, and answers with its key.
    async fn capture(&self, start: v1::Start) -> String {
        let Some(v1::task_spec::Kind::Capture(task)) = start.task.expect("a task").kind else { panic!("no capture") };
        let lease = start.lease.expect("a lease");
        let attempt = AttemptId::new(lease.attempt_id.clone()).expect("an id");
        let key = keys::shard(0, "mid", &task.range.expect("a range"), &attempt);
        let object = v1::ObjectRef { key: key.clone(), size: 3, digest: "0".repeat(64) };
        let shards = vec![v1::ShardRef { layer: "mid".into(), object: Some(object) }];
        let output = Some(v1::done::Output::Capture(v1::CaptureOutput { shards }));
        let done = v1::Done { output, ..v1::Done::default() };
        let report = attempt_report::State::Done(done.clone());
        self.sync(vec![v1::AttemptReport { lease: Some(lease.clone()), state: Some(report) }]).await;
        let task = TaskId::new(lease.task_id.clone()).expect("an id");
        let accept = move |state: &mut State, now, effects: &mut _| {
            state.verified(&task, &lease, done, Ok(()), now, effects);
        };
        self.core.call(accept).await.expect("runs");
        self.write(&[&key]);
        key
    }

    async fn cancel(&self) {
        let job = self.job.clone();
        let cancelled = self.core.call(move |state, now, effects| state.cancel(&job, now, effects));
        cancelled.await.expect("runs").expect("cancelled");
    }

    /// Writes files of three bytes under the output.
    fn write(&self, keys: &[&str]) {
        for key in keys {
            let path = self.fixture.path("job").join(key);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, b"abc").expect("written");
        }
    }

    /// Every file under the output but the spec.
    fn files(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let root = self.fixture.path("job");
        walk(&root, &mut |path| {
            found.insert(path.strip_prefix(&root).expect("below").to_str().expect("UTF-8").to_owned());
        });
        assert!(found.remove("spec.json"), "{found:?}");
        found
    }

    async fn reclaim(&self, dry_run: bool) -> v1::CollectGarbageResponse {
        reclaim(&self.core, &self.job, dry_run).await.expect("reclaims").message()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.core.stop();
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn walk(folder: &Path, found: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        match entry.file_type().expect("a type").is_dir() {
            true => walk(&entry.path(), found),
            false => found(&entry.path()),
        }
    }
}

/// Objects by kind, in the order in which they are told.
fn objects(response: &v1::CollectGarbageResponse) -> Vec<u64> {
    assert!(response.removed.iter().all(|garbage| garbage.bytes == 3 * garbage.objects), "{response:?}");
    response.removed.iter().map(|garbage| garbage.objects).collect()
}

/// Files that are kept whatever happens.
const KEPT: [&str; 9] = [
    "output/unet/diffusion_pytorch_model.safetensors",
    "output/notes#1",
    "report/report.json",
    "thesis.tex",
    "thesis.tex#2",
    "rounds/0/activations/mid/copy of a shard.safetensors",
    "rounds/0/activations/mid/00000000-00000032-a1-2-test.safetensors.bak",
    "checkpoints/mine/a1-2-test-00000001.safetensors",
    "sub/rounds/0/activations/mid/00000000-00000032-a1-2-test.safetensors",
];
/// Of attempts that no record knows.
const ORPHANED: [&str; 5] = [
    "rounds/0/activations/mid/00000000-00000032-a7-99-test.safetensors",
    "rounds/0/latents/00000000-00000016-a1-3-elsewhere.safetensors",
    "rounds/0/blocks/mid/a1-98-test.safetensors",
    "checkpoints/r0/distill/mid/a1-98-test-00000020.safetensors",
    "evaluate/noise/00000000-00000032/a1-97-test.safetensors",
];
const INTERRUPTED_ORPHAN: &str = "rounds/0/blocks/mid/a1-98-test.safetensors#1";
const INTERRUPTED_OUTPUT: &str = "output/unet/diffusion_pytorch_model.safetensors#3";

fn set<'a>(keys: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    keys.into_iter().map(str::to_owned).collect()
}

#[tokio::test]
async fn while_a_job_runs_only_orphans_go() {
    let running = Running::new().await;
    let accepted = running.capture(running.sync(Vec::new()).await.expect("a start")).await;
    let at_work = running.sync(Vec::new()).await.expect("a start").lease.expect("a lease").attempt_id;
    let at_work = format!("rounds/0/activations/mid/00000032-00000064-{at_work}.safetensors");
    let uploading = format!("{at_work}#1");
    running.write(&KEPT);
    running.write(&ORPHANED);
    running.write(&[&at_work, &uploading, INTERRUPTED_ORPHAN, INTERRUPTED_OUTPUT]);
    let before = running.files();

    let planned = running.reclaim(true).await;
    assert_eq!(running.files(), before, "a dry run removed something");
    let removed = running.reclaim(false).await;
    assert_eq!(removed, planned);
    assert_eq!((objects(&removed), removed.running, removed.failed_objects), (vec![0, 0, 0, 5, 1], true, 0));
    assert_eq!(removed.unknown_objects, 7, "{:?}", running.files());
    let stay = [accepted.as_str(), &at_work, &uploading, INTERRUPTED_OUTPUT];
    assert_eq!(running.files(), set(KEPT.into_iter().chain(stay)));
    assert_eq!(objects(&running.reclaim(false).await), [0; 5]);
}

#[tokio::test]
async fn of_a_job_that_is_over_everything_goes_but_results_and_what_is_not_its_own() {
    let running = Running::new().await;
    running.capture(running.sync(Vec::new()).await.expect("a start")).await;
    running.write(&KEPT);
    running.write(&ORPHANED);
    running.write(&[INTERRUPTED_ORPHAN, INTERRUPTED_OUTPUT]);
    running.cancel().await;

    let removed = running.reclaim(false).await;
    assert_eq!((objects(&removed), removed.running), (vec![1, 0, 0, 5, 2], false));
    assert_eq!(running.files(), set(KEPT));
    let left = |folder: &str| running.fixture.path("job").join(folder).exists();
    assert!(!left("rounds/0/blocks") && !left("evaluate") && left("rounds/0/activations/mid"));
    assert_eq!(objects(&running.reclaim(false).await), [0; 5], "it is safe to repeat");
}

#[tokio::test]
async fn what_became_somebody_elses_is_not_touched() {
    let running = Running::new().await;
    running.write(&ORPHANED);
    running.cancel().await;
    let spec = running.fixture.path("job/spec.json");
    let text = std::fs::read_to_string(&spec).expect("reads");
    std::fs::write(&spec, text.replace("\"seed\": 7", "\"seed\": 8")).expect("writes");
    let refused = reclaim(&running.core, &running.job, false).await.expect_err("refused").to_string();
    assert!(refused.contains("nothing is removed") && refused.contains("data.seed is 8 there"), "{refused}");
    assert_eq!(running.files(), set(ORPHANED));
    std::fs::write(&spec, text).expect("writes");

    let unknown = JobId::new("nonesuch-7").expect("an id");
    assert!(matches!(reclaim(&running.core, &unknown, false).await, Err(Error::Job(_))));
}
