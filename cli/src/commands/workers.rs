//! `deltaconv workers`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use deltaconv_proto::v1;

use crate::args::{Connection, Format, Output};
use crate::client::Client;
use crate::error::Error;
use crate::{duration, output, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    change: Option<Change>,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// What becomes of workers.
#[derive(Debug, Subcommand)]
enum Change {
    /// Give a worker nothing new: it ends what it does
    Drain(Named),
    /// Give tasks again to a worker that was drained, or to a machine that was taken out
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

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    match arguments.change {
        None => {
            let listed = Client::connect(&arguments.connection.coordinator).await?.workers().await?;
            show(&arguments.connection.coordinator, &listed, arguments.output);
        }
        Some(Change::Drain(named)) => {
            let listed = Client::connect(&named.connection.coordinator).await?.drain(&named.worker).await?;
            show(&named.connection.coordinator, &listed, named.output);
        }
        Some(Change::Return(named)) => {
            let listed = Client::connect(&named.connection.coordinator).await?.give_again(&named.worker).await?;
            show(&named.connection.coordinator, &listed, named.output);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(url: &str, listed: &v1::ListWorkersResponse, output: Output) {
    match output.format {
        Format::Json => output::print_json(listed),
        Format::Text if listed.workers.is_empty() => output::say(&format!(
            "{url} has no workers; start one with `deltaconv worker --coordinator {url} --token-file FILE`"
        )),
        Format::Text => output::print(&describe(&listed.workers)),
    }
}

fn describe(workers: &[v1::WorkerStatus]) -> String {
    let mut listing = table::table([
        "worker",
        "name",
        "machine",
        "state",
        "device",
        "memory",
        "threads",
        "cached shards",
        "heard",
        "tasks",
    ]);
    for worker in workers {
        let device = worker.device.clone().unwrap_or_default();
        listing.add_row([
            worker.worker_id.clone(),
            worker.name.clone(),
            worker.node.clone(),
            worker.state.clone(),
            format!("{} {}", device.kind, device.name),
            table::bytes(device.memory_bytes),
            device.threads.to_string(),
            worker.cached_shards.to_string(),
            format!("{} ago", duration::spell(worker.silent_ms as f64 / 1000.0)),
            if worker.reason.is_empty() { worker.tasks.join(", ") } else { worker.reason.clone() },
        ]);
    }
    table::numbers(&mut listing, &[5, 6, 7]);
    table::text(&listing)
}
