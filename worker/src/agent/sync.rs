//! The loop in which the worker says what is and is told what should be.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use deltaconv_proto::v1;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::attempt::{Attempt, Outcome, Shared};
use super::connect::{self, Connection};
use super::{Error, Options};
use crate::accelerator::Accelerator;
use crate::models::Models;
use crate::shards::Cache;
use crate::task::Stop;

/// How long the coordinator may hold a call of a worker that has nothing to do.
const HOLD_IDLE: Duration = Duration::from_secs(10);
/// The same while it works: so often it reports progress.
const HOLD_BUSY: Duration = Duration::from_millis(500);
/// A leaving worker waits this long for the coordinator to take back its leases.
const GRACE: Duration = Duration::from_secs(25);

type AttemptKey = (String, String);

fn key(lease: &v1::Lease) -> AttemptKey {
    (lease.task_id.clone(), lease.attempt_id.clone())
}

/// A worker that has joined.
pub(super) struct Agent {
    options: Options,
    connection: Connection,
    attempts: HashMap<AttemptKey, Attempt>,
    shared: Shared,
    ended: mpsc::UnboundedReceiver<(v1::Lease, Outcome)>,
    leave_by: Option<Instant>,
    /// What the cache's folder held when this worker last had nothing to do.
    cache: v1::NodeCache,
    /// The version of it that the coordinator knows.
    known_cache: u64,
}

enum Event {
    Answer(Result<v1::SyncResponse, Status>),
    Ended(v1::Lease, Outcome),
    Leave,
}

impl Agent {
    pub(super) fn new(options: Options, accelerator: Accelerator, cache: Cache, connection: Connection) -> Self {
        let (sender, ended) = mpsc::unbounded_channel();
        let shared = Shared {
            models: Arc::new(Models::default()),
            accelerator,
            cache,
            checkpoint_interval: connection.checkpoint_interval,
            ended: sender,
        };
        Self {
            options,
            connection,
            attempts: HashMap::new(),
            shared,
            ended,
            leave_by: None,
            cache: v1::NodeCache::default(),
            known_cache: 0,
        }
    }

    /// Works until `shutdown`, then hands back what it holds.
    pub(super) async fn run(mut self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut waits = connect::waits();
        let mut away = false;
        loop {
            match self.next_event(&shutdown).await {
                Event::Ended(lease, outcome) => self.ended(lease, outcome),
                Event::Leave => {
                    tracing::info!("leaving: attempts are stopped and handed back");
                    self.leave_by = Some(Instant::now() + GRACE);
                    self.stop_all(Stop::Release);
                }
                Event::Answer(Ok(response)) => {
                    if away {
                        tracing::info!("the coordinator is back");
                        (waits, away) = (connect::waits(), false);
                    }
                    let pause = Duration::from_millis(response.next_call_after_ms);
                    if !self.take(response, &shutdown).await? {
                        return Ok(());
                    }
                    tokio::time::sleep(pause).await;
                }
                Event::Answer(Err(status)) if connect::may_pass(&status) => {
                    if !away {
                        tracing::warn!(reason = status.message(), "the coordinator doesn't answer; going on without");
                        away = true;
                    }
                    tokio::time::sleep(waits.next().unwrap_or(HOLD_BUSY)).await;
                }
                Event::Answer(Err(status)) => {
                    self.stop_all(Stop::Fenced);
                    return Err(connect::refused(&self.options, &status));
                }
            }
            let has_left = self.leave_by.is_some_and(|by| self.attempts.is_empty() || Instant::now() >= by);
            if has_left {
                self.say_goodbye().await;
                return Ok(());
            }
        }
    }

    /// Whatever happens first. A call that waits is given up when there is something new to say: the next one says all.
    async fn next_event(&mut self, shutdown: &CancellationToken) -> Event {
        let leaving = self.leave_by.is_some();
        if self.attempts.is_empty() && !leaving {
            self.look_at_cache().await;
        }
        let request = self.request();
        tokio::select! {
            biased;
            Some((lease, outcome)) = self.ended.recv() => Event::Ended(lease, outcome),
            () = shutdown.cancelled(), if !leaving => Event::Leave,
            answer = self.connection.client.sync(request) => Event::Answer(answer.map(tonic::Response::into_inner)),
        }
    }

