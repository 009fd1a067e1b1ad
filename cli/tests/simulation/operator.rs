//! The operators: they submit jobs, hold them up and have them go on, drain workers and return them, look at everything, and
//! ask again when an answer was lost. Once faults stopped they bring back all that is out.

use std::sync::Arc;

use deltaconv_coordinator::schedule::{Effects, Error, Explanation, JobState, Now, State};
use deltaconv_proto::ids::JobId;
use deltaconv_proto::v1;

use crate::audit::{Change, Violation};
use crate::job;
use crate::network::Passage;
use crate::world::{World, lock};

const SENSE: &str = "what is told makes sense";

/// What a look at the coordinator shows.
struct View {
    state: JobState,
    paused: bool,
    quarantined: Vec<String>,
}

/// Submits a job and does with it what operators do, until it is done or cancelled.
pub(crate) async fn of_job(world: Arc<World>, number: u64) {
    let (spec, plan) = job::draw(&world, number);
    world.pass(0..10_000).await;
    let job = loop {
        let (spec, plan) = (spec.clone(), plan.clone());
        let submitted = call(&world, move |state, now, effects| state.submit(spec, plan, now, effects)).await;
        match submitted {
            Some(Ok((job, _))) => break job,
            Some(Err(error)) => return world.fail(Violation::new("a job is accepted", error.to_string())),
            None => world.pass(100..1_000).await,
        }
    };
    world.trace(format_args!("{job} is accepted"));
    world.check(|audit, _| audit.accepted(&job));
    loop {
        world.pass(500..5_000).await;
        let Some(view) = look(&world, &job).await else { continue };
        // A coordinator that can't write shows what it was about to do; what counts is what it says when it can.
        let id = job.clone();
        let durable = call(&world, move |state, _, _| state.job(&id).map(|job| job.state.clone())).await.flatten();
        let state = match durable.unwrap_or(JobState::Running) {
            JobState::Done => "done",
            JobState::Cancelled => "cancelled",
            JobState::Running | JobState::Failed(_) => {
                if let Some(change) = next(&world, &job, view) {
                    ask(&world, change).await;
                }
                continue;
            }
        };
        world.trace(format_args!("{job} is {state}"));
        return world.check(|audit, _| audit.ended(&job, state));
    }
}

/// What is asked for next, if anything is.
fn next(world: &World, job: &JobId, view: View) -> Option<Change> {
    let weather = world.weather();
    let fails = matches!(view.state, JobState::Failed(_));
    if world.is_calm() {
        let failed = fails.then(|| Change::Retry(job.to_string()));
        return failed.or_else(|| view.paused.then(|| Change::Resume(job.clone())));
    }
    if world.chance(weather.own_failures / 20.0) {
        return Some(Change::Cancel(job.clone()));
    }
    if !world.chance(weather.changes) {
        return None;
    }
    let quarantined = view.quarantined.len() as u64;
    Some(match world.draw(0..6) {
        0 | 1 if !view.paused => Change::Pause(job.clone()),
        0..3 => Change::Resume(job.clone()),
        3 | 4 if quarantined > 0 => Change::Retry(view.quarantined[world.draw(0..quarantined) as usize].clone()),
        _ => Change::Retry(job.to_string()),
    })
}

/// Drains workers and returns them.
pub(crate) async fn of_workers(world: Arc<World>) {
    loop {
        world.pass(500..8_000).await;
        let listed = read(&world, |state, now| state.worker_statuses(now)).await.unwrap_or_default();
        if world.is_calm() {
            for worker in listed.into_iter().filter(|worker| matches!(worker.state.as_str(), "out" | "draining")) {
                ask(&world, Change::Return(worker.worker_id)).await;
            }
            continue;
        }
        if listed.is_empty() || !world.chance(world.weather().changes) {
            continue;
        }
        let worker = &listed[world.draw(0..listed.len() as u64) as usize];
        let name = match world.draw(0..3) {
            0 => &worker.worker_id,
            1 => &worker.name,
            _ => &worker.node,
        };
        let change = match world.chance(0.4) && worker.state != "out" {
            true => Change::Drain(name.clone()),
            false => Change::Return(name.clone()),
        };
        ask(&world, change).await;
    }
}

/// Asks until there is an answer, each time with the same id; now and then it is never waited for.
async fn ask(world: &Arc<World>, change: Change) {
    let request = format!("request-{:016x}", world.draw(0..u64::MAX));
    world.trace(format_args!("{request}: {change:?}"));
    lock(&world.audit).asks(&request, &change);
    loop {
        let passage = Passage::draw(world);
        if let Some(later) = passage.again {
            let (in_world, request, change) = (world.clone(), request.clone(), change.clone());
            world.spawn(async move {
                tokio::time::sleep(passage.there + later).await;
                make(&in_world, &request, change).await;
            });
        }
        tokio::time::sleep(passage.there).await;
        let made = if passage.loses_request { None } else { make(world, &request, change.clone()).await };
        tokio::time::sleep(passage.back).await;
        match made.filter(|_| !passage.loses_answer) {
            Some(Ok(())) => {
                world.trace(format_args!("{request} is made"));
                return world.check(|audit, _| audit.made(&request));
            }
            // The job has ended meanwhile, or the worker was forgotten.
            Some(Err(Error::Ended { .. } | Error::UnknownWorker(_))) => return,
            Some(Err(error)) => return world.fail(Violation::new("an operator is not refused", error.to_string())),
            None if world.chance(0.1) => return,
            None => tokio::time::sleep(passage.notices).await,
        }
    }
}

