//! When checkpoints are written, and how: while training goes on.

use std::ops::Range;
use std::time::{Duration, Instant};

use deltaconv_proto::code::Code;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::{keys, v1};
use tokio::task::JoinSet;

use crate::task::{Context, Error};

/// Of a task's predicted length, what may lie between two checkpoints. What is repeated after a worker's loss is that, and what
/// was done until the coordinator knew of the checkpoint: less than as much again.
const REPEATED: f64 = 0.01;
/// Of a training's time, what checkpoints may hold it up.
const HELD_UP: f64 = 0.02;
/// Shorter intervals save nobody time, and each checkpoint is a durable change of the coordinator's.
const SHORTEST: Duration = Duration::from_millis(100);

/// What a checkpoint holds.
pub(crate) trait Snapshot: Send + 'static {
    /// Steps that were taken.
    fn step(&self) -> u64;

    /// The object's bytes.
    fn encode(&self) -> Result<Vec<u8>, Error>;
}

/// The checkpoints of one attempt. Those that are being written when it is dropped are given up.
pub(crate) struct Checkpoints<'a> {
    context: &'a Context,
    schedule: Schedule,
    /// Of the newest one that was begun, or that the attempt resumed from.
    newest: u64,
    /// How many were begun, and how long they held training up.
    begun: (u32, Duration),
    writing: JoinSet<()>,
}

impl<'a> Checkpoints<'a> {
    /// Of an attempt that is about to take these steps.
    pub(crate) fn new(context: &'a Context, steps: Range<u64>) -> Self {
        let newest = steps.start;
        let schedule = Schedule::new(context.checkpoint_interval, steps, Instant::now());
        Self { context, schedule, newest, begun: Default::default(), writing: JoinSet::new() }
    }

    /// How many were begun, and how long they held training up.
    pub(crate) fn begun(&self) -> (u32, Duration) {
        self.begun
    }

    /// Whether it is time for the next one, after this step.
    pub(crate) fn is_due(&mut self, step: u64) -> bool {
        while self.writing.try_join_next().is_some() {}
        self.writing.is_empty() && self.schedule.is_due(step, Instant::now())
    }

    /// Takes a snapshot, and has it written while training goes on. One that can't be written costs its interval, and no more:
    /// the next one is tried all the same.
    pub(crate) fn write<S: Snapshot>(&mut self, take: impl FnOnce() -> Result<S, Error>) -> Result<(), Error> {
        let began = Instant::now();
        let snapshot = take()?;
        let held_up = began.elapsed();
        self.schedule.wrote(began, held_up);
        self.begun = (self.begun.0 + 1, self.begun.1 + held_up);
        self.newest = snapshot.step();
        let step = snapshot.step();
        let key = keys::checkpoint(&self.context.task, &self.context.attempt, step);
        let (objects, supervision) = (self.context.objects.clone(), self.context.supervision.clone());
        let task = self.context.task.clone();
        let writing = async move {
            match store(&objects, key, snapshot).await {
                Ok(object) => supervision.reached(v1::Checkpoint { object: Some(object), step }),
                Err(error) => tracing::warn!(%task, step, %error, "a checkpoint can't be written"),
            }
        };
        self.writing.spawn_on(writing, &self.context.runtime);
        Ok(())
    }

    /// Writes where training is at `step`, if that isn't written already, and waits for it: another attempt goes on from there.
    pub(crate) fn hand_back<S: Snapshot>(
        &mut self,
        step: u64,
        take: impl FnOnce() -> Result<S, Error>,
    ) -> Result<(), Error> {
        if step > self.newest {
            self.write(take)?;
        }
        self.context.wait(async { while self.writing.join_next().await.is_some() {} });
        Ok(())
    }
}

async fn store(objects: &Objects, key: String, snapshot: impl Snapshot) -> Result<v1::ObjectRef, Error> {
    let encode = move || -> Result<_, Error> {
        let bytes = snapshot.encode()?;
        Ok((v1::ObjectRef::of(key, &bytes), bytes))
    };
    let encoded = tokio::task::spawn_blocking(encode).await;
    let (object, bytes) = encoded.map_err(|fault| Error::Unexpected {
        what: "a checkpoint that is being written".to_owned(),
        reason: fault.to_string(),
        code: Code::Fault,
    })??;
    objects.put_object(&object, bytes).await?;
    Ok(object)
}

