//! Slurm, through the commands that its users have.

use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::decide::{How, Job, Phase};
use crate::error::Error;
use crate::table;

/// Slurm's own patience with its controller is shorter.
const LIMIT: Duration = Duration::from_secs(60);
/// The number, the state, begin and end, and last the reason, which may have anything in it.
const FORMAT: &str = "--format=%i|%T|%S|%e|%r";
/// What is no job's of this process' environment, which sbatch passes on: secrets, and what workers are told otherwise.
const OURS: [&str; 5] = [
    "DELTACONV_COORDINATOR",
    "DELTACONV_CREDENTIALS",
    "DELTACONV_INVITATION",
    "DELTACONV_INVITATION_FILE",
    // systemd's, on this machine.
    "STATE_DIRECTORY",
];

/// The jobs of one name and of the user that runs this.
#[derive(Clone, Debug)]
pub(super) struct Slurm {
    name: String,
    /// Of a job that is submitted, beside its name.
    options: Vec<String>,
}

impl Slurm {
    /// Jobs of this name, submitted with these options.
    pub(super) fn new(name: &str, options: Vec<String>) -> Self {
        Self { name: name.to_owned(), options }
    }

    /// The arguments of sbatch that submit a job from a script on stdin, on none of the excluded machines.
    pub(super) fn submission(&self, exclude: &[String]) -> Vec<String> {
        let mut arguments = vec!["--parsable".to_owned(), format!("--job-name={}", self.name)];
        if !exclude.is_empty() {
            arguments.push(format!("--exclude={}", exclude.join(",")));
        }
        arguments.extend(self.options.iter().cloned());
        arguments
    }

    /// The jobs that there are, and those that ended lately: Slurm forgets them after some minutes.
    pub(super) async fn jobs(&self) -> Result<Vec<Job>, Error> {
        let named = format!("--name={}", self.name);
        let listed = call("squeue", &["--noheader", "--states=all", "--me", named.as_str(), FORMAT], None).await?;
        // Where several clusters are asked each has a heading.
        let lines = listed.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("CLUSTER:"));
        lines.map(|line| job(line).ok_or_else(|| unexpected("squeue", line))).collect()
    }

    /// Submits a job, and answers with its number.
    pub(super) async fn submit(&self, script: &str, exclude: &[String]) -> Result<u64, Error> {
        let arguments = self.submission(exclude);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let said = call("sbatch", &arguments, Some(script)).await?;
        // The number, or the number and the cluster's name; what a site's plugin says comes before it.
        let number = said.lines().rev().find_map(|line| line.trim().split(';').next()?.parse().ok());
        number.ok_or_else(|| unexpected("sbatch", &said))
    }

    /// Takes back those of the jobs that still wait.
    pub(super) async fn cancel(&self, jobs: &[u64]) -> Result<(), Error> {
        let mut arguments = vec!["--state=PENDING".to_owned()];
        arguments.extend(jobs.iter().map(u64::to_string));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        call("scancel", &arguments, None).await.map(drop)
    }

    /// Makes sure that jobs which were just submitted are found again: if they weren't, ever more would be submitted. Those
    /// that aren't are taken back.
    ///
    /// # Errors
    /// A job that Slurm has under another name.
    pub(super) async fn check_listed(&self, submitted: &[u64]) -> Result<(), Error> {
        let listed = self.jobs().await?;
        let unlisted: Vec<u64> =
            submitted.iter().copied().filter(|id| listed.iter().all(|job| job.id != *id)).collect();
        if unlisted.is_empty() {
            return Ok(());
        }
        let ids: Vec<String> = unlisted.iter().map(u64::to_string).collect();
        let ids = format!("--jobs={}", ids.join(","));
        let named = call("squeue", &["--noheader", "--states=all", ids.as_str(), "--format=%i|%j"], None).await;
        let named = match named {
            // Slurm has forgotten them already.
            Err(Error::Slurm { .. }) => return Ok(()),
            named => named?,
        };
        let Some((job, listed)) = named.lines().find_map(|line| line.trim().split_once('|')) else { return Ok(()) };
        self.cancel(&unlisted).await?;
        Err(Error::SlurmRenamed { job: job.to_owned(), listed: listed.to_owned(), name: self.name.clone() })
    }

    /// The machines of the partition that is named, or of all.
    pub(super) async fn machines(partition: Option<&str>) -> Result<Vec<String>, Error> {
        let partition = partition.map(|partition| format!("--partition={partition}"));
        let arguments = ["--noheader", "--Node", "--format=%N"].into_iter().chain(partition.as_deref());
        let listed = call("sinfo", &arguments.collect::<Vec<_>>(), None).await?;
        let mut machines: Vec<String> = listed.lines().map(|line| line.trim().to_owned()).collect();
        machines.retain(|machine| !machine.is_empty());
        machines.sort_unstable();
        machines.dedup();
        Ok(machines)
    }

    /// The time between Slurm's asking a job to end and its being killed.
    pub(super) async fn kill_wait() -> Result<Duration, Error> {
        let said = call("scontrol", &["show", "config"], None).await?;
        kill_wait(&said).ok_or_else(|| unexpected("scontrol", "no KillWait"))
    }
}

