//! `deltaconv retry`.

use std::process::ExitCode;

use clap::Args;

use crate::args::{Connection, Format, Output};
use crate::client::Client;
use crate::error::Error;
use crate::{output, watching};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A job's id, as `deltaconv jobs` lists it, or a task's, as `deltaconv status` does
    id: String,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let status = Client::connect(&arguments.connection.coordinator).await?.retry(&arguments.id).await?;
    match arguments.output.format {
        Format::Json => output::print_json(&status),
        Format::Text => {
            let job = status.summary.as_ref().map_or("", |summary| &summary.job_id);
            output::print(&format!(
                "{job} is {}; what failed of {} is tried again",
                watching::state(&status),
                arguments.id
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}
