//! `deltaconv worker`.

use std::num::NonZero;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::thread;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::interrupted;
use crate::args::{Connection, Device};
use crate::error::{Error, explain};
use crate::{ending, logs};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// File with the token to join with, which the coordinator wrote
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// What people call this worker [default: the host's name and the process id]
    #[arg(long)]
    name: Option<String>,
    /// Threads to compute with [default: one a core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// What to compute on
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// End when stdin closes
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    logs::start();
    let options = deltaconv_worker::Options {
        coordinator: arguments.connection.coordinator,
        token_file: arguments.token_file,
        name: arguments.name.unwrap_or_else(host_and_process),
        threads: arguments.threads.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZero::get),
        device: arguments.device.into(),
    };
    let shutdown = CancellationToken::new();
    let service = deltaconv_worker::run(options, shutdown.clone());
    match ending::serve(arguments.exit_with_parent, &shutdown, service).await? {
        Some(Ok(())) => Ok(ExitCode::SUCCESS),
        Some(Err(error)) => Err(Error::Worker { message: explain(&error) }),
        None => Ok(interrupted()),
    }
}

fn host_and_process() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.as_deref().map(str::trim).filter(|host| !host.is_empty()).unwrap_or("worker");
    format!("{host}-{}", process::id())
}
