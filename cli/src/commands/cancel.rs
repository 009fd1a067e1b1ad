//! `deltaconv cancel`.

use std::process::ExitCode;

use crate::args::{Format, OfJob};
use crate::client::Client;
use crate::error::Error;
use crate::{output, watching};

pub(crate) async fn run(arguments: OfJob) -> Result<ExitCode, Error> {
    let status = Client::connect(&arguments.connection.coordinator).await?.cancel(&arguments.job).await?;
    match arguments.output.format {
        Format::Json => output::print_json(&status),
        Format::Text => output::print(&format!("{} is {}", arguments.job, watching::state(&status))),
    }
    Ok(ExitCode::SUCCESS)
}
