//! The state machine under made-up events: single transitions, and whole jobs under random faults.

use std::collections::BTreeMap;
use std::time::Duration;

use deltaconv_proto::ids::{AttemptId, JobId, TaskId, WorkerId};
use deltaconv_proto::v1::{self, attempt_report::State as Report};
use deltaconv_proto::{digest, keys};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::store::{MemoryStore, Store};

mod blame;
mod budget;
mod finetune;
mod hybrid;
mod operate;
mod placement;
mod retention;
mod spare;
mod width;
mod work;

const TTL: Duration = Duration::from_secs(10);

fn settings() -> Settings {
    Settings { max_lost: 100, ..Settings::new("test", TTL) }
}

fn spec() -> v1::JobSpec {
    v1::JobSpec {
        name: "tiny".into(),
        output_url: "file:///out".into(),
        recipe: Some(v1::Recipe {
            samples: 4,
            held_out_samples: 2,
            shard_samples: 2,
            steps: 10,
            batch: 2,
            ..v1::Recipe::default()
        }),
        evaluation: Some(v1::Evaluation { samples: 2, prompts: 2, ddim_steps: 2, guidance: 2.0 }),
        ..v1::JobSpec::default()
    }
}

/// The job with a further round, in which half of the samples are the first one's.
fn with_rounds(mut spec: v1::JobSpec) -> v1::JobSpec {
    let recipe = spec.recipe.take().expect("a recipe");
    spec.recipe = Some(v1::Recipe { rounds: 1, round_steps: 5, teacher_share: 0.5, ..recipe });
    spec
}

/// The job whose blocks are trained together after the rounds.
fn finetuning(mut spec: v1::JobSpec) -> v1::JobSpec {
    let recipe = spec.recipe.take().expect("a recipe");
    let finetune = Some(v1::Finetune { steps: 8, batch: 2, learning_rate: 1e-3, features: 0.1 });
    spec.recipe = Some(v1::Recipe { finetune, ..recipe });
    spec
}

/// The job with latents that the teacher samples: two tasks of them.
fn synthesising() -> v1::JobSpec {
    let synthesis = Some(v1::Synthesis { latents: 20, ..v1::Synthesis::default() });
    v1::JobSpec { data: Some(v1::Data { synthesis, ..v1::Data::default() }), ..spec() }
}

fn job_plan() -> v1::JobPlan {
    let latents = 20;
    let layer = |index: u32, name: &str| v1::LayerPlan { index, name: name.into(), ..v1::LayerPlan::default() };
    v1::JobPlan { latents, layers: vec![layer(0, "down"), layer(1, "mid")], ..v1::JobPlan::default() }
}

/// The plan that a task comes with.
fn plan_in(task: &v1::TaskSpec) -> v1::JobPlan {
    v1::JobPlan::decode(&*task.plan).expect("a plan")
}

/// A coordinator whose disk and clock the test holds.
struct Coordinator {
    state: State,
    store: MemoryStore,
    now: Now,
    commands: Vec<Command>,
    /// How often each task's output was accepted.
    commits: BTreeMap<TaskId, u32>,
    /// What the workers' nodes hold.
    caches: BTreeMap<WorkerId, v1::NodeCache>,
}

impl Coordinator {
    fn new() -> Self {
        let mut store = MemoryStore::default();
        let now = Now { monotonic: Duration::ZERO, unix_ms: 1_000 };
        let records = store.load().expect("memory");
        let (state, _) = State::restore(settings(), records, now).expect("empty");
        let (commands, commits, caches) = Default::default();
        Self { state, store, now, commands, commits, caches }
    }

    fn run<R>(&mut self, transition: impl FnOnce(&mut State, Now, &mut Effects) -> R) -> R {
        let before = self.committed();
        let mut effects = Effects::default();
        let result = transition(&mut self.state, self.now, &mut effects);
        self.store.apply(&effects.writes).expect("memory");
        self.commands.extend(effects.commands);
        placement::assert_is_current(&self.state);
        work::assert_is_current(&self.state);
        for (id, committed) in self.committed() {
            if committed && !before.get(&id).copied().unwrap_or(false) {
                *self.commits.entry(id).or_default() += 1;
            }
        }
        result
    }

    fn committed(&self) -> BTreeMap<TaskId, bool> {
        self.state.tasks.values().map(|task| (task.id.clone(), task.is_committed())).collect()
    }

    /// The process is gone and another begins on what was durable.
    fn crash(&mut self) {
        self.commands.clear();
        let records = self.store.load().expect("memory");
        let committed = self.committed();
        let (state, effects) = State::restore(settings(), records, self.now).expect("restores");
        self.state = state;
        self.commands.extend(effects.commands);
        assert_eq!(committed, self.committed(), "what was accepted stays accepted");
    }

