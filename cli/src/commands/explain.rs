//! `deltaconv explain`.

use std::process::ExitCode;

use clap::Args;

use crate::args::{Connection, Format, Output};
use crate::client::Client;
use crate::error::Error;
use crate::output;

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
    let explained = Client::connect(&arguments.connection.coordinator).await?.explain(&arguments.id).await?;
    match arguments.output.format {
        Format::Json => output::print_json(&explained),
        Format::Text => {
            output::print(&format!("{} is {}: {}", arguments.id, explained.state, explained.reason));
            if !explained.remedy.is_empty() {
                output::print(&format!("what would help: {}", explained.remedy));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
