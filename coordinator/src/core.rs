//! What owns the state and its store, on one thread. Transitions queue up; a group of them is applied, made durable,
//! and only then answered, so that nothing is acknowledged that a crash could take back.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deltaconv_proto::code::Code;
use deltaconv_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::observe::metrics::Metrics;
use crate::planted::Planted;
use crate::schedule::{self, Command, Effects, Now, Settings, State};
use crate::store::{LocalStore, Store};

/// How often leases are looked at.
const TICK: Duration = Duration::from_millis(200);
/// Transitions that share one flush at most.
const GROUP: usize = 512;

/// How often a store that failed is tried again.
const PROBE: Duration = Duration::from_secs(2);

/// Why the core doesn't do what it is asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unserved {
    /// The thread has ended: the coordinator stops.
    #[error("the coordinator is stopping; try again in a moment")]
    Stopped,
    /// Nothing can be made durable. What was asked for is not done, and can be asked for again.
    #[error(
        "the coordinator is read-only since its state can't be written ({0}); make room or mend the disk, it tries again by itself"
    )]
    ReadOnly(Arc<str>),
}

impl Unserved {
    /// Names the cause, and what helps.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Stopped => Code::Stopping,
            Self::ReadOnly(_) => Code::StateUnwritable,
        }
    }
}

/// A worker that joined with another identity.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Foreign;

/// What a call finds.
enum Access<'a> {
    /// What it changes becomes durable before it is answered.
    Write(&'a mut State, Now, &'a mut Effects),
    /// Nothing can become durable.
    Read(&'a mut State, Now, &'a ReadOnly),
}

/// Sends what a call was answered; in its place that it is not durable, where that is so.
type Answer = Box<dyn FnOnce(Result<(), Unserved>) + Send>;
type Call = Box<dyn FnOnce(Access<'_>) -> Answer + Send>;

enum Message {
    Call(Call),
    Stop,
}

/// Reaches the core from any thread. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle {
    queue: mpsc::UnboundedSender<Message>,
}

impl Handle {
    /// Runs `transition` on the state; answers when its writes are durable.
    pub(crate) async fn call<R: Send + 'static>(
        &self,
        transition: impl FnOnce(&mut State, Now, &mut Effects) -> R + Send + 'static,
    ) -> Result<R, Unserved> {
        self.enter(|access| match access {
            Access::Write(state, now, effects) => Ok(transition(state, now, effects)),
            Access::Read(_, _, read_only) => Err(Unserved::ReadOnly(read_only.reason.clone())),
        })
        .await
    }

    /// The same, as often as it takes until it is durable: of what was done outside and can't be undone.
    pub(crate) async fn tell<R: Send + 'static>(
        &self,
        transition: impl FnOnce(&mut State, Now, &mut Effects) -> R + Clone + Send + 'static,
    ) -> Result<R, Unserved> {
        loop {
            match self.call(transition.clone()).await {
                Err(Unserved::ReadOnly(_)) => tokio::time::sleep(PROBE).await,
                answered => return answered,
            }
        }
    }

    /// Looks at the state; also at one that can't be written, as long as it can be read.
    pub(crate) async fn read<R: Send + 'static>(
        &self,
        look: impl FnOnce(&State, Now) -> R + Send + 'static,
    ) -> Result<R, Unserved> {
        self.enter(|access| match access {
            Access::Write(state, now, _) => Ok(look(state, now)),
            Access::Read(state, now, read_only) if read_only.is_durable => Ok(look(state, now)),
            Access::Read(_, _, read_only) => Err(Unserved::ReadOnly(read_only.reason.clone())),
        })
        .await
    }

    /// A worker's report and what it should be doing, or that it joined with another identity than this; while nothing can be made durable, only that it is heard.
    pub(crate) async fn sync<R: Send + 'static>(
        &self,
        identity: Arc<str>,
        request: v1::SyncRequest,
        answer: impl FnOnce(&State, &str, Option<v1::SyncResponse>) -> R + Send + 'static,
    ) -> Result<Result<R, Foreign>, Unserved> {
        self.enter(move |access| match access {
            Access::Write(state, _, _) | Access::Read(state, _, _) if !state.is_of(&request.worker_id, &identity) => {
                Ok(Err(Foreign))
            }
            Access::Write(state, now, effects) => {
                let response = state.sync(&request, now, effects);
                Ok(Ok(answer(state, &request.worker_id, response)))
            }
            Access::Read(state, now, _) => {
                let response = state.hear(&request, now);
                Ok(Ok(answer(state, &request.worker_id, Some(response))))
            }
        })
        .await
    }

    async fn enter<R: Send + 'static>(
        &self,
        call: impl FnOnce(Access<'_>) -> Result<R, Unserved> + Send + 'static,
    ) -> Result<R, Unserved> {
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |access| {
            let result = call(access);
            // Where nobody waits any more, the caller went away; what was done stands.
            Box::new(move |durable| drop(answer.send(durable.and(result))))
        });
        self.queue.send(Message::Call(call)).map_err(|_| Unserved::Stopped)?;
        answered.await.map_err(|_| Unserved::Stopped)?
    }

    /// Has the thread close the store and end, after what is queued.
    pub(crate) fn stop(&self) {
        // If the thread has ended already there is nothing to stop.
        let _ = self.queue.send(Message::Stop);
    }
}

