//! `deltaconv worker`.

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

use clap::Args;
use deltaconv_proto::objects::Allowed;
use deltaconv_proto::tls::{InvalidInvitation, Invitation};
use deltaconv_worker::{Admission, CacheOptions};
use tokio_util::sync::CancellationToken;

use super::INTERRUPTED;
use crate::args::{DEFAULT_COORDINATOR, Device};
use crate::error::{Error, explain};
use crate::logs::Logging;
use crate::{byte_size, duration, ending, host, location};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// What `deltaconv workers invite` printed: where the coordinator is, how it is known, and the token to join with
    #[arg(long, value_name = "TEXT", env = "DELTACONV_INVITATION", hide_env_values = true)]
    invitation: Option<String>,
    /// File with the invitation; an empty one is none
    #[arg(long, value_name = "FILE", env = "DELTACONV_INVITATION_FILE", conflicts_with = "invitation")]
    invitation_file: Option<PathBuf>,
    /// Folder for what the invitation becomes, so that a restart needs no other [default: deltaconv/identity in the user's data
    /// folder, or identity in that of the system's service]
    #[arg(long, value_name = "DIR")]
    identity: Option<PathBuf>,
    /// File with the token of a coordinator without TLS on this machine, which it wrote
    #[arg(long, value_name = "FILE", conflicts_with_all = ["invitation", "invitation_file"])]
    token_file: Option<PathBuf>,
    /// URL of the coordinator, where there is no invitation to say it
    #[arg(long, value_name = "URL", env = "DELTACONV_COORDINATOR", default_value = DEFAULT_COORDINATOR)]
    coordinator: String,
    /// Read and write only what lies at or below this URL, whatever jobs name; once for each [default: every place]
    #[arg(long = "allow-store", value_name = "URL")]
    allow_stores: Vec<String>,
    /// What people call this worker [default: the host's name and the process id]
    #[arg(long)]
    name: Option<String>,
    /// The machine that it runs on: failures are counted by it [default: the host's name]
    #[arg(long)]
    node: Option<String>,
    /// Threads to compute with [default: one a core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// What to compute on
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// Once it is asked to end, time to store and hand back what it has reached; then it is gone, whatever it waits for
    #[arg(long, value_name = "TIME", default_value = "25s", value_parser = duration::parse)]
    grace: Duration,
    /// End after being given nothing for so long [default: wait for ever]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    end_when_idle: Option<Duration>,
    /// Address where /healthz and /metrics are answered [default: none]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<SocketAddr>,
    /// Do without encryption where other machines are: answer on --listen, and call a coordinator without TLS with a token file
    #[arg(long, env = "DELTACONV_ALLOW_PLAINTEXT")]
    allow_plaintext: bool,
    #[command(flatten)]
    cache: Cache,
    #[command(flatten)]
    logging: Logging,
    /// End when stdin closes
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

/// Where activations are kept between the steps that need them.
#[derive(Debug, Args)]
struct Cache {
    /// GPU memory for samples, such as "20 GiB" [default: 60 % of what is free when a layer begins]
    #[arg(long, value_name = "SIZE", value_parser = byte_size::parse)]
    gpu_cache: Option<u64>,
    /// Host memory for samples that the GPU has no room for [default: half of what is free when the worker starts]
    #[arg(long, value_name = "SIZE", value_parser = byte_size::parse)]
    memory_cache: Option<u64>,
    /// Folder for samples that no memory has room for; all workers of a machine may share it [default: they are read from
    /// the store whenever their turn comes]
    #[arg(long, value_name = "FOLDER")]
    disk_cache: Option<PathBuf>,
    /// What the folder may hold
    #[arg(long, value_name = "SIZE", default_value = "100 GiB", value_parser = byte_size::parse)]
    disk_cache_size: u64,
    /// Memory for what is on its way from the store
    #[arg(long, value_name = "SIZE", default_value = "256 MiB", value_parser = byte_size::parse)]
    read_memory: u64,
    /// Memory for what is on its way to the store; beside it, up to 8 MiB of each layer wait until they are so many
    #[arg(long, value_name = "SIZE", default_value = "256 MiB", value_parser = byte_size::parse)]
    write_memory: u64,
}

impl Cache {
    fn options(self) -> CacheOptions {
        CacheOptions {
            device: self.gpu_cache,
            memory: self.memory_cache,
            folder: self.disk_cache.map(|folder| (folder, self.disk_cache_size)),
            reading: self.read_memory,
            writing: self.write_memory,
        }
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let logging = arguments.logging.start()?;
    if let Some(address) = arguments.listen.filter(|address| !address.ip().is_loopback() && !arguments.allow_plaintext)
    {
        return Err(Error::PlainFigures { address });
    }
    let text = match &arguments.invitation_file {
        Some(path) => Some(std::fs::read_to_string(path).map_err(Error::file("read", path))?),
        None => arguments.invitation,
    };
    let admission = match (text.filter(|text| !text.trim().is_empty()), arguments.token_file) {
        (Some(text), _) => Admission::Invitation(invitation(&text)?),
        (None, Some(path)) => {
            let allows_plaintext = arguments.allow_plaintext;
            Admission::TokenFile { coordinator: arguments.coordinator, path, allows_plaintext }
        }
        // Also where a file for it is there and empty: an earlier one was taken.
        (None, None) => Admission::Identity,
    };
    let stores = match &arguments.allow_stores[..] {
        [] => Allowed::any(),
        urls => location::allowed(urls)?,
    };
    let options = deltaconv_worker::Options {
        admission,
        identity: arguments.identity,
        stores,
        name: arguments.name.unwrap_or_else(host_and_process),
        node: arguments.node.unwrap_or_else(host::name),
        threads: arguments.threads.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZero::get),
        device: arguments.device.into(),
        cache: arguments.cache.options(),
        grace: arguments.grace,
        end_when_idle: arguments.end_when_idle,
        listen: arguments.listen,
    };
    let shutdown = CancellationToken::new();
    let service = deltaconv_worker::run(options, shutdown.clone());
    let ended = ending::serve(arguments.exit_with_parent, Some(arguments.grace), &shutdown, service).await?;
    // What ends the process drops nothing.
    drop(logging);
    match ended {
        // Attempts that didn't stop in time still run. To return would end the runtime first: that waits for files that hang, and
        // the attempts would panic without it.
        Some(Ok(())) => process::exit(0),
        Some(Err(error)) => Err(Error::Worker { message: explain(&error), code: error.code() }),
        None => process::exit(i32::from(INTERRUPTED)),
    }
}

fn invitation(text: &str) -> Result<Invitation, Error> {
    text.parse().map_err(|error: InvalidInvitation| Error::Invitation { message: error.to_string() })
}

fn host_and_process() -> String {
    format!("{}-{}", host::name(), process::id())
}
