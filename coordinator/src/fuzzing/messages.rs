//! What workers and operators send, on its way into the state.

use std::time::Duration;

use deltaconv_proto::bounds;
use deltaconv_proto::fuzzing::{Input, check_error, ok};
use deltaconv_proto::ids::{AttemptId, JobId, TaskId, WorkerId};
use deltaconv_proto::keys;
use deltaconv_proto::v1::{self, attempt_report, done, task_spec};
use prost::Message;

use crate::plan;
use crate::schedule::{Command, Effects, Enrolment, Now, Settings, State, Turn};
use crate::store::{Entry, MAX_VALUE, MemoryStore, Store, Write};

/// Messages in a row.
const MOST: usize = 64;
/// What tonic lets a message have.
const LARGEST: usize = 4 << 20;

/// A job's spec, as it is sent and as it lies under an output.
pub(super) fn of_spec(bytes: &[u8]) {
    let decoded = v1::JobSpec::decode(bytes).ok();
    let read: Option<v1::JobSpec> = serde_json::from_slice(bytes).ok();
    if let Some(spec) = &read {
        let written = serde_json::to_vec(spec).expect("JSON");
        let again: v1::JobSpec = serde_json::from_slice(&written).expect("what is written is read");
        assert_eq!(again, *spec, "a job would differ from itself");
    }
    for spec in [decoded, read].into_iter().flatten() {
        if let Err(error) = plan::check_spec(&spec) {
            check_error(&error);
            continue;
        }
        // What may be submitted can be taken up again.
        let plan = job_plan();
        bounds::check(&spec, &plan).expect("its numbers are such as jobs have");
        let mut effects = Effects::default();
        let mut state = state(&mut MemoryStore::default());
        let (job, _) = state.submit(spec, plan, Now::default(), &mut effects).expect("accepted");
        state.status(&job, Now::default()).expect("it is there");
    }
}

/// Messages in a row, to a coordinator with a job that the first byte chooses. Blanks are filled in: a worker's id with that of the
/// last one that joined, a lease with what it holds.
pub(super) fn of_messages(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut coordinator = Coordinator::new(input.byte());
    for _ in 0..MOST {
        if input.0.is_empty() {
            break;
        }
        let (kind, len) = (input.byte(), input.number() as usize);
        coordinator.take(kind, input.piece(len));
    }
    look(&coordinator.state, coordinator.now);
    coordinator.restart();
}

/// The records of a coordinator with a job.
pub(super) fn records() -> Vec<Write> {
    let mut coordinator = Coordinator::new(0);
    coordinator.take(0, &[]);
    coordinator.take(1, &[]);
    let records = coordinator.store.load().expect("memory");
    records.into_writes().collect()
}

/// All that anybody may ask a state.
pub(super) fn look(state: &State, now: Now) {
    let _ = (state.totals(), state.census(now), state.counts(), state.events_after(0, None, 100));
    let _ = (state.invitations(), state.identities());
    assert!(v1::ListWorkersResponse { workers: state.worker_statuses(now) }.encoded_len() < LARGEST);
    for job in state.summaries() {
        let id = JobId::new(job.job_id).expect("an id");
        let status = state.status_with_history(&id, now).expect("it is there");
        state.explain(id.as_str(), now).expect("it is there");
        for task in status.tasks.iter().take(100) {
            state.explain(&task.task_id, now).expect("it is there");
        }
        let _ = (state.over(&id), state.job_records(&id), state.evaluation_parts(&id), state.blocks_of_student(&id));
        if let Some(job) = state.job(&id) {
            let _ = (state.staying(job), state.plan_of_student(job));
        }
    }
}

fn state(store: &mut MemoryStore) -> State {
    let settings = Settings::new("test", Duration::from_secs(10));
    let records = store.load().expect("memory");
    State::restore(settings, records, Now::default()).expect("what it wrote is understood").0
}

fn job_plan() -> v1::JobPlan {
    let layer = |index: u32, name: &str| v1::LayerPlan {
        index,
        name: name.into(),
        channels: 8,
        height: 4,
        width: 4,
        kernel_size: 3,
        scales: vec![1.0],
        inter_ratio: 0.5,
        ..v1::LayerPlan::default()
    };
    v1::JobPlan { latents: 20, prompts: 3, layers: vec![layer(0, "down"), layer(1, "mid")], ..v1::JobPlan::default() }
}

