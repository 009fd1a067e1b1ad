//! `deltaconv coordinator`.

mod backup;
mod restore;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use deltaconv_coordinator::TlsFiles;
use deltaconv_proto::objects::Allowed;
use tokio_util::sync::CancellationToken;

use super::{certs, interrupted};
use crate::error::{Error, explain};
use crate::logs::Logging;
use crate::{byte_size, duration, ending, host, location};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    service: Service,
}

/// What else is done with a coordinator's state.
#[derive(Debug, Subcommand)]
enum Command {
    /// Write all that a coordinator must not forget to a folder or a bucket: of the one that runs, or of a state folder
    #[command(after_help = "Examples:\n\
        \x20 deltaconv coordinator backup --to s3://bucket/backups\n\
        \x20 deltaconv coordinator backup --state /var/lib/deltaconv --to /mnt/backups")]
    Backup(backup::Arguments),
    /// Make a state folder anew from a backup, a snapshot, or what jobs left in their outputs
    #[command(after_help = "Examples:\n\
        \x20 deltaconv coordinator restore --state /var/lib/deltaconv --backup s3://bucket/backups\n\
        \x20 deltaconv coordinator restore --state /var/lib/deltaconv --snapshots s3://bucket/snapshots\n\
        \x20 deltaconv coordinator restore --state /var/lib/deltaconv --job s3://bucket/sd15")]
    Restore(restore::Arguments),
}

/// How it serves.
#[derive(Debug, Args)]
struct Service {
    /// Folder of the durable state; made if it isn't there
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7433")]
    listen: SocketAddr,
    /// Folder with authority.pem, coordinator.pem and coordinator.key, as `deltaconv certs init` makes them: connections are
    /// encrypted, and who calls is known by their certificate
    #[arg(long, value_name = "DIR")]
    certs: Option<PathBuf>,
    /// The coordinator's own certificate in PEM, with those between it and its authority [default: of --certs]
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_authority"])]
    tls_certificate: Option<PathBuf>,
    /// Its key in PEM [default: of --certs]
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Certificates in PEM of who signs those of operators and viewers [default: of --certs]
    #[arg(long, value_name = "FILE")]
    tls_authority: Option<PathBuf>,
    /// Listen where other machines can connect, without encryption: whoever reaches it may submit and cancel jobs
    #[arg(long)]
    allow_plaintext: bool,
    /// Jobs may read and write what lies at or below this URL; once for each, `any` for every place [default: every place, of one
    /// that only this machine reaches]
    #[arg(long = "allow-store", value_name = "URL")]
    allow_stores: Vec<String>,
    /// Without TLS, the token that workers may join with; made if it isn't there [default: worker.token in the state's folder]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Write the coordinator's URL to this file once it listens
    #[arg(long, value_name = "FILE")]
    address_file: Option<PathBuf>,
    /// A worker that is not heard of for this long loses its tasks
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse)]
    lease_ttl: Duration,
    /// Longest time between two checkpoints of a task
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse)]
    checkpoint_interval: Duration,
    /// Change nothing while fewer bytes than this are free where the state lies
    #[arg(long, value_name = "SIZE", default_value = "64 MiB", value_parser = byte_size::parse)]
    keep_free: u64,
    /// Write snapshots of the state to this folder, by path or URL [default: none]
    #[arg(long, value_name = "URL")]
    snapshots: Option<String>,
    /// Time between two snapshots, where something changed
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration::parse)]
    snapshot_every: Duration,
    /// Web server that is told how each job ended, by a POST of JSON [default: none]
    #[cfg(feature = "webhook")]
    #[arg(long, value_name = "URL", env = "DELTACONV_WEBHOOK", hide_env_values = true, value_parser = webhook)]
    webhook: Option<url::Url>,
    /// Tell it without encryption, though it is another machine
    #[cfg(feature = "webhook")]
    #[arg(long)]
    webhook_plaintext: bool,
    #[command(flatten)]
    logging: Logging,
    /// End when stdin closes
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    match arguments.command {
        Some(Command::Backup(arguments)) => backup::run(arguments).await,
        Some(Command::Restore(arguments)) => restore::run(arguments).await,
        None => serve(arguments.service).await,
    }
}

