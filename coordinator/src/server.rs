//! One coordinator process, from its options to its end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use deltaconv_proto::code::Code;
use deltaconv_proto::objects::{self, Allowed, Objects};
use deltaconv_proto::tls;
use deltaconv_proto::v1::enrolment_service_server::EnrolmentServiceServer;
use deltaconv_proto::v1::operator_service_server::OperatorServiceServer;
use deltaconv_proto::v1::worker_service_server::WorkerServiceServer;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tower::layer::util::{Identity, Stack};

use crate::access::{
    self, Access, Audit, Authority, AuthorityError, Guarded, Rates, Tls, TlsFiles, Token, TokenError, connections,
    watch_certificates,
};
use crate::api::{Doors, EnrolmentApi, LogDesk, OperatorApi, Wakers, WorkerApi, WorkerDoor, http, with_handshake};
use crate::backup::Backups;
use crate::carry_out;
use crate::core::{Clock, Core, Running};
use crate::observe::metrics::Metrics;
use crate::schedule::{self, Settings};
use crate::snapshot::{self, Keeper};
use crate::store::{self, LocalStore};
use crate::term::{self, Terms};
#[cfg(feature = "webhook")]
use crate::webhook::Webhook;

/// Bytes of a worker's report: outputs of hundreds of layers, with their keys.
const MAX_REPORT: usize = 4 << 20;
/// Of an operator's request: a job's spec.
const MAX_REQUEST: usize = 1 << 20;
/// Of what is said with an invitation.
const MAX_ENROLMENT: usize = 16 << 10;
/// Calls of a connection at a time.
const MAX_STREAMS: u32 = 128;
/// Bytes of a request's headers.
const MAX_HEADERS: u32 = 16 << 10;

/// How a coordinator runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of the durable state; made if it isn't there.
    pub state: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Certificates to encrypt connections with; none where no TLS is spoken.
    pub tls: Option<TlsFiles>,
    /// Of a coordinator without TLS: the token that workers may join with; made if it isn't there.
    pub token_file: PathBuf,
    /// The places that jobs may name.
    pub stores: Allowed,
    /// Written once the coordinator listens: its URL.
    pub address_file: Option<PathBuf>,
    /// A lease that no Sync renews ends after this time.
    pub lease_ttl: Duration,
    /// Longest time between two checkpoints of an attempt.
    pub checkpoint_interval: Duration,
    /// Bytes that stay free where the state lies: with less the coordinator is read-only.
    pub keep_free: u64,
    /// Copies of the state in object storage; none where nothing is said.
    pub snapshots: Option<snapshot::Options>,
    /// URL of the web server that is told how jobs ended; none where nothing is said.
    #[cfg(feature = "webhook")]
    pub webhook: Option<url::Url>,
    /// This machine, for who finds its name at a job's output.
    pub host: String,
}