/// A small job: with a further round, with blocks that are trained together, or with latents that are made.
fn job_spec(kind: u8) -> v1::JobSpec {
    let has = |bit: u8| kind & bit > 0;
    let recipe = v1::Recipe {
        samples: 4,
        held_out_samples: 2,
        shard_samples: 2,
        steps: 10,
        batch: 2,
        rounds: has(1).into(),
        round_steps: 5,
        teacher_share: if has(1) { 0.5 } else { 0.0 },
        finetune: has(2).then_some(v1::Finetune { steps: 8, batch: 2, learning_rate: 1e-3, features: 0.1 }),
        keep_costliest: has(8).then_some(1),
        start: has(16).then(|| v1::Recipe::RIDGE.to_owned()),
        widen: has(32).then_some(0.01),
        budget: has(64).then(|| v1::Recipe::GAIN.to_owned()),
        ..v1::Recipe::default()
    };
    let synthesis = has(4).then(|| v1::Synthesis { latents: 20, ..v1::Synthesis::default() });
    v1::JobSpec {
        name: "tiny".into(),
        output_url: "file:///out".into(),
        data: Some(v1::Data { synthesis, ..v1::Data::default() }),
        recipe: Some(recipe),
        evaluation: Some(v1::Evaluation { samples: 4, prompts: 2, ddim_steps: 2, guidance: 2.0 }),
        retention: has(128).then(|| "results".to_owned()),
        ..v1::JobSpec::default()
    }
}

/// A coordinator whose disk and clock are held here.
struct Coordinator {
    state: State,
    store: MemoryStore,
    now: Now,
    workers: Vec<WorkerId>,
    /// Outputs that are to be checked.
    #[allow(clippy::type_complexity, reason = "what a command to verify has")]
    reported: Vec<(TaskId, v1::Lease, Box<v1::TaskSpec>, AttemptId, Box<v1::Done>)>,
    turns: Vec<Turn>,
    /// The last invitation, and who last took one.
    invited: String,
    enrolled: String,
}

impl Coordinator {
    fn new(kind: u8) -> Self {
        let mut store = MemoryStore::default();
        let state = state(&mut store);
        let (workers, reported, turns, invited, enrolled) = Default::default();
        let now = Now { unix_ms: 1000, ..Now::default() };
        let mut new = Self { state, store, now, workers, reported, turns, invited, enrolled };
        let submitted = new.run(|state, now, effects| state.submit(job_spec(kind), job_plan(), now, effects));
        submitted.expect("accepted");
        new
    }

    /// Makes a change, and what it writes durable.
    fn run<R>(&mut self, change: impl FnOnce(&mut State, Now, &mut Effects) -> R) -> R {
        let mut effects = Effects::default();
        let result = change(&mut self.state, self.now, &mut effects);
        for entry in effects.writes.iter().map(Entry::of) {
            let size = entry.value.map_or(0, |value| value.len());
            assert!(size <= MAX_VALUE, "{} has {size} bytes: nothing could be written any more", entry.key);
        }
        self.store.apply(&effects.writes).expect("memory");
        for command in effects.commands {
            match command {
                Command::Verify { task, lease, spec, attempt, done } => {
                    self.reported.push((task, lease, spec, attempt, done));
                }
                Command::Assemble(turn) | Command::Report(turn) => self.turns.push(turn),
                _ => {}
            }
        }
        result
    }

    fn restart(&mut self) {
        self.state = state(&mut self.store);
        self.now = Now { monotonic: Duration::ZERO, ..self.now };
        self.reported.clear();
        self.turns.clear();
    }

