//! What lies between workers and the coordinator: it delays, loses, repeats and overtakes.

use std::sync::Arc;
use std::time::Duration;

use deltaconv_coordinator::schedule::{Command, Effects, Now, State};
use deltaconv_coordinator::store::Write;
use deltaconv_proto::v1;
use deltaconv_worker::agent::{self, Unanswered};
use tokio::sync::oneshot;

use crate::audit::Violation;
use crate::coordinator::Alive;
use crate::world::{World, lock};

/// A worker's side of a connection.
pub(crate) struct Link {
    pub(crate) world: Arc<World>,
    pub(crate) slot: usize,
}

/// Directions in which nothing comes through, each until a time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cut {
    pub(crate) requests_until: Duration,
    pub(crate) answers_until: Duration,
}

#[derive(Clone)]
enum Request {
    Join(v1::JoinRequest),
    Sync(v1::SyncRequest),
}

enum Answer {
    Join(v1::JoinResponse),
    Sync(v1::SyncResponse),
}

/// What becomes of one call on its way.
pub(crate) struct Passage {
    pub(crate) there: Duration,
    pub(crate) back: Duration,
    pub(crate) loses_request: bool,
    pub(crate) loses_answer: bool,
    /// The request arrives once more, so much later.
    pub(crate) again: Option<Duration>,
    /// So long after a loss the caller sees that the connection is dead.
    pub(crate) notices: Duration,
    /// The coordinator doesn't see that the caller has given up.
    hangs_on: bool,
}

impl agent::Coordinator for Link {
    fn address(&self) -> &str {
        "simulated"
    }

    async fn join(&mut self) -> Result<v1::JoinResponse, Unanswered> {
        let node = self.world.slots[self.slot].node;
        let request = v1::JoinRequest {
            name: format!("slot {}", self.slot),
            node: self.world.nodes[node].name.clone(),
            ..v1::JoinRequest::default()
        };
        match self.call(Request::Join(request)).await? {
            Answer::Join(answer) => Ok(answer),
            Answer::Sync(_) => Err(Unanswered::Away("another call's answer".into())),
        }
    }

    async fn sync(&mut self, request: v1::SyncRequest) -> Result<v1::SyncResponse, Unanswered> {
        match self.call(Request::Sync(request)).await? {
            Answer::Sync(answer) => Ok(answer),
            Answer::Join(_) => Err(Unanswered::Away("another call's answer".into())),
        }
    }

    fn jitter_seed(&self) -> Option<u64> {
        Some(self.slot as u64)
    }
}

impl Link {
    async fn call(&self, request: Request) -> Result<Answer, Unanswered> {
        let (answer, answered) = oneshot::channel();
        self.world.spawn(carry(self.world.clone(), self.slot, request, answer));
        answered.await.unwrap_or_else(|_| Err(Unanswered::Away("the connection broke".into())))
    }
}

impl Passage {
    pub(crate) fn draw(world: &World) -> Self {
        let weather = world.weather();
        let delay = || Duration::from_millis(world.draw(0..weather.delay_ms));
        Self {
            there: delay(),
            back: delay(),
            loses_request: world.chance(weather.loss),
            loses_answer: world.chance(weather.loss),
            again: world.chance(weather.duplication).then(|| Duration::from_millis(world.draw(0..15_000))),
            notices: Duration::from_millis(world.draw(100..6_000)),
            hangs_on: world.chance(weather.duplication),
        }
    }
}

/// One call, from the worker and back. It goes on when the caller gives up: what is on its way can't be called back.
async fn carry(world: Arc<World>, slot: usize, request: Request, answer: oneshot::Sender<Result<Answer, Unanswered>>) {
    let passage = Passage::draw(&world);
    if let Some(later) = passage.again {
        let (world_then, request) = (world.clone(), request.clone());
        world.spawn(async move {
            tokio::time::sleep(passage.there + later).await;
            if !world_then.cuts_requests(slot) {
                let _ = deliver(&world_then, slot, request).await;
            }
        });
    }
    tokio::time::sleep(passage.there).await;
    if passage.loses_request || world.cuts_requests(slot) {
        return tokio::time::sleep(passage.notices).await;
    }
    let mut answer = answer;
    let given_up = async {
        answer.closed().await;
        tokio::time::sleep(passage.there).await;
        if passage.hangs_on {
            std::future::pending::<()>().await;
        }
    };
    let result = tokio::select! {
        biased;
        result = deliver(&world, slot, request) => result,
        () = given_up => return,
    };
    tokio::time::sleep(passage.back).await;
    if passage.loses_answer || world.cuts_answers(slot) {
        return tokio::time::sleep(passage.notices).await;
    }
    // Who called may have gone on.
    let _ = answer.send(result);
}