/// Runs a command, and answers with what it wrote to stdout.
async fn call(program: &'static str, arguments: &[&str], input: Option<&str>) -> Result<String, Error> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    // Ctrl-C at a terminal goes to a whole group, and asks this process alone.
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).process_group(0);
    OURS.iter().for_each(|variable| _ = command.env_remove(variable));
    if program == "squeue" {
        // Seconds since 1970. What a user has squeue leave out by default must be seen here.
        command.env("SLURM_TIME_FORMAT", "%s");
        let filters = std::env::vars_os().map(|(name, _)| name);
        filters
            .filter(|name| name.to_string_lossy().starts_with("SQUEUE_"))
            .for_each(|name| _ = command.env_remove(name));
    }
    let failed = |source| Error::NoSlurm { program, source };
    let mut child = command.spawn().map_err(failed)?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // One that doesn't read it says why when it ends.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let ended = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
    let Output { status, stdout, stderr } = ended
        .map_err(|_| Error::Slurm { program, said: format!("no answer within {} s", LIMIT.as_secs()) })?
        .map_err(failed)?;
    if !status.success() {
        let said = said(program, &String::from_utf8_lossy(&stderr));
        return Err(Error::Slurm { program, said: if said.is_empty() { status.to_string() } else { said } });
    }
    String::from_utf8(stdout).map_err(|error| failed(io::Error::other(error)))
}

/// What a command that failed wrote, in one line and without its own name before each.
fn said(program: &str, stderr: &str) -> String {
    let words = |line: &str| {
        let line = line.strip_prefix(program).and_then(|line| line.strip_prefix(": ")).unwrap_or(line);
        table::one_line(line.strip_prefix("error: ").unwrap_or(line).trim())
    };
    let lines: Vec<String> = stderr.lines().map(words).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}

fn unexpected(program: &'static str, line: &str) -> Error {
    Error::Slurm { program, said: format!("{:?} is not what it should answer", table::one_line(line)) }
}

/// A line of squeue.
fn job(line: &str) -> Option<Job> {
    let fields: [&str; 5] = line.splitn(5, '|').collect::<Vec<_>>().try_into().ok()?;
    let [id, state, begin, end, reason] = fields;
    let digits = id.find(|c: char| !c.is_ascii_digit()).unwrap_or(id.len());
    // "N/A" or "NONE" where there is no such time.
    let time = |text: &str| text.parse().unwrap_or(0);
    let ended = |how| Phase::Ended { at: time(end), how };
    let phase = match state {
        "PENDING" | "REQUEUED" | "REQUEUE_HOLD" | "REQUEUE_FED" | "RESV_DEL_HOLD" | "SPECIAL_EXIT" => Phase::Pending,
        "CONFIGURING" | "COMPLETING" => Phase::Between,
        "COMPLETED" => ended(How::Well),
        "FAILED" | "OUT_OF_MEMORY" | "BOOT_FAIL" => ended(How::Failed),
        "CANCELLED" | "TIMEOUT" | "PREEMPTED" | "NODE_FAIL" | "DEADLINE" | "REVOKED" => ended(How::Stopped),
        // What isn't known holds a machine, as far as we know: too few jobs are better than ever more.
        _ => Phase::Running { since: time(begin) },
    };
    Some(Job { id: id[..digits].parse().ok()?, phase, reason: table::one_line(reason) })
}

/// Of what `scontrol show config` says.
fn kill_wait(config: &str) -> Option<Duration> {
    let mut values = config.lines().filter_map(|line| line.split_once('='));
    let (_, value) = values.find(|(name, _)| name.trim() == "KillWait")?;
    value.split_whitespace().next()?.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_squeue_are_read() {
        for (line, id, phase, reason) in [
            ("7|PENDING|N/A|N/A|Resources", 7, Phase::Pending, "Resources"),
            ("7|RUNNING|1796006385|NONE|None", 7, Phase::Running { since: 1_796_006_385 }, "None"),
            ("7|COMPLETING|1796006385|1796006463|None", 7, Phase::Between, "None"),
            ("7|COMPLETED|1|2|None", 7, Phase::Ended { at: 2, how: How::Well }, "None"),
            ("2|FAILED|1|2|NonZeroExitCode", 2, Phase::Ended { at: 2, how: How::Failed }, "NonZeroExitCode"),
            ("7|CANCELLED|1|2|None", 7, Phase::Ended { at: 2, how: How::Stopped }, "None"),
            ("7|SIGNALING|1|2|None", 7, Phase::Running { since: 1 }, "None"),
            ("8_4|PENDING|N/A|N/A|launch failed | held", 8, Phase::Pending, "launch failed | held"),
        ] {
            assert_eq!(job(line), Some(Job { id, phase, reason: reason.into() }), "{line}");
        }
        for line in ["", "slurm_load_jobs error", "x|PENDING|N/A|N/A|None", "7|PENDING"] {
            assert_eq!(job(line), None, "{line}");
        }
    }

    #[test]
    fn what_slurm_says_is_one_line_without_the_commands_name() {
        let stderr =
            "sbatch: error: invalid partition specified: x\n\nsbatch: error: Batch job submission failed: no\n";
        assert_eq!(said("sbatch", stderr), "invalid partition specified: x; Batch job submission failed: no");
        assert_eq!(said("squeue", "slurm_load_jobs error: no\n"), "slurm_load_jobs error: no");
    }

    #[test]
    fn the_time_until_a_job_is_killed_is_read() {
        let config = "InactiveLimit           = 0 sec\nKillOnBadExit           = 0\nKillWait                = 15 sec\n";
        assert_eq!(kill_wait(config), Some(Duration::from_secs(15)));
        assert_eq!(kill_wait("KillWait"), None);
    }

    #[test]
    fn what_a_user_says_comes_last_and_so_counts() {
        let slurm = Slurm::new("dc", vec!["--time=10".into(), "--time=20".into()]);
        assert_eq!(slurm.submission(&[]), ["--parsable", "--job-name=dc", "--time=10", "--time=20"]);
        let excluded = ["a1".to_owned(), "a2".to_owned()];
        assert_eq!(slurm.submission(&excluded)[2], "--exclude=a1,a2");
    }
}
