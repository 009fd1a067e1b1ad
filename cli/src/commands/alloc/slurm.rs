//! `deltaconv alloc slurm`.

use std::collections::BTreeSet;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use deltaconv_proto::v1;
use tokio_util::sync::CancellationToken;

use super::decide::{self, Decision, Failing, Job, Phase, Seen, Tally};
use super::queue::Slurm;
use super::script::{Admission, Script, quoted};
use crate::args::Connection;
use crate::client::Client;
use crate::commands::interrupted;
use crate::error::Error;
use crate::logs::Logging;
use crate::{duration, ending, location, output};

/// As long as a worker's own default.
const LONGEST_GRACE: Duration = Duration::from_secs(25);
/// Of the time that Slurm gives a job to end, what is left for the end of its process.
const ENDING: Duration = Duration::from_secs(5);
/// Between asking a job to end and its time limit; Slurm looks once a minute.
const BEFORE_LIMIT: Duration = Duration::from_secs(60);
/// The longest pause after looks that failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Kinds of machines that are remembered; a cluster has few.
const DEVICES: usize = 64;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Jobs that may wait and run at a time
    #[arg(long, value_name = "N")]
    max_workers: NonZero<u32>,
    /// The partition that jobs go to [default: Slurm's]
    #[arg(long, value_name = "PARTITION")]
    partition: Option<String>,
    /// GPUs of each job, as sbatch takes them: 1, or a100:1
    #[arg(long, value_name = "GPUS")]
    gpus: Option<String>,
    /// Generic resources of each job, as sbatch takes them, where Slurm doesn't know --gpus: gpu:1
    #[arg(long, value_name = "LIST")]
    gres: Option<String>,
    /// Processors of each job [default: Slurm's]
    #[arg(long, value_name = "N")]
    cpus_per_task: Option<NonZero<u32>>,
    /// Memory of each job, as sbatch takes it: 64G [default: Slurm's]
    #[arg(long, value_name = "SIZE")]
    mem: Option<String>,
    /// Time limit of each job, as sbatch takes it: 4:00:00 [default: the partition's]
    #[arg(long, value_name = "TIME")]
    time: Option<String>,
    /// The account that jobs are charged to [default: Slurm's]
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<String>,
    /// Quality of service of the jobs [default: Slurm's]
    #[arg(long, value_name = "QOS")]
    qos: Option<String>,
    /// Features that a job's machine must have, as sbatch takes them
    #[arg(long, value_name = "LIST")]
    constraint: Option<String>,
    /// The jobs' name, by which they are found again: of each allocator its own [default: deltaconv, and the partition]
    #[arg(long, value_name = "NAME", value_parser = job_name)]
    name: Option<String>,
    /// File with the invitation that workers join with, where this machine and theirs see it
    #[arg(long, value_name = "FILE")]
    invitation_file: Option<PathBuf>,
    /// In place of an invitation: file with the token that the coordinator wrote
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// With a token: the coordinator's URL as workers reach it [default: as this machine does]
    #[arg(long, value_name = "URL")]
    reached_at: Option<String>,
    /// What starts deltaconv on a job's machine, in words of the shell: 'apptainer exec --nv deltaconv.sif deltaconv' [default: this
    /// executable, by its path]
    #[arg(long, value_name = "COMMAND")]
    program: Option<String>,
    /// Line of the shell that comes before it, such as 'module load cuda'; may be given several times
    #[arg(long, value_name = "LINE")]
    setup: Vec<String>,
    /// More options of each worker, in words of the shell: '--disk-cache "$TMPDIR"'
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    worker_options: Option<String>,
    /// Folder for what jobs write; made if it isn't there
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    logs: PathBuf,
    /// A worker ends after being given nothing for so long
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration::parse)]
    end_when_idle: Duration,
    /// Time for a worker that is asked to end to hand its task back [default: 25s, or less where Slurm's KillWait leaves less]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    grace: Option<Duration>,
    /// Time between two looks at the coordinator and Slurm
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    every: Duration,
    /// Look once, and end
    #[arg(long)]
    once: bool,
    /// Show a job and how many would be submitted, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    logging: Logging,
    /// End when stdin closes
    #[arg(long, hide = true)]
    exit_with_parent: bool,
    /// More options for sbatch; they come last, and so count
    #[arg(last = true, value_name = "SBATCH_OPTION", value_parser = sbatch_option)]
    sbatch: Vec<String>,
}

