//! The worker process: joins, says what it does, does what it is told.
//!
//! What it talks to and what runs its attempts are traits, so that [`work`] runs under a simulated network, too.

mod attempt;
pub(crate) mod connect;
mod coordinator;
pub(crate) mod device;
mod http;
mod identity;
mod runner;
mod sync;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use deltaconv_kernels as kernels;
use deltaconv_proto::code::Code;
use deltaconv_proto::objects::Allowed;
use deltaconv_proto::tls::{self, Invitation};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use coordinator::{Coordinator, Unanswered};
pub use runner::{Attempt, Ended, Outcome, Runner, Stop};

use crate::accelerator::{Accelerator, Choice};
use crate::codes::of_kernels;
use crate::metrics;
use crate::shards::{Cache, cache};

/// What a worker joins with.
#[derive(Clone, Debug)]
pub enum Admission {
    /// A coordinator without TLS, and its token file; that is waited for if it isn't there yet.
    TokenFile {
        /// URL of the coordinator, `http://host:port`.
        coordinator: String,
        /// The file.
        path: PathBuf,
        /// Whether its token goes to another machine without encryption.
        allows_plaintext: bool,
    },
    /// An invitation. One with an `http://` address is of a coordinator that was told to do without encryption.
    Invitation(Invitation),
    /// What an earlier invitation became.
    Identity,
}

/// How a worker runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// How it joins.
    pub admission: Admission,
    /// Folder where the identity is kept that an invitation becomes; the user's or the system's if there is none.
    pub identity: Option<PathBuf>,
    /// The places that jobs may name.
    pub stores: Allowed,
    /// What people call this worker.
    pub name: String,
    /// Its machine, by which failures are counted.
    pub node: String,
    /// Threads to compute with.
    pub threads: usize,
    /// What blocks are trained on.
    pub device: Choice,
    /// Where activations may be kept.
    pub cache: cache::Options,
    /// How long leaving may take.
    pub grace: Duration,
    /// It leaves by itself once it was given nothing for so long; never if there is none.
    pub end_when_idle: Option<Duration>,
    /// Where `/healthz` and `/metrics` are answered; nowhere if there is none.
    pub listen: Option<SocketAddr>,
}

/// When a worker leaves by itself, and how.
#[derive(Clone, Copy, Debug)]
pub struct Leaving {
    /// How long it may take.
    pub grace: Duration,
    /// Once it was given nothing for so long, whether its coordinator answers or not; never if there is none.
    pub when_idle: Option<Duration>,
}