/// What keeps a coordinator from running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody can listen there.
    #[error("can't listen on {address}: {source}; choose another --listen, or stop what uses the port")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The state can't be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The state can't be understood.
    #[error(transparent)]
    State(#[from] schedule::Error),
    /// No token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Certificates that can't be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// No authority for the workers' certificates.
    #[error("the authority that signs workers' certificates: {0}")]
    Workers(#[from] AuthorityError),
    /// The audit log can't be written.
    #[error("the audit log in {folder}: {source}")]
    Audit {
        /// The state's folder.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Snapshots can't go where they shall.
    #[error("--snapshots: {0}")]
    Snapshots(#[from] objects::Error),
    /// Nobody can be told.
    #[cfg(feature = "webhook")]
    #[error("--webhook: {0}")]
    Webhook(String),
    /// The system has no random numbers.
    #[error("no random numbers: {0}")]
    Random(String),
    /// The address can't be told.
    #[error("{path}: {source}")]
    AddressFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The server failed.
    #[error("the server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// A thread of ours ended as it must not.
    #[error("the thread that owns the state ended by a fault; this is a bug, please report it with the log")]
    Fault,
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Listen { .. } => Code::Listen,
            #[cfg(feature = "webhook")]
            Self::Webhook(_) => Code::NotStarted,
            Self::Store(error) => error.code(),
            Self::State(error) => error.code(),
            Self::Token(error) => error.code(),
            Self::Tls(error) => error.code(),
            Self::Workers(error) => error.code(),
            Self::Audit { .. } => Code::File,
            Self::Snapshots(error) => error.code(),
            Self::Random(_) => Code::NotStarted,
            Self::AddressFile { .. } => Code::File,
            Self::Serve(_) | Self::Fault => Code::Fault,
        }
    }
}

/// Serves until `shutdown`.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let listen = |source| Error::Listen { address: options.listen, source };
    let listener = TcpListener::bind(options.listen).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;

    let snapshots = match &options.snapshots {
        Some(snapshots) => Some((Objects::open(&snapshots.url)?, snapshots.every)),
        None => None,
    };

    let clock = Clock::start(SystemTime::now);
    let store = LocalStore::open(&options.state, options.keep_free)?;
    let (identity, journal) = (store.identity().to_owned(), store.journal());
    let settings = Settings::new(identity.as_str(), options.lease_ttl);
    let (commands, given) = mpsc::unbounded_channel();
    let metrics = Metrics::new();
    let (core, handle, first) = Core::open(settings, store, clock, commands, metrics.clone())?;
    let access = access(&options, &identity, &metrics)?;
    let Running { thread, ended: mut core_ended } = core.spawn(first).map_err(listen)?;
    let known = handle.read(|state, _| state.identity_records().cloned().collect::<Vec<_>>()).await;
    known.unwrap_or_default().iter().for_each(|record| access.register.put(record));

    let snapshots_url = options.snapshots.as_ref().map(|snapshots| snapshots.url.clone());
    let backups = Backups::new(handle.clone(), journal.clone(), options.state.clone(), identity.clone(), snapshots_url);
    let terms = Terms::new(&identity, &options.host).map_err(|error| Error::Random(error.to_string()))?;
    let mut beside = JoinSet::new();
    let (watching, keeping) = (CancellationToken::new(), CancellationToken::new());
    if let Some((objects, every)) = snapshots {
        let keeper = Keeper::new(objects, every, handle.clone(), journal, identity);
        beside.spawn(keeper.run(keeping.clone()));
    }
    #[cfg(feature = "webhook")]
    if let Some(url) = &options.webhook {
        let webhook = Webhook::new(url.clone(), handle.clone(), &options.state);
        let webhook = webhook.map_err(|error| Error::Webhook(error.to_string()))?;
        beside.spawn(webhook.run(watching.clone()));
    }
    beside.spawn(watch_certificates(access.clone(), handle.clone(), watching.clone()));
    beside.spawn(term::watch(handle.clone(), terms.clone(), watching.clone()));

    let wakers = Wakers::default();
    let carrying_out = CancellationToken::new();
    let carrier =
        tokio::spawn(carry_out::run(given, handle.clone(), terms.clone(), wakers.clone(), carrying_out.clone()));

    if let Some(path) = &options.address_file {
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let told = write_whole(path, &format!("{scheme}://{address}"));
        told.map_err(|source| Error::AddressFile { path: path.clone(), source })?;
    }
    let started = handle.call(|state, _, effects| state.started(env!("CARGO_PKG_VERSION"), effects));
    // A state that can't be written yet serves nevertheless.
    let _ = started.await;
    tracing::info!(%address, tls = options.tls.is_some(), state = %options.state.display(), "coordinator listens");
    crate::notify::ready();

    let stop_serving = shutdown.child_token();
    let logs = LogDesk::default();
    let web = http::router(&handle, &metrics);
    let (ttl, interval) = (options.lease_ttl, options.checkpoint_interval);
    let worker_api = WorkerApi::new(handle.clone(), wakers, logs.clone(), metrics, ttl, interval);
    let worker_api = WorkerDoor::new(worker_api, access.clone());
    let doors = Doors { access: access.clone(), stores: options.stores };
    let operator_api = OperatorApi::new(handle.clone(), terms, logs, doors, backups, stop_serving.clone());
    let enrolment_api = EnrolmentApi::new(handle.clone(), access.clone());
    let routes = Routes::from(web)
        .add_service(WorkerServiceServer::new(worker_api).max_decoding_message_size(MAX_REPORT))
        .add_service(OperatorServiceServer::new(operator_api).max_decoding_message_size(MAX_REQUEST))
        .add_service(EnrolmentServiceServer::new(enrolment_api).max_decoding_message_size(MAX_ENROLMENT));
    let serve = guarded(access.clone())
        // Browsers and monitoring systems.
        .accept_http1(true)
        .add_routes(with_handshake(routes))
        .serve_with_incoming_shutdown(connections(listener, access.tls), stop_serving.clone().cancelled_owned());
    tokio::pin!(serve);
    let mut core_runs = true;
    let outcome = tokio::select! {
        served = &mut serve => served.map_err(Error::from),
        ended = &mut core_ended => {
            core_runs = false;
            core_result(ended)
        }
        // Held calls and watched jobs would keep a graceful end waiting; they are not owed an answer.
        () = async { stop_serving.cancelled().await; tokio::time::sleep(Duration::from_millis(300)).await } => Ok(()),
    };
    stop_serving.cancel();
    carrying_out.cancel();
    let carried = carrier.await;
    // The core still answers, for the last snapshot.
    watching.cancel();
    keeping.cancel();
    let mut ended_beside = Ok(());
    while let Some(joined) = beside.join_next().await {
        ended_beside = ended_beside.and(joined.map_err(|_| Error::Fault));
    }
    handle.stop();
    let closed = if core_runs { core_result(core_ended.await) } else { Ok(()) };
    let joined = thread.join().map_err(|_| Error::Fault);
    tracing::info!("coordinator stopped");
    outcome.and(closed).and(joined).and(carried.map_err(|_| Error::Fault)).and(ended_beside)
}

/// A server that asks of each call whether its caller may make it.
pub(crate) fn guarded(access: Access) -> Server<Stack<Guarded, Identity>> {
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        .layer(Guarded(access))
}

/// What decides who gets in.
fn access(options: &Options, identity: &str, metrics: &Metrics) -> Result<Access, Error> {
    let (workers, tls, token) = match &options.tls {
        Some(files) => {
            let [certificate, key] = access::WORKERS.map(|name| options.state.join(name));
            let workers = Authority::open_or_make(&certificate, &key, &format!("deltaconv workers of {identity}"))?;
            let workers = Arc::new(workers);
            let tls = Arc::new(Tls::open(files.clone(), workers.clone())?);
            (Some(workers), Some(tls), None)
        }
        None => (None, None, Some(Token::read_or_make(&options.token_file)?)),
    };
    let audit = Audit::open(&options.state).map_err(|source| Error::Audit { folder: options.state.clone(), source })?;
    let (register, rates, audit) = (Arc::default(), Arc::new(Rates::new()), Arc::new(audit));
    Ok(Access { tls, workers, token, register, rates, audit, metrics: metrics.clone() })
}

fn core_result(ended: Result<Result<(), Error>, oneshot::error::RecvError>) -> Result<(), Error> {
    ended.map_err(|_| Error::Fault)?
}

pub(crate) fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}
