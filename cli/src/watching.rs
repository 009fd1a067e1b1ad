//! Following a job until it ends, also across a restart of the coordinator.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use deltaconv_proto::v1;

use crate::args::Connection;
use crate::client::{Client, Statuses};
use crate::error::Error;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const SLOWEST_RETRY: Duration = Duration::from_secs(5);

/// Who wants to know how a job goes.
pub(crate) trait Watcher {
    /// The job's status now.
    fn status(&mut self, status: &v1::JobStatus);
    /// Something about the watching itself.
    fn say(&mut self, line: &str);
}

/// Whether the job changes no more.
pub(crate) fn has_ended(status: &v1::JobStatus) -> bool {
    matches!(state(status), "done" | "failed" | "cancelled")
}

/// The job's state.
pub(crate) fn state(status: &v1::JobStatus) -> &str {
    status.summary.as_ref().map_or("", |summary| summary.state.as_str())
}

/// Tells `watcher` of every change until the job ends, and returns its last status. A coordinator that can't be
/// reached at first is an error; one that was there is waited for.
pub(crate) async fn follow(to: &Connection, job_id: &str, watcher: &mut impl Watcher) -> Result<v1::JobStatus, Error> {
    let mut statuses = open(to, job_id).await?;
    loop {
        match statuses.next().await {
            Ok(status) => {
                watcher.status(&status);
                if has_ended(&status) {
                    return Ok(status);
                }
            }
            Err(lost) if lost.is_unreachable() => {
                watcher.say(&format!("{lost}; waiting for it to come back"));
                statuses = reopen(to, job_id).await?;
                watcher.say(&format!("the coordinator at {to} is back"));
            }
            Err(refused) => return Err(refused),
        }
    }
}

async fn open(to: &Connection, job_id: &str) -> Result<Statuses, Error> {
    Client::connect(to).await?.watch(job_id).await
}

async fn reopen(to: &Connection, job_id: &str) -> Result<Statuses, Error> {
    patiently(|| open(to, job_id)).await
}

/// Makes a call again and again until the coordinator can be reached.
pub(crate) async fn patiently<T, F: Future<Output = Result<T, Error>>>(call: impl FnMut() -> F) -> Result<T, Error> {
    let back_off = ExponentialBuilder::default()
        .with_min_delay(FIRST_RETRY)
        .with_max_delay(SLOWEST_RETRY)
        .with_jitter()
        .without_max_times();
    call.retry(back_off).when(Error::is_unreachable).await
}