    fn submit(&mut self) -> JobId {
        self.submit_spec(spec())
    }

    fn submit_spec(&mut self, spec: v1::JobSpec) -> JobId {
        self.run(|state, now, effects| state.submit(spec, job_plan(), now, effects)).expect("accepted").0
    }

    fn join(&mut self) -> WorkerId {
        self.run(|state, now, effects| state.join(v1::JoinRequest::default(), now, effects)).expect("joins")
    }

    fn join_on(&mut self, node: &str) -> WorkerId {
        let request = v1::JoinRequest { node: node.into(), ..v1::JoinRequest::default() };
        self.run(|state, now, effects| state.join(request, now, effects)).expect("joins")
    }

    /// Leases the worker its next task and answers it.
    fn answer(&mut self, worker: &WorkerId, answer: impl FnOnce(&v1::Start) -> Report) -> Option<TaskId> {
        self.carry_out();
        let start = self.sync(worker, Vec::new()).start.pop()?;
        let task = task_of(&start);
        self.sync(worker, vec![report(&start.lease, answer(&start))]);
        self.carry_out();
        Some(task)
    }

    fn sync(&mut self, worker: &WorkerId, attempts: Vec<v1::AttemptReport>) -> v1::SyncResponse {
        let (worker_id, cache, is_free) = (worker.to_string(), self.caches.get(worker).cloned(), attempts.is_empty());
        let request = v1::SyncRequest { worker_id, attempts, cache, ..v1::SyncRequest::default() };
        let response = self.run(|state, now, effects| state.sync(&request, now, effects)).expect("known");
        let asks = &self.state.workers[worker];
        let waits = |task: &Task| self.state.may_try(self.state.tasks.slot(&task.id).expect("known"), asks, self.now);
        let waits = |job: &Job| self.state.tasks_of(job).any(|task| self.state.is_ready(job, task) && waits(task));
        let suits = |job: &Job| asks.meets(job.spec.requires.as_ref()) && !job.is_full();
        let gives = |job: &&Job| job.is_running() && !job.paused && suits(job);
        let waiting = self.state.jobs.values().filter(gives).any(waits);
        let is_free = is_free && self.state.is_usable(asks, self.now);
        let idles = is_free && self.state.leases_of(worker).next().is_none();
        assert!(!(idles && waiting), "a worker that asks is given a task that is ready");
        response
    }

    fn wait(&mut self, time: Duration) {
        self.now.monotonic += time;
        self.now.unix_ms += time.as_millis() as u64;
        self.run(|state, now, effects| state.tick(now, effects));
    }

    /// Answers the commands as a healthy store would.
    fn carry_out(&mut self) {
        for command in std::mem::take(&mut self.commands) {
            match command {
                Command::Wake(_) | Command::Say { .. } | Command::Discard { .. } | Command::Manifest(_) => {}
                Command::Verify { task, lease, done, .. } => {
                    self.run(|state, now, effects| state.verified(&task, &lease, *done, Ok(()), now, effects));
                }
                Command::Assemble(turn) => {
                    let output = vec![object("output/model.safetensors")];
                    let result = Ok(("digest".to_owned(), output));
                    self.run(|state, now, effects| state.assembled(&turn, result, now, effects));
                }
                Command::Report(turn) => {
                    let result = Ok(v1::Figures::default());
                    self.run(|state, now, effects| state.reported(&turn, result, now, effects));
                }
                Command::Reclaim(job) => self.run(|state, _, effects| state.reclaimed(&job, effects)),
            }
        }
    }

    fn job_state(&self, job: &JobId) -> &JobState {
        &self.state.job(job).expect("known").state
    }
}

fn object(key: &str) -> v1::ObjectRef {
    v1::ObjectRef { key: key.into(), size: 1, digest: "0".repeat(64) }
}

/// A shard, whose bytes are the same whoever writes it.
fn shard(round: u32, layer: &str, range: &v1::SampleRange, attempt: &AttemptId) -> v1::ObjectRef {
    let digest = digest::of(format!("{round}/{layer}/{}", keys::range(range)).as_bytes());
    v1::ObjectRef { key: keys::shard(round, layer, range, attempt), size: 100, digest }
}

