//! `deltaconv resume`.

use std::process::ExitCode;

use clap::Args;

use crate::args::{Connection, Format, Output};
use crate::client::Client;
use crate::error::Error;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The job's id, as `deltaconv jobs` lists it
    job: String,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let status = Client::connect(&arguments.connection.coordinator).await?.resume(&arguments.job).await?;
    match arguments.output.format {
        Format::Json => output::print_json(&status),
        Format::Text => output::print(&format!("{}: its tasks are given to workers again", arguments.job)),
    }
    Ok(ExitCode::SUCCESS)
}
