//! The coordinator behind a URL, and what this worker shows it.

use std::time::{Duration, Instant, SystemTime};

use deltaconv_proto::protocol::{self, Caller, Handshake};
use deltaconv_proto::tls::{self, Connector, Credentials, Invitation, SocketError};
use deltaconv_proto::v1::enrolment_service_client::EnrolmentServiceClient;
use deltaconv_proto::v1::worker_service_client::WorkerServiceClient;
use deltaconv_proto::{code, v1};
use tokio::sync::mpsc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use super::coordinator::{Coordinator, Unanswered};
use super::identity::{Folder, Identity, Key};
use super::{Admission, Error, Options, device};
use crate::accelerator::Accelerator;

/// A coordinator that is there answers a connection in much less.
const CONNECT: Duration = Duration::from_secs(5);
/// After a renewal that failed, time to the next.
const RENEW: Duration = Duration::from_secs(600);

/// Puts a token on every call, where a connection says nothing of who calls.
#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    /// The token as a file holds it; `None` where no header can carry it.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let value: MetadataValue<Ascii> = format!("Bearer {}", text.trim()).parse().ok()?;
        Some(Self(Some(value)))
    }

    /// No token: a certificate says it.
    fn none() -> Self {
        Self(None)
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
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
    entrance: Entrance,
    client: Client,
    /// After the time that an answer may be kept it is waited for so long.
    patience: Duration,
}

/// Where a coordinator is and what it is shown.
#[derive(Clone)]
struct Entrance {
    endpoint: Endpoint,
    connector: Connector,
    bearer: Bearer,
}

impl Entrance {
    fn client(&self, channel: Channel) -> Client {
        client(channel, self.bearer.clone())
    }
}

/// The coordinator, by gRPC.
pub(super) struct Grpc {
    options: Options,
    device: v1::Device,
    folder: Option<Folder>,
    identity: Option<Identity>,
    /// Which of the coordinator's addresses is tried.
    turn: usize,
    renewing: Option<Instant>,
    session: Option<Session>,
}

impl Grpc {
    /// The coordinator that `options` name, which sees this worker compute on `accelerator`.
    pub(super) fn new(options: Options, accelerator: &Accelerator) -> Result<Self, Error> {
        let device = device::describe(options.threads, accelerator);
        let folder = Folder::new(options.identity.as_deref());
        let mut this = Self { options, device, folder, identity: None, turn: 0, renewing: None, session: None };
        let invitation = match &this.options.admission {
            // Its token is read whenever the worker joins: it may not be there yet.
            Admission::TokenFile { coordinator, .. } => {
                if endpoint(coordinator)?.uri().scheme_str() != Some("http") {
                    let reason =
                        "a token file is for a coordinator without TLS; one with it invites its workers".into();
                    return Err(Error::Address { url: coordinator.clone(), reason });
                }
                return Ok(this);
            }
            Admission::Invitation(invitation) => Some(invitation),
            Admission::Identity => None,
        };
        this.identity = this.folder.as_ref().map_or(Ok(None), |folder| folder.find(invitation))?;
        let addresses = invitation.map(|invitation| &invitation.addresses);
        let addresses = addresses.or(this.identity.as_ref().map(|identity| &identity.addresses));
        let Some(addresses) = addresses else {
            let folder = this.folder.as_ref().map(Folder::path).unwrap_or_default();
            return Err(Error::Uninvited(folder));
        };
        for address in addresses {
            endpoint(address)?;
        }
        Ok(this)
    }

    fn invitation(&self) -> Option<&Invitation> {
        match &self.options.admission {
            Admission::Invitation(invitation) => Some(invitation),
            Admission::TokenFile { .. } | Admission::Identity => None,
        }
    }

    /// The coordinator's URL whose turn it is.
    fn url(&self) -> &str {
        let addresses = match &self.options.admission {
            Admission::TokenFile { coordinator, .. } => return coordinator,
            Admission::Invitation(invitation) => &invitation.addresses,
            Admission::Identity => match &self.identity {
                Some(identity) => &identity.addresses,
                None => return "",
            },
        };
        addresses.get(self.turn % addresses.len().max(1)).map_or("", String::as_str)
    }

