//! `deltaconv watch`.

use std::process::ExitCode;

use deltaconv_proto::v1;

use super::{interrupted, status};
use crate::args::{Format, OfJob};
use crate::ending::Signals;
use crate::error::Error;
use crate::output;
use crate::progress::Progress;
use crate::watching::{self, Watcher};

pub(crate) async fn run(arguments: OfJob) -> Result<ExitCode, Error> {
    let mut signals = Signals::new()?;
    let url = &arguments.connection.coordinator;
    let job = &arguments.job;
    let last = match arguments.output.format {
        Format::Text => {
            let mut progress = Progress::new();
            let followed = tokio::select! {
                followed = watching::follow(url, job, &mut progress) => Some(followed),
                () = signals.next() => None,
            };
            progress.finish();
            followed
        }
        Format::Json => {
            let mut each_line = EachLine;
            tokio::select! {
                followed = watching::follow(url, job, &mut each_line) => Some(followed),
                () = signals.next() => None,
            }
        }
    };
    let Some(last) = last.transpose()? else {
        output::say(&format!("{job} goes on without being watched"));
        return Ok(interrupted());
    };
    if arguments.output.format == Format::Text {
        output::print(&status::describe(&last));
    }
    Ok(exit_code(&last))
}

/// 0 if the job is done, 1 if it failed or was cancelled.
pub(crate) fn exit_code(status: &v1::JobStatus) -> ExitCode {
    if watching::state(status) == "done" { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every status as one line of JSON.
struct EachLine;

impl Watcher for EachLine {
    fn status(&mut self, status: &v1::JobStatus) {
        output::print_json(status);
    }

    fn say(&mut self, line: &str) {
        output::say(line);
    }
}
