//! A coordinator and workers, started as on a cluster, and what the coordinator says of its jobs.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::Value;

use crate::process::{Running, deltaconv, said, until};

/// Short, so that a killed worker's tasks are given away soon; long beside the time between two calls.
pub(crate) const LEASE_TTL: &str = "3s";
pub(crate) const CHECKPOINT_INTERVAL: &str = "1s";

/// A coordinator process.
pub(crate) struct Coordinator {
    pub(crate) url: String,
    pub(crate) process: Running,
    folder: PathBuf,
    environment: Vec<(String, String)>,
    options: Vec<String>,
}

impl Coordinator {
    /// Starts one with its state, logs and address in `folder`.
    pub(crate) fn start(folder: &Path) -> Self {
        Self::listen(folder, "127.0.0.1:0", &[], &[])
    }

    /// The same, where it and who calls it have these variables.
    pub(crate) fn start_in(folder: &Path, environment: &[(String, String)]) -> Self {
        Self::listen(folder, "127.0.0.1:0", environment, &[])
    }

    /// The same, with more options of its own.
    pub(crate) fn start_with(folder: &Path, options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        Self::listen(folder, "127.0.0.1:0", &[], &options)
    }

    /// Starts one again where the last one in this folder listened.
    pub(crate) fn start_again(self) -> Self {
        let address = self.url.trim_start_matches("http://").to_owned();
        let (folder, environment, options) = (self.folder.clone(), self.environment.clone(), self.options.clone());
        drop(self);
        Self::listen(&folder, &address, &environment, &options)
    }

    /// Starts one that listens there, with more options.
    pub(crate) fn listen(folder: &Path, address: &str, environment: &[(String, String)], options: &[String]) -> Self {
        let address_file = folder.join("address");
        if address_file.exists() {
            std::fs::remove_file(&address_file).expect("removed");
        }
        let mut command = deltaconv();
        command.args(["coordinator", "--exit-with-parent", "--listen", address]);
        command.args(["--lease-ttl", LEASE_TTL, "--checkpoint-interval", CHECKPOINT_INTERVAL]);
        command.arg("--state").arg(state(folder)).arg("--address-file").arg(&address_file);
        command.args(options).envs(environment.iter().cloned());
        let mut process = Running::start(&mut command, folder, "coordinator");
        let url = until("the coordinator to listen", || {
            assert!(!process.has_ended(), "{}", process.stderr());
            std::fs::read_to_string(&address_file).ok().filter(|url| !url.is_empty())
        });
        Self {
            url: url.trim().into(),
            process,
            folder: folder.into(),
            environment: environment.to_vec(),
            options: options.to_vec(),
        }
    }

    /// Starts a worker that joins this coordinator.
    pub(crate) fn worker(&self, name: &str) -> Running {
        self.worker_with(name, &[])
    }

    /// The same, with more options.
    pub(crate) fn worker_with(&self, name: &str, options: &[&str]) -> Running {
        let mut command = self.worker_command(&self.url, name);
        Running::start(command.args(options), &self.folder, name)
    }

    /// What starts a worker that reaches this coordinator at `url`.
    pub(crate) fn worker_command(&self, url: &str, name: &str) -> Command {
        let mut command = worker_command(&self.folder, url, name, &[]);
        command.envs(self.environment.iter().cloned());
        command
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        state(&self.folder).join("worker.token")
    }

    /// Runs a command against this coordinator.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = deltaconv();
        command.args(arguments).args(["--coordinator", &self.url]).envs(self.environment.iter().cloned());
        command.output().expect("runs")
    }

    /// What a command answers as JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        read(arguments, &self.run(&[arguments, &["-o", "json"]].concat()))
    }

    /// Submits a job and answers with its id.
    pub(crate) fn submit(&self, job: &Path) -> String {
        let job = job.to_str().expect("UTF-8");
        self.json(&["submit", job])["job_id"].as_str().expect("an id").to_owned()
    }

    /// Where a job stands.
    pub(crate) fn status(&self, job: &str) -> Value {
        self.json(&["status", job])
    }

    /// The worker of this name, if it has joined.
    pub(crate) fn worker_id(&self, name: &str) -> Option<String> {
        let workers = self.json(&["workers"]);
        let mut workers = workers["workers"].as_array().expect("workers").iter();
        let found = workers.find(|worker| worker["name"] == name)?;
        Some(found["worker_id"].as_str().expect("an id").to_owned())
    }

    /// Waits until a job is done, and answers with its last status.
    pub(crate) fn done(&self, job: &str) -> Value {
        until("the job to end", || {
            let status = self.status(job);
            let state = status["summary"]["state"].as_str().expect("a state").to_owned();
            assert!(["running", "done"].contains(&state.as_str()), "{status:#}");
            (state == "done").then_some(status)
        })
    }
}

