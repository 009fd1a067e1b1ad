//! `deltaconv retry`.

use std::process::ExitCode;

use clap::Args;

use crate::args::{OfJobOrTask, Ownership};
use crate::client::Client;
use crate::error::Error;
use crate::watching;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    of: OfJobOrTask,
    #[command(flatten)]
    ownership: Ownership,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let OfJobOrTask { id, connection, output } = arguments.of;
    let status = Client::connect(&connection).await?.retry(&id, arguments.ownership.take_over).await?;
    match output.data() {
        Some(data) => data.print(&status),
        None => {
            let job = status.summary.as_ref().map_or("", |summary| &summary.job_id);
            crate::output::print(&format!("{job} is {}; what failed of {id} is tried again", watching::state(&status)));
        }
    }
    Ok(ExitCode::SUCCESS)
}
