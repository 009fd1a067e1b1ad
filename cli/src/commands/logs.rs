//! `deltaconv logs`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use deltaconv_proto::{utc, v1};

use super::interrupted;
use crate::args::{Connection, Output};
use crate::client::{Client, Stream};
use crate::ending::Signals;
use crate::error::Error;
use crate::watching::patiently;
use crate::{output, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The task's id, as `deltaconv status JOB -o wide` lists it
    task: String,
    /// Go on with what is said, through restarts of the coordinator, until the task is over
    #[arg(short, long, visible_alias = "watch")]
    follow: bool,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let mut signals = Signals::new()?;
    tokio::select! {
        shown = show(&arguments) => shown.map(|()| ExitCode::SUCCESS),
        () = signals.next() => Ok(interrupted()),
    }
}

async fn show(arguments: &Arguments) -> Result<(), Error> {
    let Arguments { task, follow, connection, output } = arguments;
    let (to, follow) = (connection, *follow);
    let request = v1::LogsRequest { task_id: task.clone(), follow };
    let mut logs = open(to, &request).await?;
    let mut shown = Shown::default();
    loop {
        match logs.next_or_end().await {
            Ok(Some(log)) => {
                let Some(log) = shown.rest(log) else { continue };
                match output.data() {
                    Some(data) => data.print_one(&log),
                    None => log.lines.iter().for_each(|line| output::print(&describe(&log.attempt_id, line))),
                }
            }
            // A coordinator that stops ends its streams: what it would have said is asked for again.
            Ok(None) if !follow || is_over(to, task).await? => break,
            Err(error) if !follow || !error.is_unreachable() => return Err(error),
            Ok(None) | Err(_) => logs = patiently(|| open(to, &request)).await?,
        }
    }
    if shown.next.is_empty() && output.data().is_none() {
        output::say(&format!("nothing that was said of {task} is on record"));
    }
    Ok(())
}

async fn open(to: &Connection, request: &v1::LogsRequest) -> Result<Stream<v1::TaskLog>, Error> {
    Client::connect(to).await?.logs(request.clone()).await
}

/// Whether nobody works on a task any more.
async fn is_over(to: &Connection, task: &str) -> Result<bool, Error> {
    let explained = patiently(async || Client::connect(to).await?.explain(task).await).await?;
    Ok(!matches!(explained.state.as_str(), "running" | "verifying" | "ready" | "waiting"))
}

/// What was shown of each attempt: the number of its next line.
#[derive(Debug, Default)]
struct Shown {
    next: BTreeMap<String, u64>,
}

impl Shown {
    /// What was not shown yet.
    fn rest(&mut self, mut log: v1::TaskLog) -> Option<v1::TaskLog> {
        let next = self.next.entry(log.attempt_id.clone()).or_default();
        let known = usize::try_from(next.saturating_sub(log.first)).unwrap_or(usize::MAX).min(log.lines.len());
        log.lines.drain(..known);
        log.first += known as u64;
        *next = (*next).max(log.first + log.lines.len() as u64);
        (!log.lines.is_empty()).then_some(log)
    }
}

fn describe(attempt: &str, v1::LogLine { unix_ms, level, message }: &v1::LogLine) -> String {
    format!("{}  {attempt}  {level:5}  {}", utc(*unix_ms), table::one_line(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(first: u64, messages: &[&str]) -> v1::TaskLog {
        let line = |message: &&str| v1::LogLine { message: (*message).to_owned(), ..v1::LogLine::default() };
        let lines = messages.iter().map(line).collect();
        v1::TaskLog { attempt_id: "a1-2-x".into(), worker_id: "w1".into(), first, lines }
    }

    #[test]
    fn what_is_told_again_is_shown_once() {
        let mut shown = Shown::default();
        assert_eq!(shown.rest(log(0, &["a", "b"])), Some(log(0, &["a", "b"])));
        assert_eq!(shown.rest(log(0, &["a", "b"])), None);
        assert_eq!(shown.rest(log(1, &["b", "c"])), Some(log(2, &["c"])));
        // What is between is gone.
        assert_eq!(shown.rest(log(9, &["d"])), Some(log(9, &["d"])));
        assert_eq!(shown.rest(log(0, &["a"])), None);
    }

    #[test]
    fn a_line_is_one_line_whatever_a_worker_said() {
        let line = v1::LogLine { message: "\u{1b}[31mfirst\nsecond".into(), ..v1::LogLine::default() };
        let described = describe("a1-2-x", &line);
        assert!(!described.contains(char::is_control) && described.ends_with("first second"), "{described:?}");
    }
}
