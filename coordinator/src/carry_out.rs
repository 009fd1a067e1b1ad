//! Carries out what the state machine commands, and tells it what came of it.

use std::collections::HashMap;
use std::sync::Arc;

use deltaconv_proto::code::Code;
use deltaconv_proto::ids::{JobId, TaskId};
use deltaconv_proto::objects::Objects;
use deltaconv_proto::shard::Contents;
use deltaconv_proto::v1;
use futures::TryStreamExt;
use prost::Message;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::api::Wakers;
use crate::assemble::verify::{self, Expectation};
use crate::core::Handle as CoreHandle;
use crate::observe::history;
use crate::observe::report::{self, ReportInput, StageFigures};
use crate::schedule::{Command, Now, Turn};
use crate::term::{self, Terms};
use crate::{assemble, manifest, reclaim};

/// Runs until `stop`. What is interrupted then is commanded again by the coordinator's next start.
pub(crate) async fn run(
    mut commands: mpsc::UnboundedReceiver<Command>,
    core: CoreHandle,
    terms: Terms,
    wakers: Wakers,
    stop: CancellationToken,
) {
    let mut running = JoinSet::new();
    let mut turns = Turns::default();
    loop {
        let command = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = running.join_next(), if !running.is_empty() => continue,
            command = commands.recv() => command,
        };
        match command {
            None => break,
            Some(Command::Wake(worker)) => wakers.ring(&worker),
            Some(Command::Say { job, waiting }) => tracing::warn!(%job, waiting, "nothing of the job moves"),
            Some(command) => {
                let (core, terms, stop, runtime) = (core.clone(), terms.clone(), stop.clone(), Handle::current());
                let turn = turns.of(&command);
                let carry_out = async move {
                    let _turn = match &turn {
                        Some(turn) => Some(turn.lock().await),
                        None => None,
                    };
                    carry_out(core, terms, command).await;
                };
                // Hashing and drawing take longer than an async thread may be kept.
                running.spawn_blocking(move || runtime.block_on(stop.run_until_cancelled(carry_out)));
            }
        }
    }
    while running.join_next().await.is_some() {}
}

/// Whose turn it is at what jobs have one of. A core that begins anew commands again what may be under way.
#[derive(Default)]
struct Turns(HashMap<JobId, Arc<Mutex<()>>>);

impl Turns {
    /// What the command waits for, if it is one that a job has once.
    fn of(&mut self, command: &Command) -> Option<Arc<Mutex<()>>> {
        let job = match command {
            Command::Assemble(Turn { job, .. }) | Command::Report(Turn { job, .. }) => job,
            Command::Reclaim(job) | Command::Manifest(job) => job,
            Command::Wake(_) | Command::Say { .. } | Command::Verify { .. } | Command::Discard { .. } => return None,
        };
        self.0.retain(|_, turn| Arc::strong_count(turn) > 1);
        Some(self.0.entry(job.clone()).or_default().clone())
    }
}

async fn carry_out(core: CoreHandle, terms: Terms, command: Command) {
    let span = span(&command);
    carry_out_one(core, terms, command).instrument(span).await;
}

/// What is said while a command is carried out is said of its job and task.
fn span(command: &Command) -> Span {
    match command {
        Command::Wake(_) | Command::Say { .. } => Span::none(),
        Command::Verify { task, attempt, .. } => tracing::info_span!("verify", job = task.job(), %task, %attempt),
        Command::Assemble(Turn { job, .. }) => tracing::info_span!("assemble", %job),
        Command::Report(Turn { job, .. }) => tracing::info_span!("report", %job),
        Command::Manifest(job) => tracing::debug_span!("manifest", %job),
        Command::Reclaim(job) => tracing::info_span!("reclaim", %job),
        Command::Discard { job, key } => tracing::debug_span!("discard", %job, key),
    }
}

async fn carry_out_one(core: CoreHandle, terms: Terms, command: Command) {
    match command {
        Command::Wake(_) | Command::Say { .. } => {}
        Command::Verify { task, lease, spec, attempt, done } => {
            let result = check(&task, &spec, &attempt, &done).await;
            verified(core, task, lease, *done, result).await;
        }
        Command::Assemble(turn) => assemble(core, terms, turn).await,
        Command::Report(turn) => report(core, terms, turn).await,
        Command::Manifest(job) => manifest(core, terms, job).await,
        Command::Reclaim(job) => reclaim(core, terms, job).await,
        Command::Discard { job, key } => discard(core, terms, job, key).await,
    }
}

