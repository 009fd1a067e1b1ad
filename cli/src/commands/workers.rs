//! `deltaconv workers`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use deltaconv_proto::v1;
use serde::Serialize;

use super::interrupted;
use crate::args::{Connection, Output, Refresh};
use crate::client::Client;
use crate::error::Error;
use crate::{duration, output, refresh, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    change: Option<Change>,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    refresh: Refresh,
}

/// What becomes of workers.
#[derive(Debug, Subcommand)]
enum Change {
    /// Show how another machine joins
    #[command(after_help = "Examples:\n\
        \x20 deltaconv workers invite --token-file /var/lib/deltaconv/worker.token --reached-at http://10.0.0.5:7433")]
    Invite(Invitation),
    /// Give a worker nothing new: it ends what it does
    #[command(after_help = "Examples:\n  deltaconv workers drain gpu-7")]
    Drain(Named),
    /// Give tasks again to a worker that was drained, or to a machine that was taken out
    #[command(after_help = "Examples:\n  deltaconv workers return gpu-7")]
    Return(Named),
}

#[derive(Debug, Args)]
struct Named {
    /// By its id, or all of a name or of a machine
    worker: String,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// For whoever starts a worker.
#[derive(Debug, Args)]
struct Invitation {
    /// The coordinator's URL as the other machine reaches it [default: as this one does]
    #[arg(long, value_name = "URL")]
    reached_at: Option<String>,
    /// File with the token, as the coordinator wrote it
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// What another machine needs to join.
#[derive(Serialize, schemars::JsonSchema)]
pub(crate) struct Invited {
    coordinator: String,
    token: String,
    version: &'static str,
    command: String,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let (url, listed, output) = match arguments.change {
        None => {
            let url = &arguments.connection.coordinator;
            let ask = async || Client::connect(url).await?.workers().await;
            let shown = refresh::show(arguments.refresh, arguments.output, ask, |listed, wide| show(url, listed, wide));
            return Ok(shown.await?.map_or_else(interrupted, |_| ExitCode::SUCCESS));
        }
        Some(Change::Invite(invitation)) => return invite(invitation).await,
        Some(Change::Drain(named)) => {
            let listed = Client::connect(&named.connection.coordinator).await?.drain(&named.worker).await?;
            (named.connection.coordinator, listed, named.output)
        }
        Some(Change::Return(named)) => {
            let listed = Client::connect(&named.connection.coordinator).await?.give_again(&named.worker).await?;
            (named.connection.coordinator, listed, named.output)
        }
    };
    match output.data() {
        Some(data) => data.print(&listed),
        None => show(&url, &listed, output.is_wide()),
    }
    Ok(ExitCode::SUCCESS)
}

async fn invite(invitation: Invitation) -> Result<ExitCode, Error> {
    let Invitation { reached_at, token_file, connection, output } = invitation;
    // Who is invited to a coordinator that isn't there waits for ever.
    Client::connect(&connection.coordinator).await?.workers().await?;
    let token = std::fs::read_to_string(&token_file).map_err(Error::file("read", &token_file))?.trim().to_owned();
    if token.is_empty() || token.contains(char::is_control) {
        return Err(Error::NoToken { path: token_file });
    }
    let coordinator = reached_at.unwrap_or(connection.coordinator);
    let is_here = url::Url::parse(&coordinator).is_ok_and(|url| is_loopback(&url));
    let command = format!("deltaconv worker --coordinator {coordinator} --token-file worker.token");
    let invited = Invited { coordinator, token, version: env!("CARGO_PKG_VERSION"), command };
    match output.data() {
        Some(data) => data.print(&invited),
        None => {
            let Invited { token, command, .. } = &invited;
            output::print(&format!("install -m 600 /dev/stdin worker.token <<<'{token}'\n{command}"));
            output::say("run this where the worker shall be; whoever has the token can join");
        }
    }
    if is_here {
        output::say("that URL is of this machine alone: name the one that others reach with --reached-at URL");
    }
    Ok(ExitCode::SUCCESS)
}

fn is_loopback(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn show(url: &str, listed: &v1::ListWorkersResponse, wide: bool) {
    match &listed.workers[..] {
        [] => output::say(&format!("{url} has no workers; `deltaconv workers invite` shows how one joins")),
        workers => output::print(&describe(workers, wide)),
    }
}

fn describe(workers: &[v1::WorkerStatus], wide: bool) -> String {
    let mut columns = vec!["worker", "name", "machine", "state", "device", "load", "memory", "heard", "tasks"];
    if wide {
        columns.extend(["of", "temperature", "power", "reads", "writes", "threads", "cached shards", "version"]);
    }
    let mut listing = table::with_headings(columns.iter().map(|column| column.to_uppercase()));
    for worker in workers {
        let device = worker.device.clone().unwrap_or_default();
        let load = worker.load.unwrap_or_default();
        let [share, used] = busy(&device, &load);
        let mut row = vec![
            worker.worker_id.clone(),
            worker.name.clone(),
            worker.node.clone(),
            worker.state.clone(),
            format!("{} {}", device.kind, device.name),
            share,
            used,
            format!("{} ago", duration::spell(worker.silent_ms as f64 / 1000.0)),
            if worker.reason.is_empty() { worker.tasks.join(", ") } else { table::one_line(&worker.reason) },
        ];
        if wide {
            let rate = |rate: f64| table::figure(rate, |rate| format!("{}/s", table::bytes(rate as u64)));
            row.extend([
                table::bytes(device.memory_bytes),
                table::figure(load.gpu_temperature.unwrap_or(f64::NAN), |degrees| format!("{degrees:.0} °C")),
                table::figure(load.gpu_power.unwrap_or(f64::NAN), |watts| format!("{watts:.0} W")),
                rate(load.read_bytes_per_second),
                rate(load.written_bytes_per_second),
                device.threads.to_string(),
                worker.cached_shards.to_string(),
                worker.version.clone(),
            ]);
        }
        listing.add_row(row);
    }
    let numbers = ["load", "memory", "of", "temperature", "power", "reads", "writes", "threads", "cached shards"];
    let numbers: Vec<usize> = (0..columns.len()).filter(|index| numbers.contains(&columns[*index])).collect();
    table::numbers(&mut listing, &numbers);
    table::text(&listing)
}

/// Of the device that a worker computes on: the share of time in which it is at work, and the memory that is used.
pub(crate) fn busy(device: &v1::Device, load: &v1::Load) -> [String; 2] {
    let (share, used) = match device.kind == v1::Device::CUDA {
        true => (load.gpu_utilisation, load.gpu_memory_used_bytes),
        false => (load.cpu_utilisation, load.memory_used_bytes),
    };
    [share.map_or("–".to_owned(), |share| format!("{:.0} %", 100.0 * share)), used.map_or("–".to_owned(), table::bytes)]
}
