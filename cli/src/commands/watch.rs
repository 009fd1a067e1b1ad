//! `deltaconv watch`.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use deltaconv_proto::v1;

use super::{interrupted, status};
use crate::args::OfJob;
use crate::ending::Signals;
use crate::error::Error;
use crate::output::{self, Data};
use crate::progress::{Beside, Progress};
use crate::watching::{self, Watcher};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    of: OfJob,
    /// What is waited for: the exit code is 0 once it is so, and 1 once it can't be any more
    #[arg(long, value_enum, value_name = "STATE", default_value_t)]
    until: Until,
}

/// How a job ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Until {
    /// The converted model is there
    #[default]
    Done,
    /// It failed, or was cancelled
    Failed,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let Arguments { of: OfJob { job, connection, output }, until } = arguments;
    let mut signals = Signals::new()?;
    let to = &connection;
    let followed = match output.data() {
        None => {
            let beside = Beside::default();
            let mut progress = Progress::new(beside.clone());
            let followed = tokio::select! {
                followed = watching::follow(to, &job, &mut progress) => Some(followed),
                () = beside.keep(to, &job) => None,
                () = signals.next() => None,
            };
            progress.finish();
            followed
        }
        Some(data) => {
            let mut each = Each(data);
            tokio::select! {
                followed = watching::follow(to, &job, &mut each) => Some(followed),
                () = signals.next() => None,
            }
        }
    };
    let Some(last) = followed.transpose()? else {
        output::say(&format!("{job} goes on without being watched"));
        return Ok(interrupted());
    };
    if output.data().is_none() {
        output::print(&status::describe(&last));
    }
    Ok(match until {
        Until::Done => exit_code(&last),
        Until::Failed if watching::state(&last) != "done" => ExitCode::SUCCESS,
        Until::Failed => ExitCode::FAILURE,
    })
}

/// 0 if the job is done, 1 if it failed or was cancelled.
pub(crate) fn exit_code(status: &v1::JobStatus) -> ExitCode {
    if watching::state(status) == "done" { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every status for programs.
struct Each(Data);

impl Watcher for Each {
    fn status(&mut self, status: &v1::JobStatus) {
        self.0.print_one(status);
    }

    fn say(&mut self, line: &str) {
        output::say(line);
    }
}
