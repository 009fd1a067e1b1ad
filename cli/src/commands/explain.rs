//! `deltaconv explain`.

use std::process::ExitCode;

use clap::Args;

use super::interrupted;
use crate::args::{OfJobOrTask, Refresh};
use crate::client::Client;
use crate::error::Error;
use crate::{output, refresh};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    of: OfJobOrTask,
    #[command(flatten)]
    refresh: Refresh,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let Arguments { of: OfJobOrTask { id, connection, output }, refresh } = arguments;
    let ask = async || Client::connect(&connection).await?.explain(&id).await;
    let shown = refresh::show(refresh, output, ask, |explained, _| {
        output::print(&format!("{id} is {}: {}", explained.state, explained.reason));
        if !explained.remedy.is_empty() {
            output::print(&format!("what would help: {}", explained.remedy));
        }
    });
    Ok(shown.await?.map_or_else(interrupted, |_| ExitCode::SUCCESS))
}
