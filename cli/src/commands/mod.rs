//! What each subcommand does.

use std::process::ExitCode;

use crate::args::Command;
use crate::config::Config;
use crate::demo;
use crate::error::Error;

pub(crate) mod alloc;
pub(crate) mod analyze;
pub(crate) mod bench;
pub(crate) mod cancel;
pub(crate) mod certs;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod coordinator;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod explain_error;
pub(crate) mod gc;
pub(crate) mod inspect;
pub(crate) mod jobs;
pub(crate) mod logs;
pub(crate) mod pause;
pub(crate) mod reference;
pub(crate) mod report;
pub(crate) mod resume;
pub(crate) mod retry;
pub(crate) mod sample;
pub(crate) mod status;
pub(crate) mod submit;
pub(crate) mod teacher;
pub(crate) mod top;
pub(crate) mod watch;
pub(crate) mod worker;
pub(crate) mod workers;

/// Runs a subcommand. The code is success, or says how a job or the process itself ended.
pub(crate) async fn run(command: Command, config: &Config) -> Result<ExitCode, Error> {
    match command {
        Command::Alloc(arguments) => alloc::run(arguments).await,
        Command::Analyze(arguments) => analyze::run(arguments).await,
        Command::Bench(arguments) => bench::run(arguments).await,
        Command::Certs(arguments) => certs::run(arguments),
        Command::Demo(arguments) => demo::run(arguments).await,
        Command::Teacher(arguments) => teacher::run(arguments).await,
        Command::Coordinator(arguments) => coordinator::run(arguments).await,
        Command::Worker(arguments) => worker::run(arguments).await,
        Command::Submit(arguments) => submit::run(arguments).await,
        Command::Sample(arguments) => sample::run(arguments).await,
        Command::Inspect(arguments) => inspect::run(arguments).await,
        Command::Jobs(arguments) => jobs::run(arguments).await,
        Command::Status(arguments) => status::run(arguments).await,
        Command::Report(arguments) => report::run(arguments).await,
        Command::Top(arguments) => top::run(arguments).await,
        Command::Watch(arguments) => watch::run(arguments).await,
        Command::Workers(arguments) => workers::run(arguments).await,
        Command::Cancel(arguments) => cancel::run(arguments).await,
        Command::Pause(arguments) => pause::run(arguments).await,
        Command::Resume(arguments) => resume::run(arguments).await,
        Command::Retry(arguments) => retry::run(arguments).await,
        Command::Events(arguments) => events::run(arguments).await,
        Command::Logs(arguments) => logs::run(arguments).await,
        Command::Explain(arguments) => explain::run(arguments).await,
        Command::Gc(arguments) => gc::run(arguments).await,
        Command::Doctor(arguments) => doctor::run(arguments).await,
        Command::Config(arguments) => config::run(arguments, config),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => completions::manual(&arguments),
        Command::ExplainError(arguments) => explain_error::run(&arguments),
        Command::Reference(arguments) => Ok(reference::run(&arguments)),
    }
}

/// Height and width from "64x96".
pub(crate) fn size(text: &str) -> Result<(usize, usize), String> {
    let sides = text.split_once(['x', '×']).map(|(height, width)| (height.trim().parse(), width.trim().parse()));
    match sides {
        Some((Ok(height), Ok(width))) if height > 0 && width > 0 => Ok((height, width)),
        _ => Err("write height and width as 64x96".to_owned()),
    }
}

/// How a process that was interrupted ends, as shells expect it.
pub(crate) const INTERRUPTED: u8 = 130;

pub(crate) fn interrupted() -> ExitCode {
    ExitCode::from(INTERRUPTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_height_times_width() {
        assert_eq!(size("64x96"), Ok((64, 96)));
        assert_eq!(size("8×8"), Ok((8, 8)));
        for wrong in ["64", "0x64", "64x-1", "x", "64x64x64"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
