//! `deltaconv doctor`: whether this machine can do its part, and what to do where it can't.

mod disk;
mod machine;
mod store;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use deltaconv_proto::code::Code;
use serde::Serialize;

use crate::args::{Connection, Device, Output};
use crate::client::Client;
use crate::error::{Error, explain};
use crate::{location, output, table};

/// A clock that is off by more makes signatures of requests to stores invalid sooner or later (S3 allows 15 minutes), and times in
/// events and logs hard to compare.
const CLOCK: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Folder or URL that jobs write to: a few objects are written there and removed again [default: no store is looked at]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Folder whose disk is looked at, such as a worker's --disk-cache [default: the system's temporary folder]
    #[arg(long, value_name = "FOLDER")]
    disk: Option<PathBuf>,
    /// What blocks would be trained on
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// Look at this machine alone
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    /// It works, and less well than it could.
    Warning,
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub(crate) struct Finding {
    check: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do; empty where nothing is.
    remedy: String,
    /// Of the error, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), remedy: String::new(), code: None }
    }

    fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, remedy: remedy.into(), ..Self::ok(check, found) }
    }

    fn failed(check: &'static str, found: impl Into<String>, code: Code) -> Self {
        let remedy = code.entry().remedy.to_owned();
        Self { verdict: Verdict::Failed, remedy, code: Some(code.as_str()), ..Self::ok(check, found) }
    }
}

#[derive(Serialize, schemars::JsonSchema)]
pub(crate) struct Findings {
    findings: Vec<Finding>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let mut findings = Vec::new();
    let mut add = |finding: Finding| {
        if arguments.output.data().is_none() {
            output::print(&describe(&finding));
        }
        findings.push(finding);
    };
    add(machine::processor());
    add(machine::memory());
    for finding in machine::device(arguments.device).await {
        add(finding);
    }
    let folder = arguments.disk.clone().unwrap_or_else(std::env::temp_dir);
    for finding in disk::look(&folder).await {
        add(finding);
    }
    if let Some(named) = &arguments.store {
        let url = location::url(named, Path::new(""))?;
        for finding in store::look(&url).await {
            add(finding);
        }
    }
    if !arguments.offline {
        for finding in coordinator(&arguments.connection).await {
            add(finding);
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (warnings, failed) = (count(Verdict::Warning), count(Verdict::Failed));
    match arguments.output.data() {
        Some(data) => data.print(&Findings { findings }),
        None => output::say(&format!("{failed} failed, {warnings} could be better")),
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe(Finding { check, verdict, found, remedy, code }: &Finding) -> String {
    let word = match verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Failed => "FAILED",
    };
    let code = code.map(|code| format!(" [{code}]")).unwrap_or_default();
    let mut text = format!("{word:8} {check:18} {}{code}", table::one_line(found));
    if !remedy.is_empty() {
        text += &format!("\n{:27} what to do: {remedy}", "");
    }
    text
}

/// Whether a coordinator answers, and what time it has.
async fn coordinator(to: &Connection) -> Vec<Finding> {
    const CHECK: &str = "coordinator";
    let asked = async {
        let mut client = Client::connect(to).await?;
        let began = std::time::Instant::now();
        let date = client.date().await?;
        Ok::<_, Error>((date, began.elapsed()))
    };
    match asked.await {
        Err(error) => vec![Finding::failed(CHECK, explain(&error), error.code())],
        Ok((date, took)) => {
            let answers = Finding::ok(CHECK, format!("{to} answers within {:.1} ms", took.as_secs_f64() * 1e3));
            std::iter::once(answers).chain(date.map(|date| clock(date, SystemTime::now()))).collect()
        }
    }
}

/// `theirs` is given in whole seconds.
fn clock(theirs: SystemTime, ours: SystemTime) -> Finding {
    const CHECK: &str = "clock";
    let (apart, word) = match ours.duration_since(theirs) {
        Ok(apart) => (apart, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    match apart <= CLOCK {
        true => Finding::ok(CHECK, "as the coordinator's, within a few seconds"),
        false => Finding::warning(
            CHECK,
            format!("{} s {word} the coordinator's", apart.as_secs()),
            "set both clocks by NTP (`timedatectl set-ntp true`): stores refuse requests that are signed at a wrong time",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_are_apart_are_found() {
        let now = SystemTime::now();
        assert_eq!(clock(now - Duration::from_secs(2), now).verdict, Verdict::Ok);
        let ahead = clock(now - Duration::from_secs(90), now);
        assert!(ahead.verdict == Verdict::Warning && ahead.found.starts_with("90 s ahead of"), "{ahead:?}");
        assert!(clock(now + Duration::from_secs(90), now).found.contains("behind"));
    }

    #[test]
    fn what_failed_says_what_to_do() {
        let text = describe(&Finding::failed("device", "no driver", Code::NoDevice));
        assert!(
            text.starts_with("FAILED   device") && text.contains("[DC0801]") && text.contains("what to do: "),
            "{text}"
        );
    }
}