    fn take(&mut self, kind: u8, piece: &[u8]) {
        let text = String::from_utf8_lossy(piece).into_owned();
        let name = if text.is_empty() { "tiny-1".to_owned() } else { text.clone() };
        match kind % 20 {
            0 => {
                let Ok(request) = v1::JoinRequest::decode(piece) else { return };
                let joined = self.run(|state, now, effects| state.join(request, now, effects));
                self.workers.push(joined.expect("joins"));
            }
            1..=4 => {
                let Ok(request) = v1::SyncRequest::decode(piece) else { return };
                self.sync(request);
            }
            5 | 6 => {
                let Ok(done) = v1::Done::decode(piece) else { return };
                self.done(done);
            }
            7 => {
                let Some((task, lease, _, _, done)) = self.reported.pop() else { return };
                let said = if text.is_empty() { None } else { Some(text) };
                self.run(|state, now, effects| state.verified(&task, &lease, *done, Err(said), now, effects));
            }
            8 => {
                let seconds = u64::from(piece.first().copied().unwrap_or(1));
                self.now.monotonic += Duration::from_secs(seconds);
                self.now.unix_ms += 1000 * seconds;
                self.run(|state, now, effects| state.tick(now, effects));
            }
            9 => {
                self.operate(piece.first().copied().unwrap_or(0), &name);
            }
            10 => {
                let Ok(spec) = v1::JobSpec::decode(piece) else { return };
                if plan::check_spec(&spec).is_ok() {
                    let submitted = self.run(|state, now, effects| state.submit(spec, job_plan(), now, effects));
                    submitted.err().iter().for_each(check_error);
                }
            }
            11 => {
                let Some(turn) = self.turns.pop() else { return };
                let object = v1::ObjectRef { key: format!("output/{text}"), size: 1, digest: "0".repeat(64) };
                let written = Ok(("0".repeat(64), vec![object; usize::from(piece.len() as u8 % 64) + 1]));
                self.run(|state, now, effects| state.assembled(&turn, written, now, effects));
            }
            12 => {
                let Some(turn) = self.turns.pop() else { return };
                let job = self.state.job(&turn.job);
                let stay_attention = job.map(|job| self.state.staying(job)).unwrap_or_default();
                let figures = v1::Figures { stay_attention, blocks_digest: text, ..v1::Figures::default() };
                self.run(|state, now, effects| state.reported(&turn, Ok(figures), now, effects));
            }
            13 => {
                let Some(turn) = self.turns.pop() else { return };
                self.run(|state, now, effects| state.assembled(&turn, Err(text.clone()), now, effects));
                self.run(|state, now, effects| state.reported(&turn, Err(text), now, effects));
            }
            14 => {
                let now = self.now;
                self.state.stood_still(now);
            }
            16 => {
                let (uses, valid) = (piece.len() as u32 % 3, Duration::from_secs(piece.len() as u64 + 1));
                let digest = blake3::hash(b"secret");
                let invited = self.run(|state, now, effects| state.invite(digest, (uses, valid), &text, now, effects));
                self.invited = ok(invited).map(|status| status.id).unwrap_or_default();
            }
            17 => {
                let enrolment = Enrolment {
                    id: self.invited.clone(),
                    digest: blake3::hash(if piece.len() % 5 == 4 { b"other." } else { b"secret" }),
                    public_key: blake3::hash(&piece[..piece.len().min(1)]),
                    name: text,
                    secret: None,
                    valid: Duration::from_secs(30),
                };
                let enrolled = self.run(|state, now, effects| state.enrol(enrolment, now, effects));
                self.enrolled = ok(enrolled).map(|record| record.identity).unwrap_or_default();
            }
            18 => {
                let of = [&self.invited, &self.enrolled, &text][piece.len() % 3].clone();
                ok(self.run(|state, now, effects| state.revoke(&of, &text, now, effects)));
            }
            19 => {
                let (of, key) = (self.enrolled.clone(), blake3::hash(&piece[..piece.len().min(1)]));
                let valid = Duration::from_secs(60);
                ok(self.run(|state, now, effects| state.renew_identity(&of, &key, valid, now, effects)));
            }
            _ => self.restart(),
        }
    }

    fn sync(&mut self, mut request: v1::SyncRequest) {
        // As the service does.
        request.attempts.truncate(64);
        if request.worker_id.is_empty() {
            request.worker_id = self.workers.last().map(ToString::to_string).unwrap_or_default();
        }
        let own = self.leases(&request.worker_id);
        let blank = request.attempts.iter_mut().filter(|report| report.lease.is_none());
        for (report, lease) in blank.zip(own) {
            report.lease = Some(lease);
        }
        let response = self.run(|state, now, effects| state.sync(&request, now, effects));
        if let Some(response) = response {
            assert!(response.encoded_len() < LARGEST);
        }
        let _ = self.state.hear(&request, self.now);
    }

