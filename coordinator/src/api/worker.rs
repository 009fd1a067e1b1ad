//! What workers call.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deltaconv_proto::code::Code;
use deltaconv_proto::ids::WorkerId;
use deltaconv_proto::v1;
use deltaconv_proto::v1::worker_service_server::WorkerService;
use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::{LogDesk, Wakers, enrol, invalid, who};
use crate::access::Access;
use crate::core::Handle;
use crate::observe::metrics::Metrics;
use crate::schedule::{LOCAL, State};

/// The longest that a Sync is held.
const MAX_HOLD: Duration = Duration::from_secs(20);
/// A worker runs few attempts at a time; more in one report is no worker of ours.
const MAX_ATTEMPTS: usize = 64;

/// What workers are answered. Cheap to clone.
#[derive(Clone)]
pub(crate) struct WorkerApi {
    core: Handle,
    wakers: Wakers,
    logs: LogDesk,
    metrics: Metrics,
    lease_ttl: Duration,
    checkpoint_interval: Duration,
}

/// The worker service: who calls is checked, and what they say is handed on.
pub(crate) struct WorkerDoor {
    api: WorkerApi,
    access: Access,
}

impl WorkerDoor {
    /// A service that hands on to `api`.
    pub(crate) fn new(api: WorkerApi, access: Access) -> Self {
        Self { api, access }
    }
}

impl WorkerApi {
    /// A service on `core`, telling workers the times they must keep.
    pub(crate) fn new(
        core: Handle,
        wakers: Wakers,
        logs: LogDesk,
        metrics: Metrics,
        lease_ttl: Duration,
        checkpoint_interval: Duration,
    ) -> Self {
        Self { core, wakers, logs, metrics, lease_ttl, checkpoint_interval }
    }

    /// A worker of this identity joins.
    pub(crate) async fn join(&self, identity: &Arc<str>, request: v1::JoinRequest) -> Result<v1::JoinResponse, Status> {
        let identity = identity.clone();
        let joined = self.core.call(move |state, now, effects| {
            let name = request.name.clone();
            let joined = state.join_as(&identity, request, now, effects);
            joined.inspect(|worker| tracing::info!(%worker, name, "worker joined"))
        });
        Ok(v1::JoinResponse {
            worker_id: joined.await??.to_string(),
            lease_ttl_ms: self.lease_ttl.as_millis() as u64,
            checkpoint_interval_ms: self.checkpoint_interval.as_millis() as u64,
        })
    }

    /// What a worker of this identity is told that says this; or, where something newer of it came before there was anything to
    /// tell, that.
    pub(crate) async fn answer<N>(
        &self,
        identity: &Arc<str>,
        mut request: v1::SyncRequest,
        newer: impl Future<Output = N>,
    ) -> Result<Said<N>, Status> {
        if request.attempts.len() > MAX_ATTEMPTS {
            let count = request.attempts.len();
            let message = format!("{count} attempts in one report; at most {MAX_ATTEMPTS}");
            return Err(Code::VersionsDiffer.status(tonic::Code::InvalidArgument, message));
        }
        let worker = WorkerId::new(request.worker_id.as_str()).map_err(invalid)?;
        self.logs.take(worker.as_str(), &mut request.logs);
        let hold = Duration::from_millis(request.hold_ms).min(MAX_HOLD);
        if hold.is_zero() {
            return self.ask(identity, request).await.map(Said::Answer);
        }
        let response = self.ask(identity, request.clone()).await?;
        if says_something(&request, &response) {
            return Ok(Said::Answer(response));
        }
        let bell = self.wakers.bell(&worker);
        tokio::select! {
            newer = newer => return Ok(Said::Newer(newer)),
            () = bell.notified() => {}
            () = tokio::time::sleep(hold) => {}
        }
        // Either way the worker is asked for again what it should be doing; the report itself is idempotent.
        self.ask(identity, request).await.map(Said::Answer)
    }

    async fn ask(&self, identity: &Arc<str>, request: v1::SyncRequest) -> Result<v1::SyncResponse, Status> {
        let (answers, asked) = (request.number, Instant::now());
        let logs_wanted = self.logs.wanted(&request.attempts);
        let worker = request.worker_id.clone();
        let response = self.core.sync(identity.clone(), request, |state, worker, response| {
            response.inspect(|response| {
                response.start.iter().for_each(|start| log_start(state, worker, start));
            })
        });
        let rejoin = || v1::SyncResponse { rejoin: true, ..v1::SyncResponse::default() };
        let foreign = |_| {
            let message = format!("{identity} is not who joined as worker {worker}, and speaks for itself alone");
            Code::Denied.status(tonic::Code::PermissionDenied, message)
        };
        let response = response.await?.map_err(foreign)?;
        self.metrics.answered(asked.elapsed());
        Ok(v1::SyncResponse { answers, logs_wanted, ..response.unwrap_or_else(rejoin) })
    }
}

/// What came of a request.
pub(crate) enum Said<N> {
    /// It is answered.
    Answer(v1::SyncResponse),
    /// It is outdated by what came after it.
    Newer(N),
}

/// One worker's requests on their way to answers.
struct Conversation {
    api: WorkerApi,
    access: Access,
    identity: Arc<str>,
    /// What its reports are counted by: its identity, or its connection where all have the same.
    of: Arc<str>,
    requests: Streaming<v1::SyncRequest>,
    has_failed: bool,
}

impl Conversation {
    async fn answer(&mut self) -> Option<Result<v1::SyncResponse, Status>> {
        let mut request = self.requests.message().await;
        while let Ok(Some(asked)) = request {
            // A stream lasts longer than the check that it began with.
            if self.access.register.is_revoked(&self.identity) {
                let message = format!("{} was revoked: it has to be invited again", self.identity);
                request = Err(Code::Revoked.status(tonic::Code::PermissionDenied, message));
                break;
            }
            self.access.rates.report(&self.of).await;
            match self.api.answer(&self.identity, asked, self.requests.message()).await {
                Ok(Said::Answer(answer)) => return Some(Ok(answer)),
                Ok(Said::Newer(newer)) => request = newer,
                Err(status) => request = Err(status),
            }
        }
        // After an error nothing follows.
        self.has_failed = request.is_err();
        request.err().map(Err)
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
impl WorkerService for WorkerDoor {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let who = who(&request)?;
        let request = request.into_inner();
        let name: String = request.name.chars().take(128).collect();
        let joined = self.api.join(&who.name, request).await;
        self.access.audit.note(&who, "Join", &name, joined).map(Response::new)
    }

    type SyncStream = Pin<Box<dyn Stream<Item = Result<v1::SyncResponse, Status>> + Send>>;

    async fn sync(&self, request: Request<Streaming<v1::SyncRequest>>) -> Result<Response<Self::SyncStream>, Status> {
        let who = who(&request)?;
        let of = if &*who.name == LOCAL { who.from.to_string().into() } else { who.name.clone() };
        let (api, access, identity) = (self.api.clone(), self.access.clone(), who.name);
        let requests = request.into_inner();
        let conversation = Conversation { api, access, identity, of, requests, has_failed: false };
        let answers = futures::stream::unfold(conversation, |mut conversation| async move {
            let answer = if conversation.has_failed { None } else { conversation.answer().await };
            answer.map(|answer| (answer, conversation))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let who = who(&request)?;
        let renewed = enrol::renew(&self.api.core, &self.access, &who, request.into_inner()).await;
        self.access.audit.note(&who, "Renew", "", renewed).map(Response::new)
    }
}
