//! `deltaconv pause`.

use std::process::ExitCode;

use crate::args::OfJob;
use crate::client::Client;
use crate::error::Error;
use crate::output;

pub(crate) async fn run(arguments: OfJob) -> Result<ExitCode, Error> {
    let status = Client::connect(&arguments.connection).await?.pause(&arguments.job).await?;
    match arguments.output.data() {
        Some(data) => data.print(&status),
        None => output::print(&format!(
            "{}: no more of its tasks are given to workers; those at work are handed back at a checkpoint",
            arguments.job
        )),
    }
    Ok(ExitCode::SUCCESS)
}
