//! What attempts say, on its way from their workers and their stores to whoever follows it.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deltaconv_proto::ids::{AttemptId, TaskId};
use deltaconv_proto::keys::{self, Written};
use deltaconv_proto::objects::Objects;
use deltaconv_proto::{log, v1};
use futures::StreamExt;
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::core::Handle;
use crate::schedule::Attempts;

/// How often it is looked whether there is more.
const LOOK: Duration = Duration::from_millis(300);
/// A worker that works says something so often; if it says nothing of its log, who doesn't follow it waits no longer.
const PATIENCE: Duration = Duration::from_secs(8);
/// Lines of an attempt that wait for followers.
const LINES: usize = 4000;
/// Of one line, whatever its worker says.
const LENGTH: usize = 4000;
/// Attempts of a task whose stored logs are shown, the last ones.
const ATTEMPTS: usize = 50;
/// Followed at a time.
const FOLLOWERS: usize = 100;

/// The logs that somebody follows. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogDesk(Arc<Mutex<BTreeMap<String, Followed>>>);

#[derive(Debug, Default)]
struct Followed {
    followers: usize,
    /// Who works on it, and may say what it says.
    worker: String,
    /// The number of the first line that is kept.
    first: u64,
    lines: VecDeque<v1::LogLine>,
    /// Whether its worker has been heard of it.
    heard: bool,
}

impl Followed {
    fn next(&self) -> u64 {
        self.first + self.lines.len() as u64
    }
}

impl LogDesk {
    fn desk(&self) -> MutexGuard<'_, BTreeMap<String, Followed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wanted of the attempts that a worker reports, from the first line that isn't here.
    pub(super) fn wanted(&self, attempts: &[v1::AttemptReport]) -> Vec<v1::LogWanted> {
        let desk = self.desk();
        if desk.is_empty() {
            return Vec::new();
        }
        let attempts = attempts.iter().filter_map(|report| report.lease.as_ref());
        let wanted = attempts.filter_map(|lease| {
            let followed = desk.get(&lease.attempt_id)?;
            Some(v1::LogWanted { attempt_id: lease.attempt_id.clone(), first: followed.next() })
        });
        wanted.collect()
    }

    /// Takes what a worker says of its attempts' logs; what nobody asked for is passed over.
    pub(super) fn take(&self, worker: &str, pieces: &mut Vec<v1::LogPiece>) {
        if pieces.is_empty() {
            return;
        }
        let mut desk = self.desk();
        for v1::LogPiece { attempt_id, first, lines } in pieces.drain(..) {
            let Some(followed) = desk.get_mut(&attempt_id).filter(|followed| followed.worker == worker) else {
                continue;
            };
            followed.heard = true;
            // Numbers that nobody counts to; they could not be counted on from.
            if first > u64::MAX / 2 {
                continue;
            }
            if first > followed.next() {
                // What is between is gone.
                (followed.first, followed.lines) = (first, VecDeque::new());
            }
            let known = followed.next().saturating_sub(first) as usize;
            for mut line in lines.into_iter().skip(known) {
                line.message = line.message.chars().take(LENGTH).collect();
                followed.lines.push_back(line);
                if followed.lines.len() > LINES {
                    followed.lines.pop_front();
                    followed.first += 1;
                }
            }
        }
    }

    /// Follows an attempt until what is returned is dropped; `None` where too many do.
    fn follow(&self, attempt: &AttemptId, worker: &str) -> Option<Following> {
        let mut desk = self.desk();
        if desk.values().map(|followed| followed.followers).sum::<usize>() >= FOLLOWERS {
            return None;
        }
        let followed = desk.entry(attempt.to_string()).or_default();
        followed.followers += 1;
        worker.clone_into(&mut followed.worker);
        Some(Following { desk: self.clone(), attempt: attempt.clone() })
    }
}

/// As long as somebody follows an attempt.
struct Following {
    desk: LogDesk,
    attempt: AttemptId,
}

impl Following {
    /// The lines from this number on, and the number of the first of them; whether the worker has been heard.
    fn lines(&self, next: u64) -> (u64, Vec<v1::LogLine>, bool) {
        let desk = self.desk.desk();
        let Some(followed) = desk.get(self.attempt.as_str()) else { return (next, Vec::new(), false) };
        let first = next.max(followed.first);
        let skipped = (first - followed.first) as usize;
        (first, followed.lines.iter().skip(skipped).cloned().collect(), followed.heard)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut desk = self.desk.desk();
        if let Some(followed) = desk.get_mut(self.attempt.as_str()) {
            followed.followers -= 1;
            if followed.followers == 0 {
                desk.remove(self.attempt.as_str());
            }
        }
    }
}