/// What a worker would report for the task that it was given.
fn done(start: &v1::Start) -> v1::Done {
    let (task, lease) = (start.task.clone().expect("a task"), start.lease.clone().expect("a lease"));
    let id = TaskId::new(lease.task_id).expect("an id");
    let attempt = AttemptId::new(lease.attempt_id).expect("an id");
    let output = match task.kind.expect("a kind") {
        v1::task_spec::Kind::Synthesise(synthesise) => {
            let key = keys::latents(&synthesise.range.expect("a range"), &attempt);
            v1::done::Output::Synthesise(v1::SynthesiseOutput { latents: Some(object(&key)) })
        }
        v1::task_spec::Kind::Capture(capture) => {
            let shard = |layer: &String| v1::ShardRef {
                layer: layer.clone(),
                object: Some(shard(capture.round, layer, &capture.range.expect("a range"), &attempt)),
            };
            v1::done::Output::Capture(v1::CaptureOutput { shards: capture.layers.iter().map(shard).collect() })
        }
        v1::task_spec::Kind::Distill(distill) => {
            let block = object(&keys::block(distill.round, &distill.layer.expect("a layer").name, &attempt));
            v1::done::Output::Distill(v1::DistillOutput {
                block: Some(block),
                relative_error: 0.1,
                ..v1::DistillOutput::default()
            })
        }
        v1::task_spec::Kind::Finetune(finetune) => {
            let block =
                |of: v1::BlockRef| v1::BlockRef { object: Some(object(&keys::finetuned(&of.layer, &attempt))), ..of };
            let blocks = finetune.blocks.into_iter().map(block).collect();
            let (error_before, error_after) = (0.02, 0.01);
            v1::done::Output::Finetune(v1::FinetuneOutput {
                blocks,
                error_before,
                error_after,
                ..v1::FinetuneOutput::default()
            })
        }
        v1::task_spec::Kind::Evaluate(_) => {
            let part = object(&keys::evaluation(&id, &attempt));
            v1::done::Output::Evaluate(v1::EvaluateOutput { part: Some(part) })
        }
    };
    v1::Done { output: Some(output), ..v1::Done::default() }
}

fn task_of(start: &v1::Start) -> TaskId {
    TaskId::new(start.lease.clone().expect("a lease").task_id).expect("an id")
}

fn failed(message: &str) -> Report {
    Report::Failed(v1::Failure { message: message.into(), ..v1::Failure::default() })
}

fn report(lease: &Option<v1::Lease>, state: Report) -> v1::AttemptReport {
    v1::AttemptReport { lease: lease.clone(), state: Some(state) }
}

/// Works on the job until it is done, and returns the steps that it came to.
fn steps_of(spec: v1::JobSpec) -> Vec<(Stage, u32)> {
    let mut c = Coordinator::new();
    let (job, worker) = (c.submit_spec(spec), c.join());
    let mut steps = Vec::new();
    let mut reports = Vec::new();
    for _ in 0..40 {
        let response = c.sync(&worker, std::mem::take(&mut reports));
        reports.extend(response.start.iter().map(|start| report(&start.lease, Report::Done(done(start)))));
        c.carry_out();
        let Step { stage, round } = c.state.job(&job).expect("known").step();
        if steps.last() != Some(&(stage, round)) {
            steps.push((stage, round));
        }
    }
    assert_eq!(c.job_state(&job), &JobState::Done);
    assert!(c.commits.values().all(|commits| *commits == 1), "{:?}", c.commits);
    steps
}

#[test]
fn a_job_goes_through_its_stages_and_ends() {
    let all = Stage::ALL.map(|stage| (stage, 0));
    let without: Vec<_> = all.into_iter().filter(|(stage, _)| *stage != Stage::Finetune).collect();
    assert_eq!(steps_of(spec()), without[1..]);
    assert_eq!(steps_of(synthesising()), without);
    let again = [(Stage::Capture, 1), (Stage::Distill, 1)];
    assert_eq!(steps_of(with_rounds(synthesising())), [&without[..3], &again, &without[3..]].concat());
    assert_eq!(steps_of(finetuning(with_rounds(synthesising()))), [&all[..3], &again, &all[3..]].concat());
}

#[test]
fn what_a_stage_took_and_wrote_is_counted_and_survives_a_restart() {
    let mut c = Coordinator::new();
    let (job, plain) = (c.submit_spec(spec()), c.join());
    let device = Some(v1::Device { kind: v1::Device::CUDA.into(), ..v1::Device::default() });
    let join = v1::JoinRequest { device, ..v1::JoinRequest::default() };
    let with_gpu = c.run(|state, now, effects| state.join(join, now, effects)).expect("joins");
    // Two captures are the first's, one is the second's.
    for worker in [&plain, &with_gpu, &plain] {
        let start = c.sync(worker, Vec::new()).start.remove(0);
        let done = v1::Done { busy_seconds: 2.0, ..done(&start) };
        c.sync(worker, vec![report(&start.lease, Report::Done(done))]);
        c.carry_out();
    }
    c.crash();
    let known = c.state.job(&job).expect("known");
    let capture = c.state.stage_status(known, Step { stage: Stage::Capture, round: 0 }, c.now);
    // Three ranges of two layers.
    assert_eq!((capture.busy_seconds, capture.gpu_seconds, capture.written_bytes), (6.0, 2.0, 6 * 100));
}

