//! A coordinator's core on a real folder, with one job, for tests.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use deltaconv_proto::ids::{AttemptId, JobId, TaskId, WorkerId};
use deltaconv_proto::keys;
use deltaconv_proto::v1::{self, attempt_report};
use tokio::sync::mpsc;

use crate::access::{Access, Audit, Rates};
use crate::backup::Backups;
use crate::core::{Clock, Core, Handle};
use crate::observe::metrics::Metrics;
use crate::plan::{self, fixture};
use crate::schedule::{Export, Settings, State};
use crate::store::{Journal, LocalStore, MemoryStore, Records, Store};

/// A coordinator's core with one job, whose output is a folder.
pub(crate) struct Running {
    pub(crate) core: Handle,
    pub(crate) job: JobId,
    pub(crate) fixture: fixture::Job,
    pub(crate) worker: WorkerId,
    pub(crate) journal: Journal,
    pub(crate) identity: String,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    /// With a worker that has joined.
    pub(crate) async fn new() -> Self {
        let fixture = fixture::Job::new();
        let store = LocalStore::open(&fixture.path("state"), 0).expect("opens");
        let (journal, identity) = (store.journal(), store.identity().to_owned());
        let settings = Settings::new(identity.as_str(), Duration::from_secs(600));
        let clock = Clock::start(std::time::SystemTime::now);
        let (commands, metrics) = (mpsc::unbounded_channel().0, Metrics::new());
        let (core, handle, first) = Core::open(settings, store, clock, commands, metrics).expect("empty");
        let thread = core.spawn(first).expect("a thread").thread;

        plan::claim_output(&fixture.spec).await.expect("free");
        let layer = v1::LayerPlan { name: "mid".into(), ..v1::LayerPlan::default() };
        let plan = v1::JobPlan { denoiser_folder: "unet".into(), layers: vec![layer], ..v1::JobPlan::default() };
        let spec = fixture.spec.clone();
        let submitted = handle.call(move |state, now, effects| state.submit(spec, plan, now, effects));
        let (job, _) = submitted.await.expect("runs").expect("accepted");
        let joined = handle.call(|state, now, effects| state.join(v1::JoinRequest::default(), now, effects));
        let worker = joined.await.expect("runs").expect("joins");
        Self { core: handle, job, fixture, worker, journal, identity, thread: Some(thread) }
    }

    /// What lets everybody in who reaches it.
    pub(crate) fn access(&self, metrics: Metrics) -> Access {
        let audit = Audit::open(&self.fixture.path("state")).expect("opens");
        let (register, rates, audit) = (Arc::default(), Arc::new(Rates::new()), Arc::new(audit));
        Access { tls: None, workers: None, token: None, register, rates, audit, metrics }
    }

    /// What the worker is given that says this of its attempts.
    pub(crate) async fn sync(&self, attempts: Vec<v1::AttemptReport>) -> Option<v1::Start> {
        let request = v1::SyncRequest { worker_id: self.worker.to_string(), attempts, ..v1::SyncRequest::default() };
        let synced = self.core.call(move |state, now, effects| state.sync(&request, now, effects));
        synced.await.expect("runs").expect("known").start.pop()
    }

    /// Has the attempt's shard of the only layer accepted, writes it, and answers with its key.
    pub(crate) async fn capture(&self, start: v1::Start) -> String {
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

    /// How many ranges are to be captured.
    pub(crate) fn ranges(&self) -> usize {
        plan::capture_ranges(&self.fixture.spec).len()
    }

    /// Captures so many ranges.
    pub(crate) async fn capture_ranges(&self, count: usize) {
        for _ in 0..count {
            self.capture(self.sync(Vec::new()).await.expect("a range is left")).await;
        }
    }

    /// What backs it up.
    pub(crate) fn backups(&self) -> Backups {
        let state = self.fixture.path("state");
        Backups::new(self.core.clone(), self.journal.clone(), state, self.identity.clone(), None)
    }

    /// Everything that is durable.
    pub(crate) async fn records(&self) -> Records {
        let exported = self.core.call(|state, _, _| {
            let (mut export, mut writes) = (Export::default(), Vec::new());
            while let Some(piece) = state.export(&mut export) {
                writes.extend(piece);
            }
            writes
        });
        let mut store = MemoryStore::default();
        store.apply(&exported.await.expect("runs")).expect("memory takes everything");
        store.load().expect("loads")
    }

    /// Ends the job.
    pub(crate) async fn cancel(&self) {
        let job = self.job.clone();
        let cancelled = self.core.call(move |state, now, effects| state.cancel(&job, now, effects));
        cancelled.await.expect("runs").expect("cancelled");
    }

    /// Writes files of three bytes under the output.
    pub(crate) fn write(&self, keys: &[&str]) {
        for key in keys {
            let path = self.fixture.path("job").join(key);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, b"abc").expect("written");
        }
    }

    /// Every file under the output but the spec.
    pub(crate) fn files(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let root = self.fixture.path("job");
        walk(&root, &mut |path| {
            found.insert(path.strip_prefix(&root).expect("below").to_str().expect("UTF-8").to_owned());
        });
        assert!(found.remove("spec.json"), "{found:?}");
        found
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