/// What keeps a worker from running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The coordinator's URL isn't one.
    #[error(
        "{url:?} is no coordinator's address ({reason}); write https://HOST:PORT, or http://HOST:PORT of one without TLS"
    )]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The token file can't be read.
    #[error("token file {path}: {source}")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The token file holds what no header can carry.
    #[error("token file {0} holds no token")]
    Token(PathBuf),
    /// What an invitation became can't be used.
    #[error("{path} {reason}; remove it and invite the worker again, or name another folder with --identity")]
    Identity {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, as what follows its name.
        reason: String,
    },
    /// There is nothing to join with.
    #[error("{0} holds no identity of an earlier invitation: invite this worker with `deltaconv workers invite`")]
    Uninvited(PathBuf),
    /// No key was made.
    #[error("no key was made for this worker: {0}")]
    Key(String),
    /// A certificate can't be used.
    #[error(transparent)]
    Tls(tls::Error),
    /// Somebody answers who is not the coordinator that invited, or who doesn't accept this worker.
    #[error("the coordinator at {url} is not trusted, or doesn't trust this worker: {reason}")]
    Untrusted {
        /// The coordinator.
        url: String,
        /// Why.
        reason: String,
    },
    /// The coordinator is on another machine, and others could read along.
    #[error(
        "the coordinator at {url} is not called: {reason}; have one with certificates invite this worker, or, in a network where \
         nobody else is, allow it with --allow-plaintext"
    )]
    Plaintext {
        /// The coordinator.
        url: String,
        /// Where it would go.
        reason: String,
    },
    /// The coordinator refused the worker for good.
    #[error("the coordinator at {url} refused this worker: {reason}")]
    Refused {
        /// The coordinator.
        url: String,
        /// What it said.
        reason: String,
        /// What it named, or that it named nothing.
        code: Code,
    },
    /// The coordinator was never met, and the worker doesn't wait for ever.
    #[error("no coordinator at {url} took this worker in within {waited:?}, after which an idle one ends")]
    NeverMet {
        /// Where it should be.
        url: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The device that was asked for can't be used.
    #[error(transparent)]
    Device(#[from] kernels::Error),
    /// The folder for activations can't be made.
    #[error("the cache's folder {folder}: {source}; make it, or take another")]
    Cache {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Nobody can listen there.
    #[error("can't listen on {address}: {source}; choose another --listen, or stop what uses the port")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The threads to compute with could not be made.
    #[error("can't compute with {threads} threads: {reason}")]
    Threads {
        /// As many as were asked for.
        threads: usize,
        /// What went wrong.
        reason: String,
    },
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Address { .. } => Code::CoordinatorUrl,
            Self::TokenFile { .. } | Self::Token(_) => Code::TokenFile,
            Self::Refused { code, .. } => *code,
            Self::Identity { .. } | Self::Uninvited(_) => Code::Identity,
            Self::Key(_) => Code::NotStarted,
            Self::Tls(error) => error.code(),
            Self::Untrusted { .. } => Code::Untrusted,
            Self::Plaintext { .. } => Code::Plaintext,
            Self::NeverMet { .. } => Code::Unreachable,
            Self::Device(error) => of_kernels(error),
            Self::Cache { .. } => Code::CacheFolder,
            Self::Listen { .. } => Code::Listen,
            Self::Threads { .. } => Code::NotStarted,
        }
    }
}

/// Joins and works until `shutdown`, and leaves within the grace period. Threads of attempts that did not stop in it are still
/// there then, and whoever calls should end the process. Waits for a coordinator that isn't there (yet), and through its restarts.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    // The whole process computes in one pool, so that this is its share of the machine.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build_global();
    pool.map_err(|e| Error::Threads { threads: options.threads, reason: e.to_string() })?;
    let accelerator = Accelerator::open(options.device)?;
    let cache = Cache::open(&options.cache).map_err(|source| {
        let folder = options.cache.folder.as_ref().map(|(folder, _)| folder.clone()).unwrap_or_default();
        Error::Cache { folder, source }
    })?;
    metrics::start();
    if let Some(address) = options.listen {
        http::start(address, shutdown.clone()).await?;
    }
    let leaving = Leaving { grace: options.grace, when_idle: options.end_when_idle };
    let (name, stores) = (options.name.clone(), options.stores.clone());
    let coordinator = connect::Grpc::new(options, &accelerator)?;
    work(coordinator, attempt::Threads::new(&name, accelerator, cache, stores), leaving, shutdown).await
}

/// Joins `coordinator` and works until `shutdown`, or until it is idle for too long; then it hands back what it holds, and is gone after the
/// grace period. An error says that the coordinator refuses this worker for good, or was never met.
pub async fn work(
    mut coordinator: impl Coordinator,
    runner: impl Runner,
    leaving: Leaving,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let until = leaving.when_idle.map(|waited| Instant::now() + waited);
    let joined = coordinator::join(&mut coordinator, until, &shutdown).await?;
    match (joined, leaving.when_idle) {
        (Some(joined), _) => sync::Agent::new(coordinator, runner, joined, leaving).run(shutdown).await,
        (None, Some(waited)) if !shutdown.is_cancelled() => {
            Err(Error::NeverMet { url: coordinator.address().to_owned(), waited })
        }
        (None, _) => Ok(()),
    }
}