#[test]
fn a_further_round_has_the_blocks_of_the_one_before_and_shards_of_both() {
    let mut c = Coordinator::new();
    c.submit_spec(with_rounds(spec()));
    let worker = c.join();
    let mut reports = Vec::new();
    let mut trained = BTreeMap::new();
    let (mut captured, mut distilled, mut compared) = (0, 0, 0);
    for _ in 0..40 {
        let response = c.sync(&worker, std::mem::take(&mut reports));
        c.carry_out();
        for start in response.start {
            let output = done(&start);
            match start.task.clone().and_then(|task| task.kind).expect("a kind") {
                v1::task_spec::Kind::Capture(task) if task.round == 1 => {
                    // Nothing that is replaced stands before the first layer.
                    assert_eq!(task.layers, ["mid"]);
                    let blocks = task.blocks.into_iter().map(|block| (block.layer, block.object.expect("a block")));
                    assert_eq!(blocks.collect::<BTreeMap<_, _>>(), trained);
                    captured += 1;
                }
                v1::task_spec::Kind::Capture(task) => assert!(task.blocks.is_empty()),
                v1::task_spec::Kind::Distill(task) => {
                    let name = task.layer.expect("a layer").name;
                    let rounds = task.shards.iter().map(|shard| &shard.object.as_ref().expect("an object").key[7..8]);
                    let rounds: Vec<&str> = rounds.collect();
                    if task.round == 0 {
                        assert_eq!((task.start, rounds), (None, vec!["0"; 3]));
                        let Some(v1::done::Output::Distill(output)) = output.output.clone() else { panic!("a block") };
                        trained.insert(name, output.block.expect("a block"));
                    } else {
                        // The held-out range is the round's own alone.
                        assert_eq!((task.start, rounds), (trained.get(&name).cloned(), vec!["1", "0", "1", "0", "1"]));
                        distilled += 1;
                    }
                }
                v1::task_spec::Kind::Evaluate(task) => {
                    let blocks = task.rounds.iter().flat_map(|round| &round.blocks);
                    let blocks = blocks.map(|block| (block.layer.clone(), block.object.clone().expect("a block")));
                    assert_eq!(blocks.collect::<BTreeMap<_, _>>(), trained);
                    compared += 1;
                }
                v1::task_spec::Kind::Synthesise(_) | v1::task_spec::Kind::Finetune(_) => panic!("nothing of that"),
            }
            reports.push(report(&start.lease, Report::Done(output)));
        }
    }
    assert_eq!((captured, distilled, compared), (3, 1, 2));
}

#[test]
fn a_block_that_cant_be_read_is_a_failure_and_no_shard_to_be_written_again() {
    let mut c = Coordinator::new();
    let job = c.submit_spec(with_rounds(spec()));
    let worker = c.join();
    let mut reports = Vec::new();
    for _ in 0..60 {
        let response = c.sync(&worker, std::mem::take(&mut reports));
        c.carry_out();
        for start in response.start {
            let task = start.task.clone().and_then(|task| task.kind).expect("a kind");
            let state = match task {
                v1::task_spec::Kind::Distill(task) if task.round == 1 => {
                    let key = task.start.expect("a block").key;
                    let broken_shard = Some(v1::BrokenShard { key, ..v1::BrokenShard::default() });
                    Report::Failed(v1::Failure { message: "broken".into(), broken_shard, ..v1::Failure::default() })
                }
                _ => Report::Done(done(&start)),
            };
            reports.push(report(&start.lease, state));
        }
    }
    assert!(matches!(c.job_state(&job), JobState::Failed(reason) if reason.contains("broken")));
}

