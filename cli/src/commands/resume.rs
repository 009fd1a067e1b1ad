//! `deltaconv resume`.

use std::process::ExitCode;

use crate::args::OfJob;
use crate::client::Client;
use crate::error::Error;
use crate::output;

pub(crate) async fn run(arguments: OfJob) -> Result<ExitCode, Error> {
    let status = Client::connect(&arguments.connection).await?.resume(&arguments.job).await?;
    match arguments.output.data() {
        Some(data) => data.print(&status),
        None => output::print(&format!("{}: its tasks are given to workers again", arguments.job)),
    }
    Ok(ExitCode::SUCCESS)
}
