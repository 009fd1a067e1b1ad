//! Workers that a cluster's queue starts. Here its commands are a script that runs jobs as processes; .ci/slurm has a real Slurm.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;

use crate::process::{Running, deltaconv, exists, said, signal, until};
use crate::scaled;
use crate::service::{Coordinator, attempts, digest, tasks_in};

/// The queue, and what it knows.
pub(crate) struct Slurm {
    /// With its commands.
    pub(crate) commands: PathBuf,
    /// With its jobs, and what they write.
    pub(crate) jobs: PathBuf,
}

impl Slurm {
    /// One with its commands in a folder and its jobs in another, both of which are there.
    pub(crate) fn in_folders(commands: PathBuf, jobs: PathBuf) -> Self {
        for name in ["sbatch", "squeue", "scancel", "scontrol", "sinfo"] {
            let command = commands.join(name);
            fs::write(&command, include_str!("slurm/slurm.sh")).expect("written");
            fs::set_permissions(&command, fs::Permissions::from_mode(0o755)).expect("made executable");
        }
        Self { commands, jobs }
    }

    fn start(folder: &Path) -> Self {
        let [commands, jobs] = ["commands", "jobs"].map(|name| folder.join(name));
        for folder in [&commands, &jobs] {
            fs::create_dir(folder).expect("made");
        }
        Self::in_folders(commands, jobs)
    }

    /// Has a command find the queue's.
    fn known_to(&self, command: &mut Command) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = [self.commands.clone()].into_iter().chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(paths).expect("a path")).env("FAKE_SLURM", &self.jobs);
    }

    fn run(&self, name: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(self.commands.join(name));
        self.known_to(command.args(arguments));
        command.output().expect("runs")
    }

    /// What keeps at most two jobs queued.
    fn allocator(&self, coordinator: &Coordinator, options: &[&str]) -> Command {
        let mut command = deltaconv();
        command.args(["alloc", "slurm", "--max-workers", "2", "--name", "dc", "--coordinator", &coordinator.url]);
        command.arg("--token-file").arg(coordinator.token_file()).arg("--logs").arg(&self.jobs).args(options);
        self.known_to(&mut command);
        command
    }

    /// Looks once, and says what became of that.
    fn once(&self, coordinator: &Coordinator, options: &[&str]) -> String {
        let output = self.allocator(coordinator, &[&["--once"][..], options].concat()).output().expect("runs");
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    }

    /// Its jobs and their states; `all`: those that are over, too.
    fn states(&self, all: bool) -> Vec<(u64, String)> {
        let states = if all { "--states=all" } else { "" };
        let output = self.run("squeue", &["--format=%i %T", states]);
        let read = |line: &str| {
            let (id, state) = line.split_once(' ').expect("two fields");
            (id.parse().expect("a number"), state.to_owned())
        };
        String::from_utf8(output.stdout).expect("UTF-8").lines().map(read).collect()
    }

    fn note(&self, job: u64, name: &str) -> String {
        let path = self.jobs.join(format!("slurm-{job}.{name}"));
        fs::read_to_string(path).expect("a note").trim().to_owned()
    }

    fn pid(&self, job: u64) -> i32 {
        self.note(job, "pid").parse().expect("a process id")
    }

    fn log(&self, job: u64) -> String {
        fs::read_to_string(self.jobs.join(format!("dc-{job}.log"))).unwrap_or_default()
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        let alive = fs::read_dir(&self.jobs).into_iter().flatten().flatten().map(|entry| entry.path());
        for alive in alive.filter(|path| path.extension().is_some_and(|extension| extension == "alive")) {
            let pid = fs::read_to_string(alive.with_extension("pid")).unwrap_or_default();
            if let Some(pid) = pid.trim().parse().ok().filter(|pid| exists(*pid)) {
                signal(pid, Signal::KILL);
            }
        }
    }
}

/// The job whose worker has this id.
fn job_of(coordinator: &Coordinator, worker: &str) -> Option<u64> {
    let listed = coordinator.json(&["workers"]);
    let mut workers = listed["workers"].as_array().expect("workers").iter();
    let name = workers.find(|of| of["worker_id"] == worker)?["name"].as_str()?.to_owned();
    name.strip_prefix("dc-")?.parse().ok()
}

#[test]
fn workers_that_slurm_starts_do_a_job_though_one_is_requeued_in_its_middle() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let slurm = Slurm::start(folder.path());
    let options = ["--every", "200ms", "--end-when-idle", "3s", "--exit-with-parent"];
    let mut allocator = Running::start(&mut slurm.allocator(&coordinator, &options), folder.path(), "allocator");
    let job = coordinator.submit(&scaled::job_file(folder.path(), &scaled::teacher(), &folder.path().join("out")));

    let (victim, task) = until("a worker to be in the middle of a block", || {
        let status = coordinator.status(&job);
        let running = tasks_in(&status, "distill", "running");
        let worker = running.first()?["worker_id"].as_str()?.to_owned();
        let victim = job_of(&coordinator, &worker)?;
        // Stopped, it can't finish between the look and what follows.
        signal(slurm.pid(victim), Signal::STOP);
        let status = coordinator.status(&job);
        let hit = tasks_in(&status, "distill", "running").into_iter().find(|task| task["worker_id"] == worker.as_str());
        let hit = hit.map(|task| task["task_id"].as_str().expect("an id").to_owned());
        if hit.is_none() {
            signal(slurm.pid(victim), Signal::CONT);
        }
        Some((victim, hit?))
    });
    let pid = slurm.pid(victim);
    let requeued = slurm.run("scontrol", &["requeue", &victim.to_string()]);
    assert!(requeued.status.success(), "{}", said(&requeued));
    signal(pid, Signal::CONT);
    until("the worker to join again under a name that tells", || {
        coordinator.worker_id(&format!("dc-{victim}-restart-1"))
    });
    let log = slurm.log(victim);
    let handed_back = log.lines().any(|line| line.contains("attempt handed back") && line.contains(&task));
    assert!(handed_back, "{log}");

    let done = coordinator.done(&job);
    assert_eq!(attempts(&done, &task), 2, "{done:#}");
    let failures = done["tasks"].as_array().expect("tasks").iter().map(|task| task["failures"].as_u64());
    assert!(failures.flatten().all(|failures| failures == 0), "{done:#}");
    assert_eq!(digest(&done), scaled::quiet().digest);

    until("the jobs to end because they are idle", || slurm.states(false).is_empty().then_some(()));
    let ended = slurm.states(true);
    assert!(ended.iter().all(|(_, state)| state == "COMPLETED"), "{ended:?}");
    allocator.signal(Signal::TERM);
    assert!(allocator.wait().success(), "{}", allocator.stderr());
}