/// What was and is said of a task.
pub(super) struct TaskLogs {
    core: Handle,
    desk: LogDesk,
    task: TaskId,
    follow: bool,
    objects: Objects,
    /// By attempt: the number of the next line to tell.
    told: BTreeMap<AttemptId, u64>,
    following: BTreeMap<AttemptId, (Following, String, Instant)>,
    has_begun: bool,
}

/// Where a task's log stands.
pub(super) type Logs = Pin<Box<dyn Stream<Item = Result<v1::TaskLog, Status>> + Send>>;

impl TaskLogs {
    /// What is said of `task`, and with `follow` what will be until it is over.
    pub(super) async fn stream(
        core: Handle,
        desk: LogDesk,
        task: TaskId,
        follow: bool,
        shutdown: CancellationToken,
    ) -> Result<Logs, Status> {
        let attempts = Self::attempts(&core, &task).await?;
        let objects = Objects::open(&attempts.output_url).map_err(|error| unreadable(&task, error))?;
        let (told, following) = (BTreeMap::new(), BTreeMap::new());
        let logs = Self { core, desk, task, follow, objects, told, following, has_begun: false };
        let pieces = futures::stream::unfold(Some(logs), move |logs| {
            let shutdown = shutdown.clone();
            async move {
                let mut logs = logs?;
                let next = tokio::select! {
                    () = shutdown.cancelled() => return None,
                    next = logs.next() => next,
                };
                match next {
                    Ok(Some(pieces)) => Some((Ok(pieces), Some(logs))),
                    Ok(None) => None,
                    Err(status) => Some((Err(status), None)),
                }
            }
        });
        let pieces = pieces.flat_map(|pieces| {
            let (pieces, error) = match pieces {
                Ok(pieces) => (pieces, None),
                Err(status) => (Vec::new(), Some(Err(status))),
            };
            futures::stream::iter(pieces.into_iter().map(Ok).chain(error))
        });
        Ok(Box::pin(pieces))
    }

    async fn attempts(core: &Handle, task: &TaskId) -> Result<Attempts, Status> {
        let task = task.clone();
        Ok(core.read(move |state, _| state.attempts(&task)).await??)
    }