    /// How the coordinator is called: as who this worker is, which an invitation is taken for if need be.
    async fn entrance(&mut self) -> Result<Entrance, Unanswered> {
        let endpoint = endpoint(self.url()).map_err(Unanswered::Refused)?;
        let (credentials, bearer) = match &self.options.admission {
            Admission::TokenFile { path, .. } => {
                let text = match tokio::fs::read_to_string(path).await {
                    Ok(text) => text,
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                        return Err(Unanswered::Away(format!("token file {} is not there yet", path.display())));
                    }
                    Err(source) => return Err(Unanswered::Refused(Error::TokenFile { path: path.clone(), source })),
                };
                let bearer = Bearer::new(&text).ok_or_else(|| Unanswered::Refused(Error::Token(path.clone())))?;
                (Credentials::none().map_err(|error| Unanswered::Refused(error.into()))?, bearer)
            }
            Admission::Invitation(_) | Admission::Identity => {
                if self.identity.is_none() {
                    self.enrol(&endpoint).await?;
                }
                let path = || self.folder.as_ref().map(Folder::path).unwrap_or_default();
                let identity = self.identity.as_ref().ok_or_else(|| Unanswered::Refused(Error::Uninvited(path())))?;
                let credentials = identity.credentials().map_err(Unanswered::Refused)?;
                let bearer = match identity.secret.as_str() {
                    "" => Bearer::none(),
                    secret => Bearer::new(secret).ok_or_else(|| Unanswered::Refused(Error::Token(path())))?,
                };
                (credentials, bearer)
            }
        };
        Ok(Entrance { endpoint, connector: connector(&self.options.admission, credentials), bearer })
    }

    /// Takes the invitation for an identity.
    async fn enrol(&mut self, endpoint: &Endpoint) -> Result<(), Unanswered> {
        let Some(invitation) = self.invitation().cloned() else { return Ok(()) };
        let credentials = match invitation.authority {
            Some(authority) => Credentials::pinned(authority),
            None => Credentials::none(),
        };
        let credentials = credentials.map_err(|error| Unanswered::Refused(error.into()))?;
        let channel = endpoint.connect_with_connector(connector(&self.options.admission, credentials)).await;
        let channel = channel.map_err(|error| self.not_connected(&error))?;
        let key = Key::new().map_err(Unanswered::Refused)?;
        let token = invitation.token.reveal();
        let request = v1::EnrolRequest { token, name: self.options.name.clone(), public_key: key.public() };
        let enrolled = EnrolmentServiceClient::new(channel).enrol(request).await;
        let enrolled = enrolled.map_err(|status| self.unanswered(&status))?.into_inner();
        let identity = Identity::new(&invitation, &key, enrolled);
        tracing::info!(identity = identity.identity, coordinator = self.url(), "invitation taken");
        self.identity = Some(identity);
        self.keep();
        Ok(())
    }

    /// Has the identity there after a restart.
    fn keep(&self) {
        let Some(identity) = &self.identity else { return };
        let kept = self.folder.as_ref().map(|folder| folder.keep(identity));
        let reason = match kept {
            Some(Ok(())) => return,
            Some(Err(error)) => error.to_string(),
            None => "there is no folder for it".to_owned(),
        };
        tracing::warn!(
            reason,
            "the identity is not kept: after a restart this worker needs its invitation again; see --identity"
        );
    }

    /// Has the identity last longer, if it is time.
    async fn renew(&mut self) {
        let Some(session) = &mut self.session else { return };
        let Some(identity) = &mut self.identity else { return };
        if self.renewing.is_some_and(|last| last.elapsed() < RENEW) {
            return;
        }
        let Some(public_key) = identity.to_renew(SystemTime::now()) else { return };
        self.renewing = Some(Instant::now());
        match session.client.renew(v1::RenewRequest { public_key }).await {
            Ok(renewed) => {
                identity.renewed(renewed.get_ref());
                tracing::info!(identity = identity.identity, "identity renewed");
                // The next connection shows the new certificate.
                if let Ok(credentials) = identity.credentials() {
                    session.entrance.connector = connector(&self.options.admission, credentials);
                }
                self.keep();
            }
            Err(status) => {
                tracing::warn!(reason = status.message(), "the identity was not renewed; trying again later")
            }
        }
    }

    /// What there is to do where nobody was reached. The next address has its turn.
    fn not_connected(&mut self, error: &tonic::transport::Error) -> Unanswered {
        let url = self.url().to_owned();
        self.turn += 1;
        match SocketError::of(error) {
            Some(said @ SocketError::Plaintext(_)) => {
                let reason = said.to_string();
                Unanswered::Refused(Error::Plaintext { url, reason })
            }
            Some(said) if said.is_final() => {
                let reason = said.to_string();
                Unanswered::Refused(Error::Untrusted { url, reason })
            }
            Some(said) => Unanswered::Away(said.to_string()),
            None => Unanswered::Away(root_cause(error)),
        }
    }

    fn unanswered(&self, status: &Status) -> Unanswered {
        let reason = status.message().to_owned();
        match may_pass(status) {
            true => Unanswered::Away(reason),
            false => {
                let code = code::Code::of_status(status).unwrap_or(code::Code::WorkerRefused);
                Unanswered::Refused(Error::Refused { url: self.url().to_owned(), reason, code })
            }
        }
    }

    /// Whether it may help to take the invitation anew: what it became before is accepted no more.
    fn begins_anew(&mut self, refused: &Unanswered) -> bool {
        let is_over = match refused {
            Unanswered::Refused(Error::Refused { code, .. }) => {
                matches!(code, code::Code::Revoked | code::Code::Untrusted)
            }
            Unanswered::Refused(Error::Untrusted { .. }) => true,
            _ => false,
        };
        is_over && self.invitation().is_some() && self.identity.take().is_some()
    }

    async fn connect(&mut self) -> Result<v1::JoinResponse, Unanswered> {
        let entrance = self.entrance().await?;
        let channel = entrance.endpoint.connect_with_connector(entrance.connector.clone()).await;
        let channel = channel.map_err(|error| self.not_connected(&error))?;
        let mut client = entrance.client(channel);
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
        self.session = Some(Session { calls: Calls::new(client.clone()), entrance, client, patience });
        Ok(joined)
    }
}