#[test]
fn a_queue_that_refuses_and_workers_that_fail_are_told_of_and_jobs_do_not_pile_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let slurm = Slurm::start(folder.path());
    coordinator.submit(&scaled::job_file(folder.path(), &scaled::teacher(), &folder.path().join("out")));

    let refusal = slurm.jobs.join("refuse");
    fs::write(&refusal, "sbatch: error: Batch job submission failed: Invalid partition name specified\n")
        .expect("written");
    let refused = slurm.allocator(&coordinator, &["--once", "--partition", "nosuch"]).output().expect("runs");
    let told = said(&refused);
    assert_eq!(refused.status.code(), Some(2), "{told}");
    assert!(told.contains("error[DC1102]: sbatch: Batch job submission failed: Invalid partition"), "{told}");
    assert!(slurm.states(true).is_empty());

    fs::remove_file(refusal).expect("removed");
    let first = slurm.once(&coordinator, &["--program", "false"]);
    assert!(first.contains("2 were submitted"), "{first}");
    until("the workers to fail", || slurm.states(false).is_empty().then_some(()));
    let second = slurm.once(&coordinator, &["--program", "false"]);
    assert!(second.contains("0 were submitted") && second.contains("end with an error"), "{second}");
    assert_eq!(slurm.states(true), [(1, "FAILED".to_owned()), (2, "FAILED".to_owned())]);
}

#[test]
fn jobs_that_wait_are_found_again_and_go_when_nothing_is_left_for_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let slurm = Slurm::start(folder.path());
    let job = coordinator.submit(&scaled::job_file(folder.path(), &scaled::teacher(), &folder.path().join("out")));
    fs::write(slurm.jobs.join("hold"), "").expect("written");

    let first = slurm.once(&coordinator, &["--gpus", "1", "--", "--nice=100"]);
    assert!(first.contains("2 were submitted"), "{first}");
    let second = slurm.once(&coordinator, &[]);
    assert!(second.contains("2 waiting; 0 were submitted, 0 cancelled"), "{second}");
    let paused = coordinator.run(&["pause", &job]);
    assert!(paused.status.success(), "{}", said(&paused));
    let third = slurm.once(&coordinator, &[]);
    assert!(third.contains("0 were submitted, 2 cancelled"), "{third}");
    assert!(slurm.states(false).is_empty());
}

#[test]
fn what_would_be_submitted_is_shown_without_the_token() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let slurm = Slurm::start(folder.path());
    coordinator.submit(&scaled::job_file(folder.path(), &scaled::teacher(), &folder.path().join("out")));
    let options = ["--dry-run", "--gpus", "1", "--setup", "module load cuda", "--worker-options", "--device cuda"];
    let options = [&options[..], &["--", "--nice=100"]].concat();
    let shown = slurm.allocator(&coordinator, &options).output().expect("runs");
    let (script, told) = (String::from_utf8_lossy(&shown.stdout).into_owned(), said(&shown));
    assert!(shown.status.success(), "{told}");
    let sbatch = script.lines().next().expect("a line");
    assert!(sbatch.starts_with("sbatch --parsable --job-name=dc "), "{script}");
    assert!(sbatch.contains(" --requeue ") && sbatch.ends_with(" --gpus=1 --nice=100 <<'END'"), "{script}");
    assert!(script.contains("\nmodule load cuda\n") && script.contains("--device cuda\nEND"), "{script}");
    let token = fs::read_to_string(coordinator.token_file()).expect("a token");
    assert!(!told.contains(token.trim()) && told.contains("would submit 2 of these jobs"), "{told}");

    // Where workers would send the token to another machine without encryption, that has to be meant.
    let elsewhere = ["--dry-run", "--reached-at", "http://10.0.0.5:7433"];
    let refused = slurm.allocator(&coordinator, &elsewhere).output().expect("runs");
    let told = said(&refused);
    assert!(!refused.status.success() && told.contains("10.0.0.5") && told.contains("error[DC0602]"), "{told}");
    let meant = slurm.allocator(&coordinator, &[&elsewhere[..], &["--allow-plaintext"]].concat()).output();
    let told = said(&meant.expect("runs"));
    assert!(told.contains("--coordinator http://10.0.0.5:7433 --allow-plaintext "), "{told}");
    assert!(slurm.states(true).is_empty());

    let refused = slurm.allocator(&coordinator, &["--once", "--", "--array=1-9"]).output().expect("runs");
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("--array"), "{}", said(&refused));
}
