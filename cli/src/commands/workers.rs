//! `deltaconv workers`.

use std::process::ExitCode;

use clap::Args;
use deltaconv_proto::v1;

use crate::args::{Connection, Format, Output};
use crate::client::Client;
use crate::error::Error;
use crate::{duration, output, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let url = &arguments.connection.coordinator;
    let listed = Client::connect(url).await?.workers().await?;
    match arguments.output.format {
        Format::Json => output::print_json(&listed),
        Format::Text if listed.workers.is_empty() => output::say(&format!(
            "{url} has no workers; start one with `deltaconv worker --coordinator {url} --token-file FILE`"
        )),
        Format::Text => output::print(&describe(&listed.workers)),
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(workers: &[v1::WorkerStatus]) -> String {
    let mut listing =
        table::table(["worker", "name", "state", "device", "memory", "threads", "cached shards", "heard", "tasks"]);
    for worker in workers {
        let device = worker.device.clone().unwrap_or_default();
        listing.add_row([
            worker.worker_id.clone(),
            worker.name.clone(),
            worker.state.clone(),
            format!("{} {}", device.kind, device.name),
            table::bytes(device.memory_bytes),
            device.threads.to_string(),
            worker.cached_shards.to_string(),
            format!("{} ago", duration::spell(worker.silent_ms as f64 / 1000.0)),
            worker.tasks.join(", "),
        ]);
    }
    table::numbers(&mut listing, &[4, 5, 6]);
    table::text(&listing)
}