    /// What the worker holds, as it is reminded of it.
    fn leases(&mut self, worker: &str) -> Vec<v1::Lease> {
        let request = v1::SyncRequest { worker_id: worker.to_owned(), draining: true, ..v1::SyncRequest::default() };
        let response = self.run(|state, now, effects| state.sync(&request, now, effects)).unwrap_or_default();
        response.start.into_iter().filter_map(|start| start.lease).collect()
    }

    /// Reports an output of what the last worker holds, and has it accepted: where it lies is as verification demands, and what it
    /// says is as it was sent.
    fn done(&mut self, said: v1::Done) {
        let Some(worker) = self.workers.last().cloned() else { return };
        let Some(lease) = self.leases(worker.as_str()).pop() else { return };
        let report = v1::AttemptReport { lease: Some(lease), state: Some(attempt_report::State::Done(said.clone())) };
        self.sync(v1::SyncRequest { attempts: vec![report], ..v1::SyncRequest::default() });
        let Some((task, lease, spec, attempt, _)) = self.reported.pop() else { return };
        let object = |key: String| Some(v1::ObjectRef { key, size: 1, digest: "0".repeat(64) });
        let output = match (spec.kind, said.output) {
            (Some(task_spec::Kind::Synthesise(of)), _) => {
                let latents = object(keys::latents(&of.range.unwrap_or_default(), &attempt));
                done::Output::Synthesise(v1::SynthesiseOutput { latents })
            }
            (Some(task_spec::Kind::Capture(of)), _) => {
                let range = of.range.unwrap_or_default();
                let shard = |layer: &String| v1::ShardRef {
                    layer: layer.clone(),
                    object: object(keys::shard(of.round, layer, &range, &attempt)),
                };
                done::Output::Capture(v1::CaptureOutput { shards: of.layers.iter().map(shard).collect() })
            }
            (Some(task_spec::Kind::Distill(_)), Some(done::Output::Distill(said))) if !said.unlearned.is_empty() => {
                done::Output::Distill(v1::DistillOutput { block: None, start: None, ..said })
            }
            (Some(task_spec::Kind::Distill(of)), said) => {
                let said = match said {
                    Some(done::Output::Distill(said)) => said,
                    _ => v1::DistillOutput::default(),
                };
                let is_error = |error: &f64| error.is_finite() && *error >= 0.0;
                let layer = of.layer.unwrap_or_default().name;
                done::Output::Distill(v1::DistillOutput {
                    block: object(keys::block(of.round, &layer, &attempt)),
                    relative_error: Some(said.relative_error).filter(is_error).unwrap_or(0.5),
                    unlearned: String::new(),
                    alone_error: of.alone.then(|| said.alone_error.filter(is_error).unwrap_or(0.1)),
                    start: if of.start_by_ridge { object(keys::start(&layer, &attempt)) } else { None },
                })
            }
            (Some(task_spec::Kind::Finetune(of)), said) => {
                let story = match said {
                    Some(done::Output::Finetune(said)) => said.story,
                    _ => String::new(),
                };
                let block = |block: &v1::BlockRef| v1::BlockRef {
                    object: object(keys::finetuned(&block.layer, &attempt)),
                    ..block.clone()
                };
                let blocks = of.blocks.iter().map(block).collect();
                done::Output::Finetune(v1::FinetuneOutput { blocks, story, ..v1::FinetuneOutput::default() })
            }
            (Some(task_spec::Kind::Evaluate(_)), _) => {
                done::Output::Evaluate(v1::EvaluateOutput { part: object(keys::evaluation(&task, &attempt)) })
            }
            (None, _) => return,
        };
        let done = v1::Done { output: Some(output), ..said };
        self.run(|state, now, effects| state.verified(&task, &lease, done, Ok(()), now, effects));
    }

    fn operate(&mut self, what: u8, name: &str) {
        // The first byte says what, and may be the first of the name, too.
        let result = self.run(|state, now, effects| {
            state.once(name, effects, |state, effects| match what % 8 {
                0 => state.retry(name, now, effects),
                1 => state.drain(name, effects),
                2 => state.give_again(name, now, effects),
                3 => state.pause(&JobId::new(name)?, effects),
                4 => state.resume(&JobId::new(name)?, now, effects),
                5 => state.cancel(&JobId::new(name)?, now, effects),
                6 => state.explain(name, now).map(drop),
                _ => state.job_of(name).map(drop),
            })
        });
        result.err().iter().for_each(check_error);
    }
}
