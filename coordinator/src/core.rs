//! What owns the state and its store, on one thread. Transitions queue up; a group of them is applied, made durable,
//! and only then answered, so that nothing is acknowledged that a crash could take back.

use std::io;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::planted::Planted;
use crate::schedule::{Command, Effects, Now, State};
use crate::store::{self, LocalStore, Store};

/// How often leases are looked at.
const TICK: Duration = Duration::from_millis(200);
/// Transitions that share one flush at most.
const GROUP: usize = 512;

/// The thread has ended, because the store failed or the coordinator stops.
#[derive(Debug, thiserror::Error)]
#[error("the coordinator is stopping; try again in a moment")]
pub(crate) struct Stopped;

type Answer = Box<dyn FnOnce() + Send>;
type Transition = Box<dyn FnOnce(&mut State, Now, &mut Effects) -> Answer + Send>;

enum Message {
    Transition(Transition),
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
    ) -> Result<R, Stopped> {
        let (answer, answered) = oneshot::channel();
        let transition: Transition = Box::new(move |state, now, effects| {
            let result = transition(state, now, effects);
            Box::new(move || {
                // Nobody waits any more: the caller went away, the transition stands.
                let _ = answer.send(result);
            })
        });
        self.queue.send(Message::Transition(transition)).map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
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
    state: State,
    store: S,
    clock: Clock,
    queue: mpsc::UnboundedReceiver<Message>,
    commands: mpsc::UnboundedSender<Command>,
}

/// A core at work on its thread.
pub(crate) struct Running {
    /// The thread.
    pub(crate) thread: JoinHandle<()>,
    /// Its result, once it has ended; nothing if it panicked.
    pub(crate) ended: oneshot::Receiver<Result<(), store::Error>>,
}

impl Core<LocalStore> {
    /// Runs on a thread of its own, which the store may block, and closes the store in the end.
    pub(crate) fn spawn(self, first: Effects) -> io::Result<Running> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (result, ended) = oneshot::channel();
        let run = move || {
            // Who started the core waits for this, or doesn't care any more.
            let _ = result.send(runtime.block_on(self.run(first)).and_then(LocalStore::close));
        };
        let thread = std::thread::Builder::new().name("core".into()).spawn(run)?;
        Ok(Running { thread, ended })
    }
}

impl<S: Store> Core<S> {
    /// The core of `state`, whose commands go to `commands`.
    pub(crate) fn new(
        state: State,
        store: S,
        clock: Clock,
        commands: mpsc::UnboundedSender<Command>,
    ) -> (Self, Handle) {
        let (sender, queue) = mpsc::unbounded_channel();
        (Self { state, store, clock, queue, commands }, Handle { queue: sender })
    }

    /// Serves transitions until it is stopped, and gives the store back. `first` are the effects of restoring the state.
    /// An error of the store ends it: from then on memory would be ahead of what is durable.
    pub(crate) async fn run(mut self, first: Effects) -> Result<S, store::Error> {
        self.settle(first, Vec::new())?;
        let mut next_tick = Instant::now();
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
                    Message::Transition(transition) => {
                        let now = self.now();
                        answers.push(transition(&mut self.state, now, &mut effects));
                    }
                    Message::Stop => stop = true,
                }
                if answers.len() < GROUP && !stop {
                    message = self.queue.try_recv().ok();
                }
            }
            if next_tick <= Instant::now() {
                let now = self.now();
                self.state.tick(now, &mut effects);
                next_tick = Instant::now() + TICK;
            }
            self.settle(effects, answers)?;
            if stop {
                return Ok(self.store);
            }
        }
    }

    fn now(&self) -> Now {
        let mut now = self.clock.now();
        if self.state.is_planted(Planted::LeaseByWallClock) {
            now.monotonic = (self.clock.wall)().duration_since(self.clock.wall_start).unwrap_or_default();
        }
        now
    }

    fn settle(&mut self, effects: Effects, mut answers: Vec<Answer>) -> Result<(), store::Error> {
        if self.state.is_planted(Planted::AckBeforeDurable) {
            answers.drain(..).for_each(|answer| answer());
        }
        if !effects.writes.is_empty() {
            self.store.apply(&effects.writes)?;
        }
        for answer in answers {
            answer();
        }
        for command in effects.commands {
            // The receiver goes away only when the coordinator stops; a restart gives the command again.
            let _ = self.commands.send(command);
        }
        Ok(())
    }
}
