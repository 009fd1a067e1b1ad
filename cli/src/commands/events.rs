//! `deltaconv events`.

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
    /// Only what happened to this job and its tasks
    job: Option<String>,
    /// Go on with what happens, through restarts of the coordinator, until interrupted
    #[arg(short, long, visible_alias = "watch")]
    follow: bool,
    /// Only what happened after the event of this number, which `-o json` shows as its sequence
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    after: u64,
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
    let Arguments { job, follow, after, connection, output } = arguments;
    let (to, follow) = (connection, *follow);
    let mut request = v1::EventsRequest { after: *after, job_id: job.clone().unwrap_or_default(), follow };
    let mut events = open(to, &request).await?;
    let mut is_first = true;
    loop {
        let event = match events.next_or_end().await {
            Ok(Some(event)) => event,
            Ok(None) if !follow => break,
            Err(error) if !follow || !error.is_unreachable() => return Err(error),
            Ok(None) | Err(_) => {
                output::say(&format!("the coordinator at {to} is gone; waiting for it to come back"));
                events = patiently(|| open(to, &request)).await?;
                continue;
            }
        };
        request.after = event.sequence;
        match output.data() {
            Some(data) => data.print_one(&event),
            None => {
                if std::mem::take(&mut is_first) {
                    output::print(&line(&HEADINGS.map(str::to_uppercase)));
                }
                output::print(&line(&columns(&event)));
            }
        }
    }
    if is_first && output.data().is_none() {
        output::say("nothing happened that is still on record");
    }
    Ok(())
}

async fn open(to: &Connection, request: &v1::EventsRequest) -> Result<Stream<v1::Event>, Error> {
    Client::connect(to).await?.events(request.clone()).await
}

const HEADINGS: [&str; 5] = ["time", "severity", "kind", "about", "message"];

fn columns(event: &v1::Event) -> [String; 5] {
    let about = [&event.task_id, &event.job_id, &event.worker_id, &event.node];
    let about = about.into_iter().find(|id| !id.is_empty()).cloned().unwrap_or_default();
    let by = if event.task_id.is_empty() || event.worker_id.is_empty() {
        String::new()
    } else {
        format!(" ({})", event.worker_id)
    };
    let message = format!("{}{by}", table::one_line(&event.message));
    [utc(event.unix_ms), event.severity.clone(), event.kind.clone(), about, message]
}

/// One line of columns that are as wide as most of what stands in them: events come one by one.
fn line([time, severity, kind, about, message]: &[String; 5]) -> String {
    format!("{time:23}  {severity:8}  {kind:19}  {about:34}  {message}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_a_worker_said() {
        let event = v1::Event {
            sequence: 7,
            severity: "warning".into(),
            kind: "task-failed".into(),
            job_id: "a-1".into(),
            task_id: "a-1/r0/distill/mid".into(),
            worker_id: "w1-x".into(),
            message: "an attempt failed: \u{1b}[31mfirst\nsecond".into(),
            ..v1::Event::default()
        };
        let line = line(&columns(&event));
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(line.contains("task-failed") && line.contains("a-1/r0/distill/mid"), "{line}");
        assert!(line.ends_with("first second (w1-x)"), "{line}");
    }
}
