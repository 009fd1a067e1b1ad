//! The coordinator behind a URL and a token file.

use std::time::Duration;

use deltaconv_proto::protocol::{self, Caller, Handshake};
use deltaconv_proto::v1::worker_service_client::WorkerServiceClient;
use deltaconv_proto::{code, v1};
use tokio::sync::mpsc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use super::coordinator::{Coordinator, Unanswered};
use super::{Error, Options, device};
use crate::accelerator::Accelerator;

/// Puts the token on every call.
#[derive(Clone)]
pub(crate) struct Bearer(MetadataValue<Ascii>);

impl Bearer {
    /// The token as a file holds it; `None` where no header can carry it.
    pub(crate) fn new(text: &str) -> Option<Self> {
        format!("Bearer {}", text.trim()).parse().ok().map(Self)
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Calls with a token, of a coordinator that understands this worker.
pub(crate) type Client = WorkerServiceClient<InterceptedService<Handshake<Channel>, Bearer>>;

/// Calls through `channel`.
pub(crate) fn client(channel: Channel, bearer: Bearer) -> Client {
    WorkerServiceClient::with_interceptor(Handshake::new(channel, Caller::Worker), bearer)
}

/// Requests that wait for their way: more are of no use, since the last one says all.
const WAITING: usize = 4;

/// What a worker says to the coordinator and is answered, over a stream that is opened again where it broke.
pub(crate) struct Calls {
    client: Client,
    /// Of the last request.
    number: u64,
    stream: Option<(mpsc::Sender<v1::SyncRequest>, Streaming<v1::SyncResponse>)>,
}

impl Calls {
    /// Calls through `client`.
    pub(crate) fn new(client: Client) -> Self {
        Self { client, number: 0, stream: None }
    }

    /// Says something and waits for the answer. A call that is dropped may have arrived.
    pub(crate) async fn sync(&mut self, request: v1::SyncRequest) -> Result<v1::SyncResponse, Status> {
        self.number += 1;
        let request = v1::SyncRequest { number: self.number, ..request };
        let answer = self.answer(request).await;
        if answer.is_err() {
            self.stream = None;
        }
        answer
    }

    async fn answer(&mut self, request: v1::SyncRequest) -> Result<v1::SyncResponse, Status> {
        let answers = match &mut self.stream {
            Some((requests, answers)) => {
                // One that has ended says why among its answers.
                let _ = requests.send(request).await;
                answers
            }
            None => {
                let (requests, mut sent) = mpsc::channel(WAITING);
                // There is room for the first.
                let _ = requests.send(request).await;
                let answers = self.client.sync(futures::stream::poll_fn(move |cx| sent.poll_recv(cx))).await?;
                &mut self.stream.insert((requests, answers.into_inner())).1
            }
        };
        while let Some(answer) = answers.message().await? {
            if answer.answers == self.number {
                return Ok(answer);
            }
        }
        Err(Status::unavailable("the coordinator ended the stream"))
    }
}

/// Whether the same call may succeed later. A coordinator that is away, starting or stopping is worth waiting for.
fn may_pass(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::ResourceExhausted => true,
        // tonic's word for a connection that broke in the middle.
        Code::Unknown | Code::Internal => true,
        _ => false,
    }
}

/// What the last join gave.
struct Session {
    calls: Calls,
    bearer: Bearer,
    /// After the time that an answer may be kept it is waited for so long.
    patience: Duration,
}

/// The coordinator, by gRPC.
pub(super) struct Grpc {
    options: Options,
    device: v1::Device,
    endpoint: Endpoint,
    session: Option<Session>,
}

impl Grpc {
    /// The coordinator that `options` name, which sees this worker compute on `accelerator`.
    pub(super) fn new(options: Options, accelerator: &Accelerator) -> Result<Self, Error> {
        let address = |reason: String| Error::Address { url: options.coordinator.clone(), reason };
        let endpoint = Endpoint::from_shared(options.coordinator.clone()).map_err(|e| address(e.to_string()))?;
        if endpoint.uri().scheme_str() != Some("http") {
            return Err(address("it doesn't start with http://".into()));
        }
        let endpoint = endpoint
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10));
        let device = device::describe(options.threads, accelerator);
        Ok(Self { options, device, endpoint, session: None })
    }

    async fn bearer(&self) -> Result<Bearer, Unanswered> {
        let path = &self.options.token_file;
        let text = match tokio::fs::read_to_string(path).await {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Unanswered::Away(format!("token file {} is not there yet", path.display())));
            }
            Err(source) => return Err(Unanswered::Refused(Error::TokenFile { path: path.clone(), source })),
        };
        Bearer::new(&text).ok_or_else(|| Unanswered::Refused(Error::Token(path.clone())))
    }

    fn unanswered(&self, status: &Status) -> Unanswered {
        let reason = status.message().to_owned();
        match may_pass(status) {
            true => Unanswered::Away(reason),
            false => {
                let code = code::Code::of_status(status).unwrap_or(code::Code::WorkerRefused);
                Unanswered::Refused(Error::Refused { url: self.options.coordinator.clone(), reason, code })
            }
        }
    }
}

impl Coordinator for Grpc {
    fn address(&self) -> &str {
        &self.options.coordinator
    }

    async fn join(&mut self) -> Result<v1::JoinResponse, Unanswered> {
        let bearer = self.bearer().await?;
        let channel = self.endpoint.connect().await.map_err(|e| Unanswered::Away(root_cause(&e)))?;
        let mut client = client(channel, bearer.clone());
        let request = v1::JoinRequest {
            name: self.options.name.clone(),
            device: Some(self.device.clone()),
            version: protocol::RELEASE.into(),
            node: self.options.node.clone(),
            protocol: protocol::OURS.to_string(),
        };
        let joined = client.join(request).await.map_err(|status| self.unanswered(&status))?.into_inner();
        // Half a lease is left for another connection then.
        let patience = Duration::from_millis(joined.lease_ttl_ms) / 2;
        self.session = Some(Session { calls: Calls::new(client), bearer, patience });
        Ok(joined)
    }

    async fn sync(&mut self, request: v1::SyncRequest) -> Result<v1::SyncResponse, Unanswered> {
        let Some(session) = &mut self.session else { return Err(Unanswered::Away("not joined yet".into())) };
        let limit = Duration::from_millis(request.hold_ms) + session.patience;
        match tokio::time::timeout(limit, session.calls.sync(request)).await {
            Ok(answer) => answer.map_err(|status| self.unanswered(&status)),
            Err(_) => {
                // Where a network swallows packets nothing ends a connection, and what is sent again on an old one comes
                // ever later: a new one is there as soon as the network is.
                let channel = self.endpoint.connect_lazy();
                session.calls = Calls::new(client(channel, session.bearer.clone()));
                Err(Unanswered::Away(format!("no answer within {limit:?}")))
            }
        }
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