#[cfg(feature = "webhook")]
fn webhook(text: &str) -> Result<url::Url, String> {
    let url = url::Url::parse(text).map_err(|error| error.to_string())?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        _ => Err("write http://HOST/PATH or https://HOST/PATH".to_owned()),
    }
}

async fn serve(arguments: Service) -> Result<ExitCode, Error> {
    let tls = tls_files(&arguments);
    let is_exposed = !arguments.listen.ip().is_loopback();
    if is_exposed && tls.is_none() && !arguments.allow_plaintext {
        return Err(Error::Plaintext { address: arguments.listen });
    }
    let stores = match &arguments.allow_stores[..] {
        [] if is_exposed => return Err(Error::NoStores),
        [] => Allowed::any(),
        urls => location::allowed(urls)?,
    };
    #[cfg(feature = "webhook")]
    let webhook = {
        let is_allowed = arguments.webhook_plaintext;
        let checked = |url| location::encrypted(url, "--webhook", "--webhook-plaintext", is_allowed);
        arguments.webhook.map(checked).transpose()?
    };
    let state = arguments.state.ok_or(Error::NoState)?;
    let _logging = arguments.logging.start()?;
    keep_memory_small();
    let snapshots = arguments.snapshots.as_deref().map(|named| location::url(named, Path::new(""))).transpose()?;
    let every = arguments.snapshot_every;
    let options = deltaconv_coordinator::Options {
        tls,
        stores,
        token_file: arguments.token_file.unwrap_or_else(|| state.join("worker.token")),
        state,
        listen: arguments.listen,
        address_file: arguments.address_file,
        lease_ttl: arguments.lease_ttl,
        checkpoint_interval: arguments.checkpoint_interval,
        keep_free: arguments.keep_free,
        snapshots: snapshots.map(|url| deltaconv_coordinator::Snapshots { url, every }),
        #[cfg(feature = "webhook")]
        webhook,
        host: host::name(),
    };
    let shutdown = CancellationToken::new();
    let service = deltaconv_coordinator::run(options, shutdown.clone());
    match ending::serve(arguments.exit_with_parent, None, &shutdown, service).await? {
        Some(Ok(())) => Ok(ExitCode::SUCCESS),
        Some(Err(error)) => Err(Error::Coordinator { message: explain(&error), code: error.code() }),
        None => Ok(interrupted()),
    }
}

/// Where the certificates lie; nothing where none are named.
fn tls_files(arguments: &Service) -> Option<TlsFiles> {
    let in_folder = |name: &str| arguments.certs.as_ref().map(|folder| folder.join(name));
    let named = |named: &Option<PathBuf>, name: &str| named.clone().or_else(|| in_folder(name));
    Some(TlsFiles {
        certificate: named(&arguments.tls_certificate, certs::COORDINATOR)?,
        key: named(&arguments.tls_key, certs::COORDINATOR_KEY)?,
        authority: named(&arguments.tls_authority, certs::AUTHORITY)?,
    })
}

/// Has the system give this process small pages alone, and the allocator return every large buffer as soon as it is freed.
///
/// A coordinator has buffers for each of thousands of connections, most of them empty, and a large page is resident as a whole:
/// with them a worker costs 47 KiB, and without 31. Pieces of models are read by whichever thread is free, and glibc would keep
/// what each of them freed.
#[cfg(target_os = "linux")]
pub(super) fn keep_memory_small() {
    const NOTHING: libc::c_ulong = 0;
    const YES: libc::c_ulong = 1;
    // SAFETY: this option takes one integer and zeros, and says how the kernel maps memory from now on.
    let pages = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, YES, NOTHING, NOTHING, NOTHING) };
    let are_returned = return_large_buffers();
    if pages != 0 || !are_returned {
        tracing::debug!(pages, are_returned, "the system may keep more memory than is in use");
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn keep_memory_small() {}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn return_large_buffers() -> bool {
    // SAFETY: mallopt takes two integers, and may be called at any time.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, crate::allocator::LARGE as libc::c_int) == 1 }
}

/// musl has no mallopt, and needs none: what is larger than 128 KiB is a mapping of its own.
#[cfg(all(target_os = "linux", not(target_env = "gnu")))]
fn return_large_buffers() -> bool {
    true
}