async fn verified(
    core: CoreHandle,
    task: TaskId,
    lease: v1::Lease,
    done: v1::Done,
    result: Result<(), Option<String>>,
) {
    if let Err(reason) = &result {
        tracing::warn!(%task, attempt = lease.attempt_id, reason = reason.as_deref(), "output not accepted");
    }
    if let (Ok(()), Some(v1::done::Output::Distill(output))) = (&result, &done.output)
        && !output.unlearned.is_empty()
    {
        tracing::warn!(%task, reason = output.unlearned, "no block was learned; the layer stays attention");
    }
    let told = core.tell(move |state, now, effects| state.verified(&task, &lease, done, result, now, effects));
    // A core that stops has its worker report again to the next one.
    let _ = told.await;
}

/// `Err(None)` when the check could not be made.
async fn check(
    task: &TaskId,
    spec: &v1::TaskSpec,
    attempt: &deltaconv_proto::ids::AttemptId,
    done: &v1::Done,
) -> Result<(), Option<String>> {
    let (Ok(job), Ok(plan)) = (v1::JobSpec::decode(&*spec.job), v1::JobPlan::decode(&*spec.plan)) else {
        return Err(None);
    };
    let Some(kind) = &spec.kind else { return Err(None) };
    let Some(output) = &done.output else { return Err(Some(Code::NotAccepted.before("the report names no output"))) };
    let objects = Objects::open(&job.output_url).map_err(|_| None)?;
    let round = match kind {
        v1::task_spec::Kind::Capture(capture) => capture.round,
        _ => 0,
    };
    let expectation = Expectation { plan: &plan, contents: Contents::of(&job, round), task, attempt, kind };
    let mut found = verify::verify(&objects, output, &expectation).await;
    if found.as_ref().is_err_and(verify::Error::is_of_output) {
        // What was altered on its way here isn't the worker's fault.
        found = verify::verify(&objects, output, &expectation).await;
    }
    found.map_err(|error| {
        let of_output = error.is_of_output();
        if !of_output {
            tracing::warn!(%task, %error, "an output could not be checked; it will be tried again");
        }
        of_output.then(|| error.code().before(error))
    })
}

/// Does `work` under a job's output for as long as that is this coordinator's. `None` where it is another's: then the job has
/// ended.
async fn hold<T, W: Future<Output = Result<T, String>>>(
    core: &CoreHandle,
    terms: &Terms,
    job: &JobId,
    url: &str,
    work: impl FnOnce(u32) -> W,
) -> Option<Result<T, String>> {
    match terms.hold(url, work).await {
        Ok(result) => Some(result),
        Err(held @ term::Error::Held { .. }) => {
            // A core that stops has nothing more to be told.
            let _ = term::fence(core, job, &held).await;
            None
        }
        Err(error) => Some(Err(error.code().before(error))),
    }
}

async fn output(core: &CoreHandle, job: &JobId) -> Option<String> {
    let id = job.clone();
    core.call(move |state, _, _| state.job(&id).map(|job| job.spec.output_url.clone())).await.ok()?
}

async fn assemble(core: CoreHandle, terms: Terms, turn: Turn) {
    let (of, job) = (turn.clone(), turn.job.clone());
    let inputs = core.call(move |state, _, _| {
        let job = state.job(&of.job).filter(|job| state.is_turn(&of) && job.output.is_empty())?;
        Some((job.spec.clone(), state.plan_of_student(job), state.blocks_of_student(&of.job)))
    });
    let Ok(Some((spec, plan, blocks))) = inputs.await else { return };
    let work = async |_| assemble::assemble(&spec, &plan, &blocks).await.map_err(|error| error.code().before(error));
    let Some(result) = hold(&core, &terms, &job, &spec.output_url, work).await else { return };
    let result = result.map(|assembled| (assembled.teacher_digest, assembled.objects));
    match &result {
        Ok((_, objects)) => tracing::info!(%job, objects = objects.len(), "model assembled"),
        Err(reason) => tracing::error!(%job, reason, "assembling failed"),
    }
    let _ = core.tell(move |state, now, effects| state.assembled(&turn, result, now, effects)).await;
}