    /// What is to be told next; `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<v1::TaskLog>>, Status> {
        loop {
            let attempts = Self::attempts(&self.core, &self.task).await?;
            let is_at_work = |attempt: &AttemptId| attempts.at_work.iter().any(|(id, _)| id == attempt);
            let ended: Vec<AttemptId> = self.following.keys().filter(|id| !is_at_work(id)).cloned().collect();
            let mut pieces = Vec::new();
            // What a worker that was lost had said last is here alone.
            for attempt in self.following.keys().cloned().collect::<Vec<_>>() {
                pieces.extend(self.heard(&attempt));
            }
            // What is stored is whole: it has the last words, and attempts that came and went between two looks.
            if !self.has_begun || !ended.is_empty() || attempts.is_over {
                for attempt in self.stored().await? {
                    if !is_at_work(&attempt) {
                        pieces.extend(self.read(&attempt).await?);
                    }
                }
            }
            ended.iter().for_each(|attempt| drop(self.following.remove(attempt)));
            self.has_begun = true;
            for (attempt, worker) in &attempts.at_work {
                if !self.following.contains_key(attempt) {
                    let following = self.desk.follow(attempt, worker);
                    let refused = || Status::resource_exhausted(format!("{FOLLOWERS} logs are followed already"));
                    let following = following.ok_or_else(refused)?;
                    self.following.insert(attempt.clone(), (following, worker.clone(), Instant::now()));
                }
            }
            if !pieces.is_empty() {
                return Ok(Some(pieces));
            }
            let waits_for_word = self.following.iter().any(|(attempt, (following, _, since))| {
                let (_, _, heard) = following.lines(0);
                !heard && !self.told.contains_key(attempt) && since.elapsed() < PATIENCE
            });
            let goes_on = if self.follow { !attempts.is_over } else { waits_for_word };
            if !goes_on {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What an attempt at work has said since.
    fn heard(&mut self, attempt: &AttemptId) -> Option<v1::TaskLog> {
        let (following, worker, _) = self.following.get(attempt)?;
        let next = self.told.get(attempt).copied().unwrap_or(0);
        let (first, lines, _) = following.lines(next);
        let worker = worker.clone();
        self.tell(attempt, worker, first, lines)
    }

    fn tell(
        &mut self,
        attempt: &AttemptId,
        worker_id: String,
        first: u64,
        lines: Vec<v1::LogLine>,
    ) -> Option<v1::TaskLog> {
        if lines.is_empty() {
            return None;
        }
        self.told.insert(attempt.clone(), first.saturating_add(lines.len() as u64));
        Some(v1::TaskLog { attempt_id: attempt.to_string(), worker_id, first, lines })
    }

    /// The attempts whose logs lie in the store, in the order in which they were leased.
    async fn stored(&self) -> Result<Vec<AttemptId>, Status> {
        let folder = self.objects.below(&keys::logs_of(&self.task)).map_err(|error| unreadable(&self.task, error))?;
        let keys = folder.list(10 * ATTEMPTS).await.map_err(|error| unreadable(&self.task, error))?;
        let of_task = |key: &String| {
            let written = Written::parse(&format!("{}/{key}", keys::logs_of(&self.task)))?;
            (written.kind == keys::Kind::Log).then_some(written.attempt)
        };
        let mut attempts: Vec<AttemptId> = keys.iter().filter_map(of_task).collect();
        attempts.sort_by_key(AttemptId::epoch);
        Ok(attempts.split_off(attempts.len().saturating_sub(ATTEMPTS)))
    }

    /// What is stored of an attempt and was not told.
    async fn read(&mut self, attempt: &AttemptId) -> Result<Option<v1::TaskLog>, Status> {
        let stored = self.objects.get(&keys::log(&self.task, attempt), log::MAX_BYTES).await;
        let bytes = match stored {
            Err(error) if error.is_missing() => return Ok(None),
            stored => stored.map_err(|error| unreadable(&self.task, error))?,
        };
        let (first, lines) = log::read(&String::from_utf8_lossy(&bytes));
        let next = self.told.get(attempt).copied().unwrap_or(0).max(first);
        let lines = lines.into_iter().skip((next - first) as usize).collect();
        let worker = self.following.get(attempt).map(|(_, worker, _)| worker.clone()).unwrap_or_default();
        Ok(self.tell(attempt, worker, next, lines))
    }
}

fn unreadable(task: &TaskId, error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the log of {task} can't be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt() -> AttemptId {
        AttemptId::new("a1-2-x").expect("valid")
    }

    fn report() -> Vec<v1::AttemptReport> {
        let lease = v1::Lease { attempt_id: attempt().to_string(), ..v1::Lease::default() };
        vec![v1::AttemptReport { lease: Some(lease), state: None }]
    }

    fn piece(first: u64, messages: &[&str]) -> Vec<v1::LogPiece> {
        let line = |message: &&str| v1::LogLine { message: (*message).to_owned(), ..v1::LogLine::default() };
        vec![v1::LogPiece { attempt_id: attempt().to_string(), first, lines: messages.iter().map(line).collect() }]
    }

    fn messages(following: &Following, next: u64) -> (u64, Vec<String>) {
        let (first, lines, _) = following.lines(next);
        (first, lines.into_iter().map(|line| line.message).collect())
    }

    #[test]
    fn a_log_is_wanted_as_long_as_somebody_follows_it() {
        let desk = LogDesk::default();
        assert_eq!(desk.wanted(&report()), []);
        desk.take("w1", &mut piece(0, &["nobody asked"]));
        let following = desk.follow(&attempt(), "w1").expect("room");
        let other = desk.follow(&attempt(), "w1").expect("room");
        let first_wanted = |desk: &LogDesk| desk.wanted(&report()).first().map(|wanted| wanted.first);
        assert_eq!(first_wanted(&desk), Some(0));
        desk.take("w1", &mut piece(0, &["a", "b"]));
        assert_eq!(first_wanted(&desk), Some(2));
        drop(other);
        // Said again, with more.
        desk.take("w1", &mut piece(1, &["b", "c"]));
        assert_eq!(messages(&following, 0), (0, vec!["a".into(), "b".into(), "c".into()]));
        assert_eq!(messages(&following, 2), (2, vec!["c".into()]));
        // What another worker says of it is nothing.
        desk.take("w2", &mut piece(3, &["forged"]));
        assert_eq!(messages(&following, 3), (3, Vec::new()));
        // The worker has forgotten what is between.
        desk.take("w1", &mut piece(10, &["later"]));
        assert_eq!(messages(&following, 3), (10, vec!["later".into()]));
        drop(following);
        assert_eq!(desk.wanted(&report()), []);
    }

    #[test]
    fn a_worker_that_never_stops_talking_fills_no_memory() {
        let desk = LogDesk::default();
        let following = desk.follow(&attempt(), "w1").expect("room");
        let long = "x".repeat(3 * LENGTH);
        for first in 0..LINES as u64 + 10 {
            desk.take("w1", &mut piece(first, &[if first % 1000 == 0 { &long } else { "line" }]));
        }
        let (first, lines) = messages(&following, 0);
        assert_eq!((first, lines.len()), (10, LINES));
        assert!(lines.iter().all(|line| line.len() <= LENGTH));
    }
}
