//! The demo's child processes: kept running while the job runs, and never outliving the demo.
//!
//! Each child's stdin is a pipe whose other end only this process holds. Dropping that end asks the child to end; a
//! killed demo drops it too.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::progress::Voice;

/// A child that was asked to end and has not after this is killed.
const PATIENCE: Duration = Duration::from_secs(15);
/// A child that ran this long was no failure to start.
const SETTLED: Duration = Duration::from_secs(30);
/// Ends in a row, each before the child settled, after which it is no longer started.
const MOST_ENDS: u32 = 7;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// What to run, again and again if need be.
pub(super) struct Program {
    /// What people call it, `worker-1`.
    pub(super) name: String,
    /// Its arguments, asked for at each start.
    pub(super) arguments: Box<dyn Fn() -> Vec<OsString> + Send + Sync>,
    /// Takes what it writes, after what it wrote earlier.
    pub(super) log: PathBuf,
}

/// Child processes of one kind.
pub(super) struct Processes {
    keepers: JoinSet<Result<(), Error>>,
    stop: CancellationToken,
    hurry: CancellationToken,
    voice: Voice,
}

impl Processes {
    /// None yet. `hurry` kills those that were asked to end and take their time.
    pub(super) fn new(voice: Voice, hurry: CancellationToken) -> Self {
        Self { keepers: JoinSet::new(), stop: CancellationToken::new(), hurry, voice }
    }

    /// Starts a program and keeps it running.
    pub(super) fn start(&mut self, program: Program) {
        let (stop, hurry, voice) = (self.stop.clone(), self.hurry.clone(), self.voice.clone());
        self.keepers.spawn(async move { keep(&program, &stop, &hurry, &voice).await });
    }

    /// Waits for a program that cannot be kept running.
    pub(super) async fn failure(&mut self) -> Error {
        loop {
            match self.keepers.join_next().await {
                Some(Ok(Err(error))) => return error,
                Some(Ok(Ok(()))) => {}
                Some(Err(panic)) => return Error::Runtime { source: io::Error::other(panic) },
                // Nothing left that could fail.
                None => std::future::pending().await,
            }
        }
    }

    /// Asks all of them to end, and waits until they have.
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        while self.keepers.join_next().await.is_some() {}
    }
}

async fn keep(
    program: &Program,
    stop: &CancellationToken,
    hurry: &CancellationToken,
    voice: &Voice,
) -> Result<(), Error> {
    let mut ends_in_a_row = 0;
    let mut starts = 0;
    let lost = |source| Error::Lost { name: program.name.clone(), source };
    loop {
        let (mut child, stdin) = spawn(program)?;
        starts += 1;
        let started = Instant::now();
        let again = if starts > 1 { " again" } else { "" };
        voice.say(&format!("{} started{again}, process {}", program.name, child.id().unwrap_or_default()));
        let ended = tokio::select! {
            ended = child.wait() => ended,
            () = stop.cancelled() => return end(child, stdin, hurry).await.map_err(lost),
        };
        let status = spell(ended.map_err(lost)?);
        ends_in_a_row = if started.elapsed() >= SETTLED { 1 } else { ends_in_a_row + 1 };
        if ends_in_a_row >= MOST_ENDS {
            let (name, log) = (program.name.clone(), program.log.clone());
            return Err(Error::KeepsEnding { name, status, starts, last_words: last_words(&log), log });
        }
        voice.say(&format!("{} ended ({status}), is started again", program.name));
        let pause = FIRST_PAUSE * 2_u32.pow(ends_in_a_row - 1);
        tokio::select! {
            () = time::sleep(pause) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

fn spawn(program: &Program) -> Result<(Child, ChildStdin), Error> {
    let executable = std::env::current_exe().map_err(Error::file("find", "the deltaconv executable"))?;
    let log = open_log(&program.log).map_err(Error::file("write", &program.log))?;
    let log_too = log.try_clone().map_err(Error::file("write", &program.log))?;
    let mut child = Command::new(&executable)
        .args((program.arguments)())
        .stdin(Stdio::piped())
        .stdout(log)
        .stderr(log_too)
        // Ctrl-C in a terminal goes to a whole group; the children end in the order that the demo chooses.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::file("start", &executable))?;
    let stdin =
        child.stdin.take().ok_or_else(|| Error::Runtime { source: io::Error::other("a child has no stdin") })?;
    Ok((child, stdin))
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    File::options().create(true).append(true).open(path)
}

/// Asks a child to end; kills it if it does not, or if there is no time.
async fn end(mut child: Child, stdin: ChildStdin, hurry: &CancellationToken) -> io::Result<()> {
    drop(stdin);
    tokio::select! {
        ended = child.wait() => ended.map(drop),
        () = time::sleep(PATIENCE) => child.kill().await,
        () = hurry.cancelled() => child.kill().await,
    }
}

fn spell(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no status".into(),
    }
}

/// The last line of a log that says something, shortened.
fn last_words(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let is_advice = |line: &str| ["help:", "more:"].iter().any(|word| line.starts_with(word));
    let said = |line: &&str| !line.trim().is_empty() && !is_advice(line);
    text.lines().rev().find(said).unwrap_or("it wrote nothing").chars().take(400).collect()
}