#[test]
fn latents_that_were_found_broken_are_sampled_again_while_the_reader_waits() {
    let mut c = Coordinator::new();
    c.submit_spec(synthesising());
    let worker = c.join();
    let mut reports = Vec::new();
    let capture = loop {
        let start = c.sync(&worker, std::mem::take(&mut reports)).start.pop();
        c.carry_out();
        let Some(start) = start else { continue };
        let task = start.task.clone().expect("a task");
        if matches!(task.kind, Some(v1::task_spec::Kind::Capture(_))) {
            break start;
        }
        reports.push(report(&start.lease, Report::Done(done(&start))));
    };
    let latents = capture.task.expect("a task").latents;
    assert_eq!(latents.iter().map(|part| part.range.expect("a range").end).collect::<Vec<_>>(), [16, 20]);
    let key = latents[1].object.clone().expect("an object").key;
    let broken = Some(v1::BrokenShard { key: key.clone(), ..v1::BrokenShard::default() });
    let failure = v1::Failure { message: "broken".into(), broken_shard: broken, ..v1::Failure::default() };
    c.sync(&worker, vec![report(&capture.lease, Report::Failed(failure))]);
    let again = c.sync(&worker, Vec::new()).start.remove(0);
    let Some(v1::task_spec::Kind::Synthesise(task)) = again.task.clone().expect("a task").kind else {
        panic!("{again:?}");
    };
    assert!(key.starts_with(&keys::latents_of(&task.range.expect("a range"))));
    let id = TaskId::new(capture.lease.expect("a lease").task_id).expect("an id");
    assert_eq!((c.state.tasks[&id].failures.len(), c.state.tasks[&id].attempts), (0, 1));
    assert!(!c.state.is_ready(&c.state.jobs[&c.state.tasks[&id].job], &c.state.tasks[&id]));
    let next = c.sync(&worker, vec![report(&again.lease, Report::Done(done(&again)))]);
    c.carry_out();
    assert!(next.start.is_empty() && c.state.tasks[&id].leased().is_none());
    let start = c.sync(&worker, Vec::new()).start.remove(0);
    assert!(matches!(start.task.expect("a task").kind, Some(v1::task_spec::Kind::Capture(_))));
}

#[test]
fn a_lease_that_is_not_renewed_ends_and_its_worker_is_fenced() {
    let mut c = Coordinator::new();
    c.submit();
    let (slow, other) = (c.join(), c.join());
    let first = c.sync(&slow, Vec::new()).start.remove(0);
    c.wait(TTL - Duration::from_secs(1));
    c.sync(&slow, vec![report(&first.lease, Report::Running(v1::Progress::default()))]);
    c.wait(TTL - Duration::from_secs(1));
    let task = TaskId::new(first.lease.clone().expect("a lease").task_id).expect("an id");
    assert!(c.state.tasks[&task].leased().is_some(), "a renewed lease stands");

    c.wait(TTL);
    let second = c.sync(&other, Vec::new()).start.remove(0);
    let (old, new) = (first.lease.clone().expect("a lease"), second.lease.clone().expect("a lease"));
    assert_eq!(old.task_id, new.task_id);
    assert!(new.epoch > old.epoch);
    let answer = c.sync(&slow, vec![report(&first.lease, Report::Done(done(&first)))]);
    assert_eq!(answer.cancel.len(), 1, "the late report is refused");
    c.carry_out();
    assert!(!c.state.tasks[&task].is_committed(), "and changes nothing");
}

#[test]
fn a_lost_answer_is_given_again() {
    let mut c = Coordinator::new();
    c.submit();
    let worker = c.join();
    let lost = c.sync(&worker, Vec::new());
    let again = c.sync(&worker, Vec::new());
    assert_eq!(lost.start, again.start);
}

#[test]
fn a_restart_keeps_leases_and_checkpoints() {
    let mut c = Coordinator::new();
    c.submit();
    let worker = c.join();
    let start = c.sync(&worker, Vec::new()).start.remove(0);
    let lease = start.lease.clone().expect("a lease");
    let (id, attempt) = (TaskId::new(lease.task_id).expect("an id"), AttemptId::new(lease.attempt_id).expect("an id"));
    let checkpoint = v1::Checkpoint { object: Some(object(&keys::checkpoint(&id, &attempt, 5))), step: 5 };
    let progress = v1::Progress { checkpoint: Some(checkpoint.clone()), ..v1::Progress::default() };
    c.sync(&worker, vec![report(&start.lease, Report::Running(progress.clone()))]);
    c.crash();
    let answer = c.sync(&worker, vec![report(&start.lease, Report::Running(progress))]);
    assert!(answer.cancel.is_empty() && answer.start.is_empty(), "the worker goes on: {answer:?}");
    assert_eq!(c.state.tasks[&id].checkpoint.as_deref(), Some(&checkpoint));
}

/// An attempt that can't read the checkpoint that it was given stores lower ones.
#[test]
fn a_checkpoint_of_an_attempt_that_began_anew_takes_the_place_of_one_that_cannot_be_read() {
    let mut c = Coordinator::new();
    c.submit_spec(spec());
    let worker = c.join();
    let reached = |c: &mut Coordinator, start: &v1::Start, step: u64| {
        let lease = start.lease.clone().expect("a lease");
        let (id, attempt) =
            (TaskId::new(lease.task_id).expect("an id"), AttemptId::new(lease.attempt_id).expect("an id"));
        let checkpoint = v1::Checkpoint { object: Some(object(&keys::checkpoint(&id, &attempt, step))), step };
        let progress = v1::Progress { checkpoint: Some(checkpoint), ..v1::Progress::default() };
        c.sync(&worker, vec![report(&start.lease, Report::Running(progress))]);
        c.state.tasks[&id].checkpoint.as_ref().expect("a checkpoint").step
    };
    let start = first_distill(&mut c, &worker);
    assert_eq!(reached(&mut c, &start, 50), 50);
    c.sync(&worker, vec![report(&start.lease, Report::Released(v1::Progress::default()))]);
    let again = c.sync(&worker, Vec::new()).start.remove(0);
    assert_eq!(task_of(&again), task_of(&start));
    assert_eq!(reached(&mut c, &again, 20), 20, "it began anew");
    assert_eq!(reached(&mut c, &again, 10), 20, "what comes late changes nothing");
    assert_eq!(reached(&mut c, &again, 30), 30);
}

