//! `deltaconv coordinator`.

mod restore;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use super::interrupted;
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
    /// Make a state folder anew from a snapshot, or from what jobs left in their outputs
    #[command(after_help = "Examples:\n\
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
    /// Listen where other machines can connect, without encryption
    #[arg(long)]
    allow_plaintext: bool,
    /// The token that workers join with; made if it isn't there [default: worker.token in the state's folder]
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
    #[command(flatten)]
    logging: Logging,
    /// End when stdin closes
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    match arguments.command {
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
    if !arguments.listen.ip().is_loopback() && !arguments.allow_plaintext {
        return Err(Error::Plaintext { address: arguments.listen });
    }
    let state = arguments.state.ok_or(Error::NoState)?;
    let _logging = arguments.logging.start()?;
    keep_memory_small();
    let snapshots = arguments.snapshots.as_deref().map(|named| location::url(named, Path::new(""))).transpose()?;
    let every = arguments.snapshot_every;
    let options = deltaconv_coordinator::Options {
        token_file: arguments.token_file.unwrap_or_else(|| state.join("worker.token")),
        state,
        listen: arguments.listen,
        address_file: arguments.address_file,
        lease_ttl: arguments.lease_ttl,
        checkpoint_interval: arguments.checkpoint_interval,
        keep_free: arguments.keep_free,
        snapshots: snapshots.map(|url| deltaconv_coordinator::Snapshots { url, every }),
        #[cfg(feature = "webhook")]
        webhook: arguments.webhook,
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
