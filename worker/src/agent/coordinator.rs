//! The coordinator, as a worker sees it.

use std::future::Future;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use deltaconv_proto::v1;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Error;

/// Why a call has no answer.
#[derive(Debug)]
pub enum Unanswered {
    /// The coordinator is away, starting or stopping: the same call may succeed later.
    Away(String),
    /// No later call will do better.
    Refused(Error),
}

/// Who gives work. A call that is dropped may have arrived nevertheless.
pub trait Coordinator: Send {
    /// Where it is, for people.
    fn address(&self) -> &str;

    /// Makes this process known, under an id of its own.
    fn join(&mut self) -> impl Future<Output = Result<v1::JoinResponse, Unanswered>> + Send;

    /// States what this process is doing; the answer says what it should be doing.
    fn sync(&mut self, request: v1::SyncRequest) -> impl Future<Output = Result<v1::SyncResponse, Unanswered>> + Send;

    /// From which the jitter of waits between calls is drawn; from the process' own randomness if it is `None`.
    fn jitter_seed(&self) -> Option<u64> {
        None
    }
}

/// Waits between tries. The jitter may double each, so that a restarted coordinator is met within a second.
pub(super) fn waits(jitter_seed: Option<u64>) -> impl Iterator<Item = Duration> {
    let mut builder = ExponentialBuilder::default().with_min_delay(Duration::from_millis(100));
    builder = builder.with_max_delay(Duration::from_millis(500)).with_jitter().without_max_times();
    if let Some(seed) = jitter_seed {
        builder = builder.with_jitter_seed(seed);
    }
    builder.build()
}

/// Joins, however long that takes, or until the given time. `None` when that or `shutdown` comes first.
pub(super) async fn join(
    coordinator: &mut impl Coordinator,
    until: Option<Instant>,
    shutdown: &CancellationToken,
) -> Result<Option<v1::JoinResponse>, Error> {
    let mut said = false;
    for wait in waits(coordinator.jitter_seed()) {
        let answer = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            () = reached(until) => break,
            answer = coordinator.join() => answer,
        };
        match answer {
            Ok(joined) => {
                tracing::info!(worker = joined.worker_id, coordinator = coordinator.address(), "joined");
                return Ok(Some(joined));
            }
            Err(Unanswered::Refused(error)) => return Err(error),
            Err(Unanswered::Away(reason)) if !said => {
                tracing::info!(coordinator = coordinator.address(), reason, "waiting for the coordinator");
                said = true;
            }
            Err(Unanswered::Away(_)) => {}
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            () = reached(until) => break,
            () = tokio::time::sleep(wait) => {}
        }
    }
    Ok(None)
}

/// Waits for that time, if there is one.
pub(super) async fn reached(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