    fn request(&self) -> v1::SyncRequest {
        let hold = match self.attempts.is_empty() {
            true => HOLD_IDLE,
            false => HOLD_BUSY,
        };
        v1::SyncRequest {
            worker_id: self.connection.worker_id.clone(),
            attempts: self.attempts.values().map(Attempt::report).collect(),
            hold_ms: hold.as_millis() as u64,
            draining: self.leave_by.is_some(),
            cache: Some(self.statement()),
        }
    }

    /// Before it asks for work, since what it is given follows from it.
    async fn look_at_cache(&mut self) {
        let cache = self.shared.cache.clone();
        // A fault in there says nothing, which costs time alone.
        self.cache = tokio::task::spawn_blocking(move || cache.statement()).await.unwrap_or_default();
    }

    fn statement(&self) -> v1::NodeCache {
        match self.cache.version == self.known_cache {
            true => v1::NodeCache { version: self.cache.version, shards: Vec::new() },
            false => self.cache.clone(),
        }
    }

    fn ended(&mut self, lease: v1::Lease, outcome: Outcome) {
        let (task, attempt) = (&lease.task_id, &lease.attempt_id);
        match &outcome {
            Outcome::Done(done) => tracing::info!(task, attempt, seconds = done.busy_seconds, "attempt done"),
            Outcome::Failed(failure) => tracing::error!(task, attempt, reason = failure.message, "attempt failed"),
            Outcome::Released => tracing::info!(task, attempt, "attempt handed back"),
            Outcome::Dropped => {
                tracing::info!(task, attempt, "attempt dropped");
                return;
            }
        }
        if let Some(attempt) = self.attempts.get_mut(&key(&lease)) {
            attempt.outcome = Some(outcome);
        }
    }

    /// Does what the coordinator says. False if the worker ends instead.
    async fn take(&mut self, response: v1::SyncResponse, shutdown: &CancellationToken) -> Result<bool, Error> {
        self.known_cache = response.cache_version;
        if response.rejoin {
            tracing::warn!("the coordinator has forgotten this worker; joining again");
            self.stop_all(Stop::Fenced);
            self.attempts.clear();
            let Some(connection) = connect::join(&self.options, &self.shared.accelerator, shutdown).await? else {
                return Ok(false);
            };
            self.connection = connection;
            return Ok(true);
        }
        for lease in &response.acknowledged {
            self.attempts.remove(&key(lease));
        }
        for cancel in response.cancel {
            let Some(attempt) = cancel.lease.as_ref().and_then(|lease| self.attempts.remove(&key(lease))) else {
                continue;
            };
            attempt.stop(Stop::Fenced);
            let (task, attempt) = (&attempt.lease.task_id, &attempt.lease.attempt_id);
            tracing::info!(task, attempt, reason = cancel.reason, "attempt is over");
        }
        for start in response.start {
            let (Some(lease), Some(spec)) = (start.lease, start.task) else { continue };
            let leaving = self.leave_by.is_some();
            if !leaving && !self.attempts.contains_key(&key(&lease)) {
                self.attempts.insert(key(&lease), Attempt::start(lease, spec, &self.shared));
            }
        }
        Ok(true)
    }

    fn stop_all(&self, stop: Stop) {
        for attempt in self.attempts.values() {
            attempt.stop(stop);
        }
    }

    /// Tells the coordinator that nothing is held any more, if it can be reached.
    async fn say_goodbye(&mut self) {
        let request = v1::SyncRequest { hold_ms: 0, draining: true, ..self.request() };
        let said = tokio::time::timeout(Duration::from_secs(2), self.connection.client.sync(request)).await;
        let told = matches!(said, Ok(Ok(_)));
        tracing::info!(told, "worker left");
    }
}
