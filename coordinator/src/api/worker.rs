//! What workers call.

use std::time::Duration;

use deltaconv_proto::ids::WorkerId;
use deltaconv_proto::v1;
use deltaconv_proto::v1::worker_service_server::WorkerService;
use tonic::{Request, Response, Status};

use super::{Wakers, invalid};
use crate::core::Handle;
use crate::schedule::State;

/// The longest that a Sync is held.
const MAX_HOLD: Duration = Duration::from_secs(20);
/// A worker runs few attempts at a time; more in one report is no worker of ours.
const MAX_ATTEMPTS: usize = 64;

/// The worker service.
pub(crate) struct WorkerApi {
    core: Handle,
    wakers: Wakers,
    lease_ttl: Duration,
    checkpoint_interval: Duration,
}

impl WorkerApi {
    /// A service on `core`, telling workers the times they must keep.
    pub(crate) fn new(core: Handle, wakers: Wakers, lease_ttl: Duration, checkpoint_interval: Duration) -> Self {
        Self { core, wakers, lease_ttl, checkpoint_interval }
    }

    async fn sync_once(&self, request: v1::SyncRequest) -> Result<v1::SyncResponse, Status> {
        let rejoin = v1::SyncResponse { rejoin: true, ..v1::SyncResponse::default() };
        let response = self.core.sync(request, |state, worker, response| {
            response.inspect(|response| {
                response.start.iter().for_each(|start| log_start(state, worker, start));
            })
        });
        Ok(response.await?.unwrap_or(rejoin))
    }
}

/// Says which task a worker is given, and why this one.
fn log_start(state: &State, worker: &str, start: &v1::Start) {
    let Some(lease) = &start.lease else { return };
    let v1::Lease { task_id: task, attempt_id: attempt, epoch } = lease;
    let because = state.held(lease).filter(|held| *held > 0.0);
    let because = because.map(|held| format!("its node holds {:.0} % of the shards", 100.0 * held));
    tracing::info!(task, attempt, epoch, worker, because, "task leased");
}

fn says_something(request: &v1::SyncRequest, response: &v1::SyncResponse) -> bool {
    let has_more_to_say = request.cache.as_ref().map_or(0, |cache| cache.version) != response.cache_version;
    let answers = response.start.len() + response.cancel.len() + response.acknowledged.len();
    response.rejoin || has_more_to_say || answers > 0
}

#[tonic::async_trait]
impl WorkerService for WorkerApi {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let request = request.into_inner();
        let joined = self.core.call(move |state, now, effects| {
            let name = request.name.clone();
            state.join(request, now, effects).inspect(|worker| tracing::info!(%worker, name, "worker joined"))
        });
        Ok(Response::new(v1::JoinResponse {
            worker_id: joined.await??.to_string(),
            lease_ttl_ms: self.lease_ttl.as_millis() as u64,
            checkpoint_interval_ms: self.checkpoint_interval.as_millis() as u64,
        }))
    }

    async fn sync(&self, request: Request<v1::SyncRequest>) -> Result<Response<v1::SyncResponse>, Status> {
        let request = request.into_inner();
        if request.attempts.len() > MAX_ATTEMPTS {
            let count = request.attempts.len();
            return Err(Status::invalid_argument(format!("{count} attempts in one report; at most {MAX_ATTEMPTS}")));
        }
        let worker = WorkerId::new(request.worker_id.clone()).map_err(invalid)?;
        let hold = Duration::from_millis(request.hold_ms).min(MAX_HOLD);
        let response = self.sync_once(request.clone()).await?;
        if says_something(&request, &response) || hold.is_zero() {
            return Ok(Response::new(response));
        }
        let bell = self.wakers.bell(&worker);
        // Either way the worker is asked for again what it should be doing; the report itself is idempotent.
        let _ = tokio::time::timeout(hold, bell.notified()).await;
        Ok(Response::new(self.sync_once(request).await?))
    }
}