fn connector(admission: &Admission, credentials: Credentials) -> Connector {
    let is_allowed = match admission {
        Admission::TokenFile { allows_plaintext, .. } => *allows_plaintext,
        Admission::Invitation(_) | Admission::Identity => true,
    };
    Connector::new(credentials, CONNECT).plaintext(is_allowed)
}

/// The coordinator at this URL, whose absence is noticed.
fn endpoint(url: &str) -> Result<Endpoint, Error> {
    let endpoint = tls::endpoint(url)?;
    Ok(endpoint.http2_keep_alive_interval(Duration::from_secs(10)).keep_alive_timeout(Duration::from_secs(10)))
}

impl Coordinator for Grpc {
    fn address(&self) -> &str {
        self.url()
    }

    async fn join(&mut self) -> Result<v1::JoinResponse, Unanswered> {
        match self.connect().await {
            Err(refused) if self.begins_anew(&refused) => self.connect().await,
            joined => joined,
        }
    }

    async fn sync(&mut self, request: v1::SyncRequest) -> Result<v1::SyncResponse, Unanswered> {
        self.renew().await;
        let Some(session) = &mut self.session else { return Err(Unanswered::Away("not joined yet".into())) };
        let limit = Duration::from_millis(request.hold_ms) + session.patience;
        match tokio::time::timeout(limit, session.calls.sync(request)).await {
            Ok(answer) => answer.map_err(|status| self.unanswered(&status)),
            Err(_) => {
                // Where a network swallows packets nothing ends a connection, and what is sent again on an old one comes
                // ever later: a new one is there as soon as the network is.
                let Entrance { endpoint, connector, .. } = &session.entrance;
                let channel = endpoint.connect_with_connector_lazy(connector.clone());
                session.client = session.entrance.client(channel);
                session.calls = Calls::new(session.client.clone());
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
