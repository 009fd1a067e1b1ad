//! `deltaconv retry`.

use std::process::ExitCode;

use crate::args::{Format, OfJobOrTask};
use crate::client::Client;
use crate::error::Error;
use crate::{output, watching};

pub(crate) async fn run(arguments: OfJobOrTask) -> Result<ExitCode, Error> {
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
