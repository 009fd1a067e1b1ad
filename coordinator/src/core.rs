//! The one thread that owns the state and its store. Transitions queue up; a group of them is applied, made durable,
//! and only then answered, so that nothing is acknowledged that a crash could take back.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};

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
    queue: Sender<Message>,
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
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The time.
    pub(crate) fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { monotonic: self.start.elapsed(), unix_ms: unix.as_millis() as u64 }
    }
}

/// A core that is about to run.
pub(crate) struct Core {
    state: State,
    store: LocalStore,
    clock: Clock,
    queue: Receiver<Message>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Core {
    /// The core of `state`, whose commands go to `commands`.
    pub(crate) fn new(
        state: State,
        store: LocalStore,
        clock: Clock,
        commands: mpsc::UnboundedSender<Command>,
    ) -> (Self, Handle) {
        let (sender, queue) = channel();
        (Self { state, store, clock, queue, commands }, Handle { queue: sender })
    }

    /// Serves transitions until it is stopped. `first` are the effects of restoring the state. An error of the store
    /// ends it: from then on memory would be ahead of what is durable.
    pub(crate) fn run(mut self, first: Effects) -> Result<(), store::Error> {
        self.settle(first, Vec::new())?;
        let mut next_tick = Instant::now();
        loop {
            let mut effects = Effects::default();
            let mut answers = Vec::new();
            let mut stop = false;
            let mut message = match self.queue.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Message::Stop),
            };
            while let Some(received) = message.take() {
                match received {
                    Message::Transition(transition) => {
                        answers.push(transition(&mut self.state, self.clock.now(), &mut effects));
                    }
                    Message::Stop => stop = true,
                }
                if answers.len() < GROUP && !stop {
                    message = self.queue.try_recv().ok();
                }
            }
            if next_tick <= Instant::now() {
                self.state.tick(self.clock.now(), &mut effects);
                next_tick = Instant::now() + TICK;
            }
            self.settle(effects, answers)?;
            if stop {
                return self.store.close();
            }
        }
    }

    fn settle(&mut self, effects: Effects, answers: Vec<Answer>) -> Result<(), store::Error> {
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
