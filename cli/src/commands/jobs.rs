//! `deltaconv jobs`.

use std::process::ExitCode;

use clap::Args;
use deltaconv_proto::v1;

use crate::args::{Connection, Format, Output};
use crate::client::Client;
use crate::error::Error;
use crate::{output, stage, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let url = &arguments.connection.coordinator;
    let listed = Client::connect(url).await?.jobs().await?;
    match arguments.output.format {
        Format::Json => output::print_json(&listed),
        Format::Text if listed.jobs.is_empty() => {
            output::say(&format!("{url} has no jobs; submit one with `deltaconv submit JOB.toml`"));
        }
        Format::Text => output::print(&describe(&listed.jobs)),
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(jobs: &[v1::JobSummary]) -> String {
    let mut listing = table::table(["job", "state", "stage", "done", "output", "reason"]);
    for job in jobs {
        listing.add_row([
            job.job_id.clone(),
            job.state.clone(),
            stage::name(&job.stage, job.round),
            format!("{:.0} %", job.fraction * 100.0),
            job.output_url.clone(),
            job.reason.clone(),
        ]);
    }
    table::numbers(&mut listing, &[3]);
    table::text(&listing)
}