/// Part of workers' names and of files'.
fn job_name(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    match !text.is_empty() && text.len() <= 64 && text.chars().all(is_plain) {
        true => Ok(text.to_owned()),
        false => Err("at most 64 letters, digits, '_', '-' and '.'".to_owned()),
    }
}

/// Refuses what would have jobs lost sight of, or be another thing than one worker each.
fn sbatch_option(text: &str) -> Result<String, String> {
    let long = text.split('=').next().unwrap_or_default();
    let refused = ["--job-name", "--array", "--wrap", "--wait", "--test-only", "--clusters", "--uid"];
    let short = ["-J", "-a", "-W", "-M"].into_iter().find(|short| text.starts_with(short));
    match refused.into_iter().find(|refused| long == *refused).or(short) {
        Some(option) => Err(format!("{option} can't be passed on: each job is one worker, found again by its name")),
        None => Ok(text.to_owned()),
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let (once, dry_run) = (arguments.once, arguments.dry_run);
    let exit_with_parent = arguments.exit_with_parent;
    let _logging = arguments.logging.start()?;
    let mut allocator = Allocator::new(arguments).await?;
    if dry_run {
        return allocator.show().await.map(|()| ExitCode::SUCCESS);
    }
    if once {
        let Done { submitted, cancelled, tally } = allocator.look().await?;
        let Tally { ready, at_work, pending, running } = tally;
        output::print(&format!(
            "{ready} tasks are ready and {at_work} workers at work; {running} jobs were running and {pending} waiting; \
             {submitted} were submitted, {cancelled} cancelled"
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let shutdown = CancellationToken::new();
    match ending::serve(exit_with_parent, None, &shutdown, allocator.serve(&shutdown)).await? {
        Some(ended) => ended.map(|()| ExitCode::SUCCESS),
        None => Ok(interrupted()),
    }
}

/// What keeps jobs queued.
struct Allocator {
    connection: Connection,
    max_workers: u32,
    name: String,
    partition: Option<String>,
    slurm: Slurm,
    script: String,
    logs: PathBuf,
    every: Duration,
    /// What workers of our jobs compute on. More is learned after each start; it is a matter of a wasted job.
    devices: Vec<v1::Device>,
    told: Told,
}

/// What was said of the last look, so that it is said once.
#[derive(Default)]
struct Told {
    tally: Option<Tally>,
    silent: BTreeSet<u64>,
    unsuited: u64,
    failing: Option<Failing>,
    waits_for: String,
}

/// What a look came to.
struct Done {
    submitted: usize,
    cancelled: usize,
    /// As it was before.
    tally: Tally,
}

impl Allocator {
    async fn new(arguments: Arguments) -> Result<Self, Error> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(Error::file("find", path));
        let name = arguments.name.clone().unwrap_or_else(|| default_name(arguments.partition.as_deref()));
        let logs = absolute(&arguments.logs)?;
        if !arguments.dry_run {
            std::fs::create_dir_all(&logs).map_err(Error::file("make", &logs))?;
        }
        let admission = match (&arguments.invitation_file, &arguments.token_file) {
            (Some(file), _) => Admission::Invitation(absolute(file)?),
            (None, Some(file)) => {
                let here = &arguments.connection.coordinator;
                let coordinator = arguments.reached_at.clone().unwrap_or_else(|| here.clone());
                let allows_plaintext = arguments.connection.allow_plaintext;
                Admission::Token { file: absolute(file)?, coordinator, allows_plaintext }
            }
            (None, None) => return Err(Error::NoAdmission),
        };
        check(&admission)?;
        let program = match &arguments.program {
            Some(words) => words.clone(),
            None => {
                let executable = std::env::current_exe().map_err(Error::file("find", "the deltaconv executable"))?;
                quoted(&executable.to_string_lossy())
            }
        };
        let grace = grace(arguments.grace).await;
        let script = Script {
            name: &name,
            setup: &arguments.setup,
            program: &program,
            admission: &admission,
            grace,
            end_when_idle: arguments.end_when_idle,
            options: arguments.worker_options.as_deref().unwrap_or_default(),
        };
        let script = script.text();
        let slurm = Slurm::new(&name, options(&arguments, &name, &logs, grace));
        Ok(Self {
            connection: arguments.connection,
            max_workers: arguments.max_workers.get(),
            name,
            partition: arguments.partition,
            slurm,
            script,
            logs,
            every: arguments.every,
            devices: Vec::new(),
            told: Told::default(),
        })
    }

    /// Looks again and again until `shutdown`. Jobs stay: whoever begins next finds them, and workers end when they are idle.
    async fn serve(mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        tracing::info!(
            coordinator = self.connection.coordinator,
            name = self.name,
            max_workers = self.max_workers,
            "keeping jobs queued"
        );
        let mut failures = 0;
        loop {
            let looked = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                looked = self.look() => looked,
            };
            let pause = match looked {
                Ok(_) => {
                    failures = 0;
                    self.every
                }
                Err(error @ (Error::NoSlurm { .. } | Error::SlurmRenamed { .. })) => return Err(error),
                Err(error) => {
                    failures += 1;
                    let pause = back_off(self.every, failures);
                    tracing::warn!(%error, code = %error.code(), again_in = ?pause, "nothing is changed");
                    pause
                }
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        tracing::info!("ends; jobs that are queued or run stay, and end when they are idle");
        Ok(())
    }

    /// Looks once, and does what is to be done.
    async fn look(&mut self) -> Result<Done, Error> {
        let (decision, machines_out) = self.decide().await?;
        if !decision.cancel.is_empty() {
            self.slurm.cancel(&decision.cancel).await?;
            tracing::info!(jobs = ?decision.cancel, "nothing is left for these jobs; cancelled while they wait");
        }
        let mut submitted = Vec::new();
        if decision.submit > 0 {
            let exclude = self.exclude(machines_out).await?;
            let mut failed = None;
            while submitted.len() < decision.submit as usize && failed.is_none() {
                match self.slurm.submit(&self.script, &exclude).await {
                    Ok(job) => submitted.push(job),
                    Err(error) => failed = Some(error),
                }
            }
            if !submitted.is_empty() {
                tracing::info!(jobs = ?submitted, excluded = ?exclude, "submitted");
                self.slurm.check_listed(&submitted).await?;
            }
            failed.map_or(Ok(()), Err)?;
        }
        Ok(Done { submitted: submitted.len(), cancelled: decision.cancel.len(), tally: decision.tally })
    }

    /// What is to be done, and the machines that are given nothing.
    async fn decide(&mut self) -> Result<(Decision, Vec<String>), Error> {
        let jobs = self.slurm.jobs().await?;
        let mut client = Client::connect(&self.connection).await?;
        let (demand, listed) = (client.demand().await?, client.workers().await?);
        for worker in &listed.workers {
            let device = worker.device.as_ref().filter(|device| !self.devices.contains(device));
            if decide::job_of(&self.name, &worker.name).is_some() && self.devices.len() < DEVICES {
                self.devices.extend(device.cloned());
            }
        }
        let seen = Seen {
            max_workers: self.max_workers,
            name: &self.name,
            jobs: &jobs,
            demand: &demand,
            workers: &listed.workers,
            devices: &self.devices,
            now: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        };
        let (decision, now) = (decide::decide(&seen), seen.now);
        self.tell(&decision, &jobs, now);
        Ok((decision, demand.machines_out))
    }

    /// Says what has changed since the last look.
    fn tell(&mut self, decision: &Decision, jobs: &[Job], now: u64) {
        let told = &mut self.told;
        if told.tally != Some(decision.tally) {
            let Tally { ready, at_work, pending, running } = decision.tally;
            tracing::info!(ready, at_work, pending, running, "tasks that are ready, workers at work, jobs");
            told.tally = Some(decision.tally);
        }
        let waiting = jobs.iter().find(|job| job.phase == Phase::Pending).map(|job| job.reason.clone());
        let waits_for = waiting.unwrap_or_default();
        if told.waits_for != waits_for && !["", "None"].contains(&waits_for.as_str()) {
            tracing::info!(reason = waits_for, "jobs wait");
        }
        told.waits_for = waits_for;
        for job in decision.silent.iter().filter(|job| !told.silent.contains(job)) {
            let log = self.logs.join(log_file(&self.name, &job.to_string()));
            tracing::warn!(job, log = %log.display(), "the job runs, and no worker of it is at this coordinator");
        }
        told.silent = decision.silent.iter().copied().collect();
        if decision.unsuited > 0 && told.unsuited == 0 {
            let tasks = decision.unsuited;
            tracing::warn!(tasks, "ready tasks whose job requires what these workers don't have start no job");
        }
        told.unsuited = decision.unsuited;
        if let Some(failing) = decision.failing.filter(|failing| told.failing != Some(*failing)) {
            let Failing { job, failures, again_at } = failing;
            let log = self.logs.join(log_file(&self.name, &job.to_string()));
            let again_in = Duration::from_secs(again_at.saturating_sub(now));
            tracing::warn!(
                job,
                failures,
                ?again_in,
                log = %log.display(),
                "workers end with an error; one is tried after a pause"
            );
        }
        told.failing = decision.failing;
    }

    /// Of the machines that are given nothing, those that Slurm knows; none where no other would be left.
    async fn exclude(&self, machines_out: Vec<String>) -> Result<Vec<String>, Error> {
        if machines_out.is_empty() {
            return Ok(machines_out);
        }
        let all = Slurm::machines(self.partition.as_deref()).await?;
        let excluded: Vec<String> = machines_out.into_iter().filter(|machine| all.contains(machine)).collect();
        if excluded.len() == all.len() {
            tracing::warn!("something went wrong on every machine of the partition; none is left out");
            return Ok(Vec::new());
        }
        Ok(excluded)
    }

    /// Shows a job, and how many would be submitted.
    async fn show(&mut self) -> Result<(), Error> {
        let arguments: Vec<String> = self.slurm.submission(&[]).iter().map(|argument| quoted(argument)).collect();
        output::print(&format!("sbatch {} <<'END'\n{}END", arguments.join(" "), self.script));
        let (decision, _) = self.decide().await?;
        let Decision { submit, cancel, .. } = decision;
        output::say(&format!("would submit {submit} of these jobs now, and cancel {}", cancel.len()));
        Ok(())
    }
}

/// The arguments of sbatch, those last that the user gave it.
fn options(arguments: &Arguments, name: &str, logs: &Path, grace: Duration) -> Vec<String> {
    let before_limit = BEFORE_LIMIT.max(grace + ENDING).as_secs();
    let log = logs.join(log_file(name, "%j"));
    let mut options = vec![
        "--nodes=1".to_owned(),
        "--ntasks=1".to_owned(),
        "--requeue".to_owned(),
        "--open-mode=append".to_owned(),
        format!("--signal=B:TERM@{before_limit}"),
        format!("--output={}", log.display()),
    ];
    let cpus = arguments.cpus_per_task.map(|cpus| cpus.to_string());
    for (option, value) in [
        ("--partition", &arguments.partition),
        ("--gpus", &arguments.gpus),
        ("--gres", &arguments.gres),
        ("--cpus-per-task", &cpus),
        ("--mem", &arguments.mem),
        ("--time", &arguments.time),
        ("--account", &arguments.account),
        ("--qos", &arguments.qos),
        ("--constraint", &arguments.constraint),
    ] {
        options.extend(value.as_ref().map(|value| format!("{option}={value}")));
    }
    options.extend(arguments.sbatch.iter().cloned());
    options
}

fn default_name(partition: Option<&str>) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '-' };
    match partition {
        Some(partition) => format!("deltaconv-{}", partition.chars().map(plain).take(50).collect::<String>()),
        None => "deltaconv".to_owned(),
    }
}

fn log_file(name: &str, job: &str) -> String {
    format!("{name}-{job}.log")
}

/// That workers can join with it, as far as that is seen from here.
fn check(admission: &Admission) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let (Admission::Invitation(file) | Admission::Token { file, .. }) = admission;
    let metadata = std::fs::metadata(file).map_err(Error::file("read", file))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(file = %file.display(), "others can read the file, and whoever does can join: chmod 600");
    }
    match admission {
        Admission::Token { coordinator, .. } if is_of_this_machine(coordinator) => {
            tracing::warn!(
                coordinator,
                "that URL is of this machine alone: name the one that workers reach with --reached-at URL"
            );
            Ok(())
        }
        // Each of them would refuse to.
        Admission::Token { coordinator, allows_plaintext: false, .. } => {
            let reason = "workers would send it the token without encryption".into();
            Err(Error::PlainCalls { url: coordinator.clone(), reason })
        }
        Admission::Token { .. } | Admission::Invitation(_) => Ok(()),
    }
}

