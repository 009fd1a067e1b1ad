//! `deltaconv explain`.

use std::process::ExitCode;

use crate::args::{Format, OfJobOrTask};
use crate::client::Client;
use crate::error::Error;
use crate::output;

pub(crate) async fn run(arguments: OfJobOrTask) -> Result<ExitCode, Error> {
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