#[test]
fn what_happened_is_on_record_and_the_oldest_is_forgotten() {
    let mut c = Coordinator::new();
    let job = c.submit_spec(spec());
    let worker = c.join();
    let start = c.sync(&worker, Vec::new()).start.remove(0);
    c.sync(&worker, vec![report(&start.lease, failed("no memory"))]);
    let kinds = |c: &Coordinator, after| -> Vec<String> {
        c.state.events_after(after, Some(&job), 100).into_iter().map(|event| event.kind).collect()
    };
    let told = ["job-submitted", "stage-began", "task-failed"];
    assert_eq!(kinds(&c, 0), told);
    let event = c.state.events_after(0, None, 100).pop().expect("an event");
    assert_eq!((event.task_id, event.worker_id), (task_of(&start).to_string(), worker.to_string()));
    assert!(event.message.contains("no memory"), "{}", event.message);
    c.crash();
    assert_eq!(kinds(&c, 0), told);

    c.run(|state, _, effects| (0..KEPT).for_each(|_| state.started("0", effects)));
    let last = c.state.last_event();
    assert_eq!(kinds(&c, 0), [""; 0], "each in the place of an older one");
    c.crash();
    assert_eq!(c.state.events_after(0, None, usize::MAX).len() as u64, KEPT);
    assert_eq!(c.state.events_after(last - 1, None, 100).len(), 1);
}

/// Somebody had the job go on while the news that its model can't be written was still on the way.
#[test]
fn what_came_of_a_job_before_it_was_retried_counts_no_more() {
    let mut c = Coordinator::new();
    let job = c.submit_spec(spec());
    let worker = c.join();
    let mut reports = Vec::new();
    let turn = loop {
        let response = c.sync(&worker, std::mem::take(&mut reports));
        reports.extend(response.start.iter().map(|start| report(&start.lease, Report::Done(done(start)))));
        let assembles = |command: &Command| match command {
            Command::Assemble(turn) => Some(turn.clone()),
            _ => None,
        };
        match c.commands.iter().find_map(assembles) {
            Some(turn) => break turn,
            None => c.carry_out(),
        }
    };
    let fail = |state: &mut State, now, effects: &mut _| state.assembled(&turn, Err("no room".into()), now, effects);
    c.run(fail);
    c.run(|state, now, effects| state.retry(job.as_str(), now, effects)).expect("goes on");
    c.crash();
    c.run(fail);
    assert!(c.state.jobs[&job].is_running(), "it was told of the time before");
}

#[test]
fn a_checkpoint_outside_its_place_is_not_handed_on() {
    let mut c = Coordinator::new();
    c.submit();
    let worker = c.join();
    let start = c.sync(&worker, Vec::new()).start.remove(0);
    let checkpoint = v1::Checkpoint { object: Some(object("output/model.safetensors")), step: 5 };
    let progress = v1::Progress { checkpoint: Some(checkpoint), ..v1::Progress::default() };
    c.sync(&worker, vec![report(&start.lease, Report::Running(progress))]);
    assert!(c.state.tasks.values().all(|task| task.checkpoint.is_none()));
}

#[test]
fn tasks_that_keep_failing_end_their_job_with_the_reason() {
    let mut c = Coordinator::new();
    let (job, worker) = (c.submit(), c.join());
    // Three times each of the three captures.
    for _ in 0..9 {
        let start = c.sync(&worker, Vec::new()).start.remove(0);
        c.sync(&worker, vec![report(&start.lease, failed("no disk"))]);
    }
    let JobState::Failed(reason) = c.job_state(&job) else { panic!("{:?}", c.job_state(&job)) };
    assert!(reason.contains("no disk"), "{reason}");
}

#[test]
fn a_worker_that_hands_back_is_not_blamed() {
    let mut c = Coordinator::new();
    c.submit();
    let worker = c.join();
    let start = c.sync(&worker, Vec::new()).start.remove(0);
    c.sync(&worker, vec![report(&start.lease, Report::Released(v1::Progress::default()))]);
    assert!(c.state.tasks.values().all(|task| task.failures.is_empty()));
}