/// `None` when there is no answer.
async fn make(world: &Arc<World>, request: &str, change: Change) -> Option<Result<(), Error>> {
    let (in_world, id) = (world.clone(), request.to_owned());
    call(world, move |state, now, effects| {
        let is_made = lock(&in_world.audit).is_made(&id);
        let (writes, commands) = (effects.writes.len(), effects.commands.len());
        let made = state.once(&id, effects, |state, effects| match &change {
            Change::Pause(job) => state.pause(job, effects),
            Change::Resume(job) => state.resume(job, now, effects),
            Change::Cancel(job) => state.cancel(job, now, effects),
            Change::Retry(name) => state.retry(name, now, effects),
            Change::Drain(name) => state.drain(name, effects),
            Change::Return(name) => state.give_again(name, now, effects),
        });
        if is_made {
            let writes = effects.writes[writes..].iter().map(|write| format!("{write:?}"));
            let commands = effects.commands[commands..].iter().map(|command| format!("{command:?}"));
            let changes: Vec<String> = writes.chain(commands).collect();
            in_world.check(|audit, _| audit.asked_again(&id, &changes));
        }
        made
    })
    .await
}

/// Looks at a job, and has it and one of its tasks explained.
async fn look(world: &World, job: &JobId) -> Option<View> {
    let (id, dice) = (job.clone(), world.draw(0..u64::MAX));
    let seen = read(world, move |state, now| {
        let of_job = state.job(&id)?;
        let (job_state, paused) = (of_job.state.clone(), of_job.paused);
        let status = state.status(&id, now).ok()?;
        let workers = state.worker_statuses(now);
        let task = &status.tasks[(dice % status.tasks.len() as u64) as usize];
        let told = [state.explain(id.as_str(), now).ok()?, state.explain(&task.task_id, now).ok()?];
        let nonsense = nonsense(&status, paused, task, &workers, &told);
        let quarantined = status.tasks.iter().filter(|task| task.state == "quarantined");
        let quarantined = quarantined.map(|task| task.task_id.clone()).collect();
        Some((View { state: job_state, paused, quarantined }, nonsense))
    })
    .await?;
    let Some((view, nonsense)) = seen else {
        world.fail(Violation::new("no acknowledged change is lost", format!("{job} is not known any more")));
        return None;
    };
    if let Some(nonsense) = nonsense {
        world.fail(Violation::new(SENSE, nonsense));
    }
    Some(view)
}

/// What contradicts itself in what operators are told of a job, one of its tasks, and the workers.
fn nonsense(
    status: &v1::JobStatus,
    paused: bool,
    task: &v1::TaskStatus,
    workers: &[v1::WorkerStatus],
    told: &[Explanation; 2],
) -> Option<String> {
    let [of_job, of_task] = told;
    let summary = status.summary.as_ref()?;
    let is_read_only = of_task.state == "read-only";
    let fits = match task.state.as_str() {
        _ if of_job.reason.is_empty() || of_task.reason.is_empty() => false,
        "verifying" => of_task.state == "running",
        "ready" | "waiting" if is_read_only => true,
        "ready" | "waiting" if paused => of_task.state == "paused" && of_task.remedy.contains("resume"),
        "ready" => matches!(of_task.state, "ready" | "limited" | "unplaceable"),
        "quarantined" if summary.state != "running" => of_task.state == "ended",
        state => of_task.state == state,
    };
    let is = |wanted: &str| workers.iter().any(|worker| worker.state == wanted);
    let is_true = match of_task.reason.as_str() {
        "no worker is here" => workers.iter().all(|worker| worker.state == "lost"),
        reason if reason.ends_with("drained or leaving") => is("draining"),
        reason if reason.ends_with("workers are busy") => is("busy") || is("idle"),
        reason if reason.contains("was taken out") => is("out"),
        _ => true,
    };
    let is_at_work = status.tasks.iter().any(|task| matches!(task.state.as_str(), "running" | "verifying"));
    let job_fits = match of_job.state {
        "ended" => summary.state != "running",
        "paused" => paused && !is_at_work,
        "running" => summary.state == "running",
        _ => summary.state == "running" && (!is_at_work || of_job.state == "read-only"),
    };
    let is_sense = fits && is_true && job_fits;
    let states: Vec<&str> = workers.iter().map(|worker| worker.state.as_str()).collect();
    (!is_sense).then(|| format!("{summary:?} is told to be {of_job:?}; {task:?} to be {of_task:?}; workers {states:?}"))
}

/// `None` when there is no coordinator, or it ended before it answered, or can't write.
async fn call<R: Send + 'static>(
    world: &World,
    transition: impl FnOnce(&mut State, Now, &mut Effects) -> R + Send + 'static,
) -> Option<R> {
    let alive = lock(&world.alive).clone()?;
    tokio::select! {
        biased;
        () = alive.gone.cancelled() => None,
        answer = alive.coordinator.call(transition) => answer,
    }
}

/// `None` when there is no coordinator, or it ended before it answered.
async fn read<R: Send + 'static>(world: &World, look: impl FnOnce(&State, Now) -> R + Send + 'static) -> Option<R> {
    let alive = lock(&world.alive).clone()?;
    tokio::select! {
        biased;
        () = alive.gone.cancelled() => None,
        answer = alive.coordinator.read(look) => answer,
    }
}
