//! What each subcommand does.

use std::process::ExitCode;

use crate::args::Command;
use crate::demo;
use crate::error::Error;

pub(crate) mod analyze;
pub(crate) mod bench;
pub(crate) mod cancel;
pub(crate) mod coordinator;
pub(crate) mod inspect;
pub(crate) mod jobs;
pub(crate) mod status;
pub(crate) mod submit;
pub(crate) mod watch;
pub(crate) mod worker;
pub(crate) mod workers;

/// Runs a subcommand. The code is success, or says how a job or the process itself ended.
pub(crate) async fn run(command: Command) -> Result<ExitCode, Error> {
    match command {
        Command::Analyze(arguments) => analyze::run(arguments).await,
        Command::Bench(arguments) => bench::run(arguments).await,
        Command::Demo(arguments) => demo::run(arguments).await,
        Command::Coordinator(arguments) => coordinator::run(arguments).await,
        Command::Worker(arguments) => worker::run(arguments).await,
        Command::Submit(arguments) => submit::run(arguments).await,
        Command::Inspect(arguments) => inspect::run(arguments).await,
        Command::Jobs(arguments) => jobs::run(arguments).await,
        Command::Status(arguments) => status::run(arguments).await,
        Command::Watch(arguments) => watch::run(arguments).await,
        Command::Workers(arguments) => workers::run(arguments).await,
        Command::Cancel(arguments) => cancel::run(arguments).await,
    }
}

/// How a process that was interrupted ends, as shells expect it.
pub(crate) fn interrupted() -> ExitCode {
    ExitCode::from(130)
}
