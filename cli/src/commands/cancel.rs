//! `deltaconv cancel`.

use std::process::ExitCode;

use clap::Args;

use crate::args::{Confirmation, OfJob};
use crate::client::Client;
use crate::error::Error;
use crate::{output, watching};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    of: OfJob,
    #[command(flatten)]
    confirmation: Confirmation,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let OfJob { job, connection, output } = arguments.of;
    let mut client = Client::connect(&connection).await?;
    client.job(&job).await?;
    arguments.confirmation.ask(&format!("end {job} for good"))?;
    let status = client.cancel(&job).await?;
    match output.data() {
        Some(data) => data.print(&status),
        None => output::print(&format!("{job} is {}", watching::state(&status))),
    }
    Ok(ExitCode::SUCCESS)
}