/// Works until a distill task is leased, and returns its start.
fn first_distill(c: &mut Coordinator, worker: &WorkerId) -> v1::Start {
    let mut reports = Vec::new();
    for _ in 0..20 {
        let response = c.sync(worker, std::mem::take(&mut reports));
        for start in response.start {
            let kind = start.task.as_ref().and_then(|task| task.kind.clone());
            if matches!(kind, Some(v1::task_spec::Kind::Distill(_))) {
                return start;
            }
            reports.push(report(&start.lease, Report::Done(done(&start))));
        }
        c.carry_out();
    }
    panic!("no distill task was leased");
}

#[test]
fn a_broken_shard_is_captured_again_and_nobody_is_blamed() {
    let mut c = Coordinator::new();
    let (job, worker) = (c.submit(), c.join());
    let start = first_distill(&mut c, &worker);
    let Some(v1::task_spec::Kind::Distill(task)) = start.task.clone().and_then(|task| task.kind) else {
        panic!("{start:?}")
    };
    let (layer, shard) = (task.layer.expect("a layer").name, task.shards[1].object.clone().expect("an object"));
    let broken_shard = Some(v1::BrokenShard { key: shard.key, ..v1::BrokenShard::default() });
    let failure = v1::Failure { message: "broken".into(), broken_shard, ..v1::Failure::default() };
    let answer = c.sync(&worker, vec![report(&start.lease, Report::Failed(failure))]);
    assert_eq!(answer.acknowledged.len(), 1);

    let next = c.sync(&worker, Vec::new()).start.remove(0);
    let Some(v1::task_spec::Kind::Capture(capture)) = next.task.clone().and_then(|task| task.kind) else {
        panic!("{next:?}")
    };
    assert_eq!((capture.layers, capture.range.expect("a range").start), (vec![layer], 2));
    assert!(c.state.tasks.values().all(|task| task.failures.is_empty()));
    assert_eq!(c.job_state(&job), &JobState::Running);
}

#[test]
fn the_same_spec_again_is_the_same_job_and_another_is_refused() {
    let mut c = Coordinator::new();
    let job = c.submit();
    let again = c.run(|state, now, effects| state.submit(spec(), job_plan(), now, effects)).expect("accepted");
    assert_eq!(again, (job, true));
    let other = v1::JobSpec { name: "other".into(), ..spec() };
    let refused = c.run(|state, now, effects| state.submit(other, job_plan(), now, effects));
    assert!(matches!(refused, Err(Error::OutputInUse { .. })), "{refused:?}");
}

#[test]
fn cancelling_ends_the_work_and_tells_the_worker() {
    let mut c = Coordinator::new();
    let (job, worker) = (c.submit(), c.join());
    let start = c.sync(&worker, Vec::new()).start.remove(0);
    c.run(|state, now, effects| state.cancel(&job, now, effects)).expect("cancelled");
    let answer = c.sync(&worker, vec![report(&start.lease, Report::Running(v1::Progress::default()))]);
    assert!(answer.cancel[0].reason.contains("cancelled"), "{answer:?}");
    assert!(answer.start.is_empty());
    c.crash();
    assert_eq!(c.job_state(&job), &JobState::Cancelled);
}

#[test]
fn a_job_without_workers_says_so() {
    let mut c = Coordinator::new();
    let job = c.submit();
    let waiting_for = |c: &Coordinator| c.state.status(&job, c.now).expect("known").waiting_for;
    assert!(waiting_for(&c).contains("no worker"), "{}", waiting_for(&c));
    let worker = c.join();
    c.sync(&worker, Vec::new());
    assert_eq!(waiting_for(&c), "");
}

/// What may happen to a coordinator and its two workers.
#[derive(Clone, Debug)]
enum Fault {
    /// A worker's report is lost on the way, or its answer.
    Sync {
        worker: usize,
        report_lost: bool,
        answer_lost: bool,
    },
    Wait(u64),
    CoordinatorCrash,
    /// The process is gone; another one joins.
    WorkerCrash {
        worker: usize,
    },
    /// Commands are carried out, some of them wrongly.
    CarryOut {
        fails: bool,
    },
    BreakShard {
        worker: usize,
    },
    /// What the worker's node holds is another part of the shards from now on.
    Cache {
        worker: usize,
        version: u64,
    },
}

fn fault() -> impl Strategy<Value = Fault> {
    let worker = 0..2_usize;
    prop_oneof![
        6 => (worker.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(worker, a, b)| Fault::Sync { worker, report_lost: a && b, answer_lost: b }),
        2 => (0..15_u64).prop_map(Fault::Wait),
        1 => Just(Fault::CoordinatorCrash),
        1 => worker.clone().prop_map(|worker| Fault::WorkerCrash { worker }),
        4 => (0..12_u32).prop_map(|n| Fault::CarryOut { fails: n == 0 }),
        1 => worker.clone().prop_map(|worker| Fault::BreakShard { worker }),
        2 => (worker, 0..64_u64).prop_map(|(worker, version)| Fault::Cache { worker, version }),
    ]
}