fn is_of_this_machine(url: &str) -> bool {
    url::Url::parse(url).is_ok_and(|url| location::is_loopback(&url))
}

/// How long a worker may take to hand its task back: no longer than Slurm lets it.
async fn grace(asked: Option<Duration>) -> Duration {
    let kill_wait = match Slurm::kill_wait().await {
        Ok(kill_wait) => kill_wait,
        Err(error) => {
            tracing::debug!(%error, "how long Slurm lets jobs end isn't known");
            return asked.unwrap_or(LONGEST_GRACE);
        }
    };
    if let Some(asked) = asked.filter(|asked| *asked >= kill_wait) {
        tracing::warn!(grace = ?asked, ?kill_wait, "Slurm kills workers before their grace period is over");
    }
    let fits = kill_wait.saturating_sub(ENDING).max(kill_wait / 2).min(LONGEST_GRACE);
    // A cluster that kills at once has no time for it.
    asked.unwrap_or(fits.max(Duration::from_secs(1)))
}

/// Between looks, after so many that failed.
fn back_off(every: Duration, failures: u32) -> Duration {
    every.saturating_mul(2_u32.saturating_pow(failures)).min(LONGEST_PAUSE.max(every))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_lose_sight_of_jobs_is_not_passed_on() {
        for option in ["--job-name=x", "--job-name", "-Jx", "-J", "--array=1-4", "-a1-4", "--wait", "--clusters=a"] {
            assert!(sbatch_option(option).is_err(), "{option}");
        }
        for option in ["--nice=100", "-A", "project", "--exclusive", "--wait-all-nodes=1", "--job-arg"] {
            assert_eq!(sbatch_option(option), Ok(option.to_owned()));
        }
    }

    #[test]
    fn a_name_is_part_of_names_and_of_files() {
        assert_eq!(default_name(Some("gpu,gpu/long")), "deltaconv-gpu-gpu-long");
        assert!(job_name(&default_name(Some(&"p".repeat(100)))).is_ok());
        for name in ["", "a b", "a/b", "$x", "%j"] {
            assert!(job_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let pauses = [1, 2, 3, 40].map(|failures| back_off(Duration::from_secs(30), failures).as_secs());
        assert_eq!(pauses, [60, 120, 240, 300]);
    }

    #[test]
    fn a_url_of_this_machine_is_told_from_others() {
        assert!(
            ["http://127.0.0.1:7433", "http://localhost:7433", "http://[::1]:7433"].into_iter().all(is_of_this_machine)
        );
        assert!(!["http://10.0.0.5:7433", "http://login1:7433", "nonsense"].into_iter().any(is_of_this_machine));
    }
}