async fn deliver(world: &Arc<World>, slot: usize, request: Request) -> Result<Answer, Unanswered> {
    let Some(alive) = lock(&world.alive).clone() else { return Err(Unanswered::Away("nobody listens".into())) };
    let reset = || Unanswered::Away("the connection was reset".into());
    let answer = async {
        match request {
            Request::Join(request) => {
                let answer = alive.coordinator.join(request).await?;
                world.trace(format_args!("slot {slot} joins as {}", answer.worker_id));
                world.check(|audit, _| audit.joined(&answer));
                Ok(Answer::Join(answer))
            }
            Request::Sync(request) => {
                lock(&world.audit).arrives(&request, world.now());
                let is_stale = lock(&world.audit).is_stale(&request);
                let answer = match is_stale {
                    true => fenced(world, &alive, request.clone()).await?,
                    false => alive.coordinator.sync(request.clone()).await?,
                };
                trace_sync(world, &request, &answer);
                world.check(|audit, _| audit.answered(&request, &answer));
                Ok(Answer::Sync(answer))
            }
        }
    };
    let result: Result<Answer, tonic::Status> = tokio::select! {
        biased;
        () = alive.gone.cancelled() => return Err(reset()),
        result = answer => result,
    };
    result.map_err(|status| {
        if !matches!(status.code(), tonic::Code::Unavailable | tonic::Code::ResourceExhausted) {
            world.fail(Violation::new("no worker is refused", format!("{status}")));
        }
        reset()
    })
}

/// A Sync whose reports are all of leases that are over: past its holding, which it never comes to, so that what it changes
/// is seen by itself.
async fn fenced(world: &World, alive: &Alive, request: v1::SyncRequest) -> Result<v1::SyncResponse, tonic::Status> {
    let worker = request.worker_id.clone();
    let device_fails = !request.device_error.is_empty();
    let transition = move |state: &mut State, now: Now, effects: &mut Effects| {
        let (writes, commands) = (effects.writes.len(), effects.commands.len());
        let answer = state.sync(&request, now, effects);
        (answer, effects.writes[writes..].to_vec(), effects.commands[commands..].to_vec())
    };
    let stopped = || tonic::Status::unavailable("stopped");
    let (answer, writes, commands) = alive.coordinator.call(transition).await.ok_or_else(stopped)?;
    let answer = answer.unwrap_or(v1::SyncResponse { rejoin: true, ..v1::SyncResponse::default() });
    let is_own = |write: &Write| match write {
        Write::Meta(_) => true,
        Write::Worker(record) => record.worker_id == worker,
        Write::Task(task) => answer.start.iter().any(|start| start.lease == task.lease || start.lease == task.spare),
        Write::Node(record) => device_fails && !record.device.is_empty(),
        Write::Job(_) | Write::ForgetWorker(_) | Write::ForgetNode(_) => false,
        Write::Request(_) | Write::ForgetRequest(_) => false,
        Write::Invitation(_) | Write::ForgetInvitation(_) | Write::Identity(_) | Write::ForgetIdentity(_) => false,
        Write::Event(event) => {
            event.worker_id == worker && event.kind == "spare-began" || device_fails && event.kind == "machine-out"
        }
    };
    let foreign = writes.iter().filter(|write| !is_own(write)).map(|write| format!("{write:?}"));
    let carried_out = commands.iter().filter(|command| !matches!(command, Command::Wake(_)));
    let changes: Vec<String> = foreign.chain(carried_out.map(|command| format!("{command:?}"))).collect();
    if !changes.is_empty() {
        let details = format!("a stale report of {worker} led to {}", changes.join(", "));
        world.fail(Violation::new("a fenced attempt changes nothing", details));
    }
    Ok(answer)
}

fn trace_sync(world: &World, request: &v1::SyncRequest, answer: &v1::SyncResponse) {
    use v1::attempt_report::State;
    let name = |lease: &Option<v1::Lease>| lease.as_ref().map_or("", |lease| lease.attempt_id.as_str()).to_owned();
    let state = |report: &v1::AttemptReport| {
        let state = match &report.state {
            Some(State::Running(progress)) => format!("at {}", progress.step),
            Some(State::Done(_)) => "done".into(),
            Some(State::Failed(_)) => "failed".into(),
            Some(State::Released(_)) => "released".into(),
            None => "lost".to_owned(),
        };
        format!("{} {state}", name(&report.lease))
    };
    let states: Vec<String> = request.attempts.iter().map(state).collect();
    let starts: Vec<String> = answer.start.iter().map(|start| name(&start.lease)).collect();
    let cancels: Vec<String> = answer.cancel.iter().map(|cancel| name(&cancel.lease)).collect();
    let acknowledged: Vec<&str> = answer.acknowledged.iter().map(|lease| lease.attempt_id.as_str()).collect();
    let (worker, leaves) = (&request.worker_id, if request.draining { " leaving" } else { "" });
    world.trace(format_args!(
        "{worker}{leaves} {states:?} -> start {starts:?} cancel {cancels:?} acknowledged {acknowledged:?}{}",
        match answer {
            answer if answer.rejoin => " rejoin",
            answer if !answer.read_only.is_empty() => " read-only",
            _ => "",
        }
    ));
}

impl World {
    fn cuts_requests(&self, slot: usize) -> bool {
        lock(&self.slots[slot].cut).requests_until > self.now()
    }

    fn cuts_answers(&self, slot: usize) -> bool {
        lock(&self.slots[slot].cut).answers_until > self.now()
    }
}