/// When the next checkpoint is due.
struct Schedule {
    /// No interval is longer.
    limit: Duration,
    /// Of the attempt.
    steps: Range<u64>,
    began: Instant,
    last: Instant,
    /// How long the last one held training up.
    held_up: Duration,
}

impl Schedule {
    fn new(limit: Duration, steps: Range<u64>, now: Instant) -> Self {
        Self { limit, steps, began: now, last: now, held_up: Duration::ZERO }
    }

    /// After `step`.
    fn is_due(&self, step: u64, now: Instant) -> bool {
        let taken = step.saturating_sub(self.steps.start).max(1);
        let seconds = (now - self.began).as_secs_f64() / taken as f64 * self.steps.end as f64;
        now - self.last >= interval(self.limit, seconds, self.held_up)
    }

    fn wrote(&mut self, began: Instant, held_up: Duration) {
        (self.last, self.held_up) = (began, held_up);
    }
}

/// Between two checkpoints of a task of so many seconds that hold it up so long each: little enough that what is repeated doesn't
/// matter, and enough that writing them doesn't.
fn interval(limit: Duration, seconds: f64, held_up: Duration) -> Duration {
    let enough = held_up.div_f64(HELD_UP).max(SHORTEST);
    let little = Duration::try_from_secs_f64(REPEATED * seconds).unwrap_or(limit);
    little.max(enough).min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn milliseconds(of: u64) -> Duration {
        Duration::from_millis(of)
    }

    #[test]
    fn an_interval_is_a_hundredth_of_the_task_unless_checkpoints_take_long() {
        assert_eq!(interval(LIMIT, 60.0, Duration::ZERO), milliseconds(600));
        assert_eq!(interval(LIMIT, 60.0, milliseconds(12)), milliseconds(600));
        // A fiftieth of the time is spent on them.
        assert_eq!(interval(LIMIT, 60.0, milliseconds(40)), milliseconds(2000));
        assert_eq!(interval(LIMIT, 2.0, Duration::ZERO), SHORTEST);
        // The setting is the longest, whatever a task or a checkpoint takes.
        assert_eq!(interval(LIMIT, 1e9, Duration::ZERO), LIMIT);
        assert_eq!(interval(LIMIT, f64::MAX, Duration::ZERO), LIMIT);
        assert_eq!(interval(LIMIT, 60.0, milliseconds(900)), LIMIT);
        assert_eq!(interval(milliseconds(50), 60.0, Duration::ZERO), milliseconds(50));
    }

    /// The steps after which checkpoints are due, where each step takes so long.
    fn due(steps: Range<u64>, step: Duration, held_up: Duration) -> Vec<u64> {
        let mut now = Instant::now();
        let mut schedule = Schedule::new(LIMIT, steps.clone(), now);
        let mut due = Vec::new();
        for taken in steps.start + 1..=steps.end {
            now += step;
            if schedule.is_due(taken, now) {
                due.push(taken);
                schedule.wrote(now, held_up);
                now += held_up;
            }
        }
        due
    }

    #[test]
    fn checkpoints_follow_from_steps_and_their_pace() {
        // 1000 steps in 50 s: every half second.
        let hundred: Vec<u64> = (1..=100).map(|of| 10 * of).collect();
        assert_eq!(due(0..1000, milliseconds(50), Duration::ZERO), hundred);
        // The rest of a task is as long a task.
        assert_eq!(due(900..1000, milliseconds(50), Duration::ZERO), hundred[90..].to_vec());
        // Steps that take longer than an interval: after each.
        assert_eq!(due(0..20, milliseconds(700), Duration::ZERO), (1..=20).collect::<Vec<_>>());
        // Each holds up for 50 ms, which shows at the first one: the others are 2.5 s apart.
        let due = due(0..1000, milliseconds(50), milliseconds(50));
        assert_eq!(due[0], 10);
        assert!(due.len() > 2 && due.windows(2).all(|two| two[1] - two[0] == 49), "{due:?}");
    }
}