/// A worker process that finishes each task by its next report.
struct Worker {
    id: WorkerId,
    attempts: Vec<v1::Start>,
}

impl Worker {
    fn reports(&self) -> Vec<v1::AttemptReport> {
        self.attempts.iter().map(|start| report(&start.lease, Report::Done(done(start)))).collect()
    }

    fn take(&mut self, response: v1::SyncResponse) {
        let over: Vec<Option<v1::Lease>> =
            response.acknowledged.into_iter().map(Some).chain(response.cancel.into_iter().map(|c| c.lease)).collect();
        self.attempts.retain(|start| !over.contains(&start.lease));
        for start in response.start {
            if !self.attempts.iter().any(|held| held.lease == start.lease) {
                self.attempts.push(start);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_faults_leave_a_job_that_ends_with_each_output_accepted_once(
        faults in proptest::collection::vec(fault(), 0..80),
        has_synthesis in any::<bool>(),
        has_rounds in any::<bool>(),
    ) {
        let mut c = Coordinator::new();
        let spec = if has_synthesis { synthesising() } else { spec() };
        let job = c.submit_spec(if has_rounds { with_rounds(spec) } else { spec });
        let mut workers: Vec<Worker> =
            (0..2).map(|_| Worker { id: c.join(), attempts: Vec::new() }).collect();
        let mut recaptured = 0;
        for fault in faults {
            match fault {
                Fault::Sync { report_lost: true, .. } => {}
                Fault::Sync { worker, answer_lost, .. } => {
                    let worker = &mut workers[worker];
                    let response = c.sync(&worker.id, worker.reports());
                    if !answer_lost {
                        worker.take(response);
                    }
                }
                Fault::Wait(seconds) => c.wait(Duration::from_secs(seconds)),
                Fault::CoordinatorCrash => c.crash(),
                Fault::WorkerCrash { worker } => workers[worker] = Worker { id: c.join(), attempts: Vec::new() },
                Fault::CarryOut { fails: false } => c.carry_out(),
                Fault::CarryOut { fails: true } => {
                    // The check could not be made: nobody's fault, and it is made again.
                    for command in std::mem::take(&mut c.commands) {
                        match command {
                            Command::Verify { task, lease, done, .. } => c.run(|state, now, effects| {
                                state.verified(&task, &lease, *done, Err(None), now, effects);
                            }),
                            other => c.commands.push(other),
                        }
                    }
                }
                Fault::Cache { worker, version } => {
                    c.caches.insert(workers[worker].id.clone(), placement::part(version));
                }
                Fault::BreakShard { worker } => {
                    let worker = &mut workers[worker];
                    let distill = worker.attempts.iter().find_map(|start| match start.task.as_ref()?.kind.as_ref()? {
                        v1::task_spec::Kind::Distill(task) => Some((start.lease.clone(), task.shards[0].clone())),
                        v1::task_spec::Kind::Capture(_) => {
                            Some((start.lease.clone(), start.task.as_ref()?.latents.first()?.clone()))
                        }
                        _ => None,
                    });
                    let Some((lease, shard)) = distill.filter(|_| recaptured < 2) else { continue };
                    recaptured += 1;
                    let key = shard.object.expect("an object").key;
                    let broken_shard = Some(v1::BrokenShard { key, ..v1::BrokenShard::default() });
                    let failure = v1::Failure { message: "broken".into(), broken_shard, ..v1::Failure::default() };
                    let response = c.sync(&worker.id, vec![report(&lease, Report::Failed(failure))]);
                    worker.take(response);
                }
            }
            let mut epochs: Vec<u64> =
                c.state.tasks.values().filter_map(|task| Some(task.leased()?.epoch)).collect();
            epochs.sort_unstable();
            epochs.dedup();
            let leased = c.state.tasks.values().filter(|task| task.leased().is_some()).count();
            prop_assert_eq!(epochs.len(), leased, "no two leases share an epoch");
        }

        // Faults stop; the job must end by itself.
        for _ in 0..60 {
            for worker in &mut workers {
                let response = c.sync(&worker.id, worker.reports());
                worker.take(response);
            }
            c.carry_out();
            c.wait(Duration::from_secs(2));
        }
        prop_assert_eq!(c.job_state(&job), &JobState::Done);
        for (task, commits) in &c.commits {
            let again = c.state.tasks[task].recaptures;
            prop_assert!(*commits >= 1 && *commits <= 1 + again, "{task} was accepted {commits} times");
        }
    }
}
