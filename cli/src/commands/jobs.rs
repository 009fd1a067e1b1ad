//! `deltaconv jobs`.

use std::process::ExitCode;

use clap::Args;
use deltaconv_proto::{utc, v1};

use super::interrupted;
use crate::args::{Connection, Output, Refresh};
use crate::client::Client;
use crate::error::Error;
use crate::{output, refresh, stage, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    refresh: Refresh,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let to = &arguments.connection;
    let ask = async || Client::connect(to).await?.jobs().await;
    let shown = refresh::show(arguments.refresh, arguments.output, ask, |listed, wide| match &listed.jobs[..] {
        [] => output::say(&format!("{to} has no jobs; submit one with `deltaconv submit JOB.toml`")),
        jobs => output::print(&describe(jobs, wide)),
    });
    Ok(shown.await?.map_or_else(interrupted, |_| ExitCode::SUCCESS))
}

fn describe(jobs: &[v1::JobSummary], wide: bool) -> String {
    let mut columns = vec!["job", "state", "stage", "done", "output", "reason"];
    if wide {
        columns.extend(["owner", "priority", "came", "ended"]);
    }
    let mut listing = table::with_headings(columns.into_iter().map(str::to_uppercase));
    for job in jobs {
        let mut row = vec![
            job.job_id.clone(),
            if job.paused { "paused".to_owned() } else { job.state.clone() },
            stage::name(&job.stage, job.round),
            format!("{:.0} %", job.fraction * 100.0),
            job.output_url.clone(),
            table::one_line(&job.reason),
        ];
        if wide {
            let ended = if job.finished_unix_ms > 0 { utc(job.finished_unix_ms) } else { "–".to_owned() };
            row.extend([job.owner.clone(), job.priority.to_string(), utc(job.created_unix_ms), ended]);
        }
        listing.add_row(row);
    }
    table::numbers(&mut listing, &[3]);
    table::text(&listing)
}