/// The clock that transitions see.
pub(crate) struct Clock {
    start: Instant,
    wall: Box<dyn Fn() -> SystemTime + Send>,
    wall_start: SystemTime,
}

impl Clock {
    /// A clock that starts now; `wall` says what time it is for people.
    pub(crate) fn start(wall: impl Fn() -> SystemTime + Send + 'static) -> Self {
        Self { start: Instant::now(), wall_start: wall(), wall: Box::new(wall) }
    }

    /// The time.
    pub(crate) fn now(&self) -> Now {
        let unix = (self.wall)().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { monotonic: self.start.elapsed(), unix_ms: unix.as_millis() as u64 }
    }
}

/// A core that is about to run.
pub(crate) struct Core<S> {
    settings: Settings,
    state: State,
    store: S,
    clock: Clock,
    queue: mpsc::UnboundedReceiver<Message>,
    commands: mpsc::UnboundedSender<Command>,
    metrics: Metrics,
    read_only: Option<ReadOnly>,
}

/// The store failed.
struct ReadOnly {
    reason: Arc<str>,
    /// Whether the state is what is durable: otherwise it has changes of which nobody was told, and none may be.
    is_durable: bool,
    next_probe: Instant,
}

/// A core at work on its thread.
pub(crate) struct Running {
    /// The thread.
    pub(crate) thread: JoinHandle<()>,
    /// Its result, once it has ended; nothing if it panicked.
    pub(crate) ended: oneshot::Receiver<Result<(), crate::Error>>,
}

impl Core<LocalStore> {
    /// Runs on a thread of its own, which the store may block, and closes the store in the end.
    pub(crate) fn spawn(self, first: Effects) -> io::Result<Running> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (result, ended) = oneshot::channel();
        let run = move || {
            let ended = runtime.block_on(self.run(first)).map_err(crate::Error::from);
            // Who started the core waits for this, or doesn't care any more.
            let _ = result.send(ended.and_then(|store| Ok(store.close()?)));
        };
        let thread = std::thread::Builder::new().name("core".into()).spawn(run)?;
        Ok(Running { thread, ended })
    }
}

impl<S: Store> Core<S> {
    /// A core that begins on what `store` holds, and whose commands go to `commands`. The effects are for [`Self::run`].
    pub(crate) fn open(
        settings: Settings,
        mut store: S,
        clock: Clock,
        commands: mpsc::UnboundedSender<Command>,
        metrics: Metrics,
    ) -> Result<(Self, Handle, Effects), crate::Error> {
        let (state, first) = State::read(settings.clone(), &mut store, clock.now())?;
        let (sender, queue) = mpsc::unbounded_channel();
        let core = Self { settings, state, store, clock, queue, commands, metrics, read_only: None };
        Ok((core, Handle { queue: sender }, first))
    }