async fn report(core: CoreHandle, terms: Terms, turn: Turn) {
    let (of, job) = (turn.clone(), turn.job.clone());
    let inputs = core.call(move |state, now, _| {
        let id = of.job.clone();
        let parts = state.evaluation_parts(&id);
        state.job(&id).filter(|_| state.is_turn(&of)).map(|job| {
            let stages: Vec<StageFigures> =
                job.steps().map(|step| figures(state.stage_status(job, step, now), now)).collect();
            let blocks = state.blocks(&id, job.rounds());
            let (plan, staying) = (state.plan_of_student(job), state.staying(job));
            let finetuned = state.finetuned(&id).cloned();
            (job.spec.clone(), plan, job.output.clone(), blocks, parts, stages, staying, finetuned)
        })
    });
    let Ok(Some((spec, plan, output, blocks, evaluation, stages, staying, finetuned))) = inputs.await else { return };
    let input = ReportInput {
        spec: &spec,
        plan: &plan,
        output: &output,
        blocks: &blocks,
        evaluation: &evaluation,
        stages: &stages,
        staying: &staying,
        finetuned: finetuned.as_ref(),
    };
    let written = hold(&core, &terms, &job, &spec.output_url, async |_| {
        report::write(input).await.map_err(|error| error.code().before(error))
    })
    .await;
    let Some(result) = written else { return };
    match &result {
        Ok(figures) => tracing::info!(%job, epsilon = figures.epsilon_relative_mse, "report written"),
        Err(reason) => tracing::error!(%job, reason, "the report failed"),
    }
    let _ = core.tell(move |state, now, effects| state.reported(&turn, result, now, effects)).await;
}

async fn manifest(core: CoreHandle, terms: Terms, job: JobId) {
    let Some(url) = output(&core, &job).await else { return };
    let work = async |term| {
        let written = async {
            manifest::write(&core, &job, &Objects::open(&url)?, term, terms.identity()).await?;
            let of_job = job.clone();
            let ended = core.call(move |state, _, _| {
                let is_over = state.job(&of_job).is_some_and(|job| !job.is_running());
                is_over.then(|| state.events_after(0, Some(&of_job), usize::MAX))
            });
            if let Some(events) = ended.await? {
                let objects = Objects::open(&url)?;
                // Of one that was tried again, or whose first ones the state has forgotten meanwhile.
                let events = history::merged(history::read(&objects, &job).await?, events);
                history::write(&objects, &job, &events).await?;
            }
            let of = url.clone();
            Ok::<_, manifest::Error>(core.call(move |state, _, _| state.is_written_to(&of)).await?)
        };
        written.await.map_err(|error| error.code().before(error))
    };
    match hold(&core, &terms, &job, &url, work).await {
        None | Some(Ok(true)) => {}
        Some(Ok(false)) => {
            if let Err(error) = terms.release(&url).await {
                tracing::warn!(%job, %error, "the output stays this coordinator's; another takes it with --take-over");
            }
        }
        Some(Err(error)) => tracing::warn!(%job, error, "no manifest; the next step writes it"),
    }
}

async fn reclaim(core: CoreHandle, terms: Terms, job: JobId) {
    match reclaim::collect(&core, &terms, &job, reclaim::Extent::Unneeded).await {
        Ok(tally) if tally.failed == 0 => {
            let (objects, bytes) = tally.total();
            tracing::info!(%job, objects, bytes, "activations and checkpoints removed");
            let _ = core.tell(move |state, _, effects| state.reclaimed(&job, effects)).await;
        }
        Ok(tally) => {
            let (objects, reason) = (tally.failed, tally.failure);
            tracing::warn!(%job, objects, reason, "objects can't be removed; the next start tries again, or `deltaconv gc`");
        }
        Err(error) => {
            tracing::warn!(%job, %error, "nothing could be removed; the next start tries again, or `deltaconv gc`");
        }
    }
}

async fn discard(core: CoreHandle, terms: Terms, job: JobId, key: String) {
    let Some(url) = output(&core, &job).await else { return };
    let remove = async |_| {
        let removed = async { Objects::open(&url)?.remove(vec![key.clone()]).try_next().await };
        removed.await.map_err(|error| error.code().before(error))
    };
    if let Some(Err(error)) = hold(&core, &terms, &job, &url, remove).await {
        tracing::warn!(%job, key, error, "a former checkpoint can't be removed; it stays until the job is over");
    }
}

fn figures(status: v1::StageStatus, now: Now) -> StageFigures {
    // The evaluation has not ended: its report is being written.
    let until = if status.finished_unix_ms > 0 { status.finished_unix_ms } else { now.unix_ms };
    StageFigures {
        seconds: until.saturating_sub(status.started_unix_ms) as f64 / 1000.0,
        stage: status.stage,
        round: status.round,
        busy_seconds: status.busy_seconds,
        gpu_seconds: status.gpu_seconds,
        written_bytes: status.written_bytes,
        samples: status.samples,
        tasks: status.tasks,
    }
}