pub(crate) fn state(folder: &Path) -> PathBuf {
    folder.join("state")
}

/// Starts a worker for a coordinator that may not be there yet.
pub(crate) fn worker(folder: &Path, url: &str, name: &str, options: &[&str]) -> Running {
    Running::start(&mut worker_command(folder, url, name, options), folder, name)
}

fn worker_command(folder: &Path, url: &str, name: &str, options: &[&str]) -> Command {
    let mut command = deltaconv();
    command.args(["worker", "--exit-with-parent", "--coordinator", url, "--name", name, "--threads", "1"]);
    command.arg("--token-file").arg(state(folder).join("worker.token")).args(options);
    command
}

/// What a command of the coordinator at `url` answers as JSON.
pub(crate) fn json(url: &str, arguments: &[&str]) -> Value {
    read(arguments, &deltaconv().args(arguments).args(["-o", "json", "--coordinator", url]).output().expect("runs"))
}

fn read(arguments: &[&str], output: &Output) -> Value {
    assert!(output.status.success(), "{arguments:?}: {}", said(output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The tasks of a stage, from a job's status.
pub(crate) fn tasks<'a>(status: &'a Value, stage: &str) -> Vec<&'a Value> {
    let part = format!("/{stage}/");
    let of_stage = |task: &&Value| task["task_id"].as_str().is_some_and(|id| format!("{id}/").contains(&part));
    status["tasks"].as_array().expect("tasks").iter().filter(of_stage).collect()
}

/// The tasks of a stage that are in this state.
pub(crate) fn tasks_in<'a>(status: &'a Value, stage: &str, state: &str) -> Vec<&'a Value> {
    tasks(status, stage).into_iter().filter(|task| task["state"] == state).collect()
}

/// A checkpoint of a block's training.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Checkpoint {
    pub(crate) layer: String,
    pub(crate) attempt: String,
    pub(crate) step: u64,
}

/// Those that lie below a job's output, of the first round.
pub(crate) fn checkpoints(out: &Path) -> Vec<Checkpoint> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let name = |entry: &std::fs::DirEntry| entry.file_name().into_string().expect("UTF-8");
    let of_layer = |layer: std::fs::DirEntry| {
        let parse = |file: std::fs::DirEntry| {
            // What is being written has another ending.
            let (attempt, step) =
                name(&file).strip_suffix(".safetensors")?.rsplit_once('-').map(|(a, s)| (a.to_owned(), s.parse()))?;
            Some(Checkpoint { layer: name(&layer), attempt, step: step.ok()? })
        };
        entries(&layer.path()).filter_map(parse).collect::<Vec<_>>()
    };
    entries(&out.join("checkpoints/r0/distill")).flat_map(of_layer).collect()
}

/// The number in `field` where a worker's log has `message` of the task, in its last line that does.
pub(crate) fn logged(worker: &Running, message: &str, task: &str, field: &str) -> Option<u64> {
    let log = worker.stderr();
    let line = log.lines().rfind(|line| line.contains(message) && line.contains(task))?;
    let value = line.split(&format!(" {field}=")).nth(1)?;
    value.split(' ').next()?.parse().ok()
}

/// How often a task was leased.
pub(crate) fn attempts(status: &Value, task: &str) -> u64 {
    let tasks = status["tasks"].as_array().expect("tasks");
    let task = tasks.iter().find(|other| other["task_id"] == task).expect("the task");
    task["attempts"].as_u64().expect("a number")
}

/// Steps that the block of a training has taken.
pub(crate) fn steps(status: &Value, task: &str) -> u64 {
    let mut layers = status["layers"].as_array().expect("layers").iter();
    let of_task = |layer: &&Value| layer["name"].as_str().is_some_and(|name| task.ends_with(&format!("/{name}")));
    layers.find(of_task).expect("the task's layer")["step"].as_u64().expect("a number")
}

/// The digest of a job that is done.
pub(crate) fn digest(status: &Value) -> String {
    status["figures"]["blocks_digest"].as_str().expect("a digest").to_owned()
}

/// Stops processes, so that what is seen next stays true until they go on.
pub(crate) fn freeze(processes: &[&Running]) {
    processes.iter().for_each(|process| process.signal(Signal::STOP));
}

/// Lets frozen processes go on.
pub(crate) fn thaw(processes: &[&Running]) {
    processes.iter().for_each(|process| process.signal(Signal::CONT));
}