    /// Serves until it is stopped, and gives the store back. `first` are the effects of restoring the state.
    ///
    /// A store that fails makes it read-only. Memory is ahead of what is durable then, by changes of which nobody was told:
    /// once the store can be written again the core begins anew on what it holds, as another process would.
    ///
    /// # Errors
    /// That what is durable can't be understood.
    pub(crate) async fn run(mut self, first: Effects) -> Result<S, schedule::Error> {
        self.settle(first, Vec::new());
        let mut next_tick = Instant::now();
        let mut ticked = self.clock.now().monotonic;
        loop {
            let mut effects = Effects::default();
            let mut answers = Vec::new();
            let mut stop = false;
            let mut message = match timeout_at(next_tick, self.queue.recv()).await {
                Ok(received) => Some(received.unwrap_or(Message::Stop)),
                Err(_) => None,
            };
            while let Some(received) = message.take() {
                match received {
                    Message::Call(call) => {
                        let now = self.now();
                        let access = match &self.read_only {
                            None => Access::Write(&mut self.state, now, &mut effects),
                            Some(read_only) => Access::Read(&mut self.state, now, read_only),
                        };
                        answers.push(call(access));
                    }
                    Message::Stop => stop = true,
                }
                if answers.len() < GROUP && !stop {
                    message = self.queue.try_recv().ok();
                }
            }
            if next_tick <= Instant::now() {
                let now = self.now();
                // Stopped by a signal, or with its machine: what workers said meanwhile is still on its way here.
                let stood_still = self.clock.now().monotonic.saturating_sub(ticked) > self.settings.lease_ttl / 2;
                ticked = self.clock.now().monotonic;
                match self.read_only {
                    Some(_) => {}
                    None if stood_still => self.state.stood_still(now),
                    None => self.state.tick(now, &mut effects),
                }
                next_tick = Instant::now() + TICK;
            }
            self.settle(effects, answers);
            if stop {
                return Ok(self.store);
            }
            self.probe()?;
        }
    }

    fn now(&self) -> Now {
        let mut now = self.clock.now();
        if self.state.is_planted(Planted::LeaseByWallClock) {
            now.monotonic = (self.clock.wall)().duration_since(self.clock.wall_start).unwrap_or_default();
        }
        now
    }

    fn settle(&mut self, effects: Effects, mut answers: Vec<Answer>) {
        if self.state.is_planted(Planted::AckBeforeDurable) {
            answers.drain(..).for_each(|answer| answer(Ok(())));
        }
        let began = Instant::now();
        let applied = if effects.writes.is_empty() { Ok(()) } else { self.store.apply(&effects.writes) };
        if applied.is_ok() && !effects.writes.is_empty() {
            self.metrics.committed(effects.writes.len(), began.elapsed());
        }
        if let Err(error) = applied {
            let reason: Arc<str> = error.to_string().into();
            tracing::error!(%reason, "read-only: the state can't be written; workers go on, nothing new is given or accepted");
            answers.into_iter().for_each(|answer| answer(Err(Unserved::ReadOnly(reason.clone()))));
            self.turn_read_only(reason);
            return;
        }
        for answer in answers {
            answer(Ok(()));
        }
        for command in effects.commands {
            // The receiver goes away only when the coordinator stops; a restart gives the command again.
            let _ = self.commands.send(command);
        }
    }

    /// Nothing can be written. What is shown from now on is what is durable, as far as that can be read.
    fn turn_read_only(&mut self, reason: Arc<str>) {
        let now = self.now();
        let durable = State::read(self.settings.clone(), &mut self.store, now).ok();
        let is_durable = durable.is_some();
        if let Some((state, _)) = durable {
            self.state = state;
        }
        self.state.turn_read_only(reason.clone());
        self.read_only = Some(ReadOnly { reason, is_durable, next_probe: Instant::now() + PROBE });
    }

    /// Begins anew once a store that failed can be written again.
    fn probe(&mut self) -> Result<(), schedule::Error> {
        let now = Instant::now();
        let Some(read_only) = self.read_only.as_mut().filter(|read_only| read_only.next_probe <= now) else {
            return Ok(());
        };
        read_only.next_probe = now + PROBE;
        let now = self.now();
        let settings = self.settings.clone();
        let read = self.store.probe().map_err(crate::Error::from);
        let (mut state, mut first) = match read.and_then(|()| State::read(settings, &mut self.store, now)) {
            Ok(read) => read,
            Err(crate::Error::State(error)) => return Err(error),
            Err(error) => {
                let reason: Arc<str> = error.to_string().into();
                let said = self.read_only.as_mut().filter(|read_only| read_only.reason != reason);
                if let Some(read_only) = said {
                    tracing::warn!(%reason, "still read-only");
                    read_only.reason = reason.clone();
                    self.state.turn_read_only(reason);
                }
                return Ok(());
            }
        };
        let reason = self.read_only.take().map(|read_only| read_only.reason).unwrap_or_default();
        state.writable_again(&reason, &mut first);
        state.wake_all(&mut first);
        self.state = state;
        self.settle(first, Vec::new());
        if self.read_only.is_none() {
            tracing::info!("the state can be written again; the coordinator serves as before");
        }
        Ok(())
    }
}
