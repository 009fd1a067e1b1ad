//! `deltaconv bench coordinator`: a coordinator in a process of its own, and workers that do nothing but call it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use deltaconv_coordinator::bench;
use deltaconv_proto::code::Code;
use deltaconv_worker::bench::cluster::{self, Cluster, Latencies};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::args::Output;
use crate::error::{Error, explain};
use crate::logs::Logging;
use crate::output::{self, Data};
use crate::{duration, ending, table};

/// Of the tasks, those that are done before the coordinator is killed: some of every kind, and others are left.
const DONE_BEFORE_KILL: f64 = 0.75;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Workers that join, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    workers: u32,
    /// Tasks, in jobs of 16 layers, which have 36
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(36..=10_000_000))]
    tasks: u32,
    /// How often each worker calls while it only renews its lease
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration::parse)]
    sync_every: Duration,
    /// For how long they do
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = duration::parse)]
    lasting: Duration,
    /// Workers that do tasks at the same time
    #[arg(long, value_name = "N", default_value_t = 512)]
    at_once: u32,
    /// Renewals of each task's lease
    #[arg(long, value_name = "N", default_value_t = 2)]
    renewals: u32,
    /// Empty or new folder for the state, on the disk that is meant [default: one in the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// The coordinator's side of it.
#[derive(Debug, Args)]
pub(super) struct Process {
    #[arg(long)]
    state: PathBuf,
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[arg(long)]
    tasks: u32,
    /// Of each job; SD1.5 has as many
    #[arg(long, default_value_t = 16)]
    layers: u32,
}

/// What the process says once it listens.
#[derive(Serialize, Deserialize)]
struct Ready {
    address: SocketAddr,
    opened_seconds: f64,
    jobs: usize,
    tasks: usize,
    committed: usize,
}

/// Times are in µs or as their names say; CPU time and memory are the coordinator's process'.
#[derive(Serialize)]
struct Figures {
    workers: usize,
    tasks: usize,
    jobs: usize,
    /// At rest, before any worker joined.
    bytes_per_task: f64,
    bytes_per_worker: f64,
    paced: Paced,
    full: Full,
    restart: Restart,
}

/// Every worker calls at its time.
#[derive(Serialize)]
struct Paced {
    sync_every_seconds: f64,
    syncs: usize,
    p50_us: f64,
    p99_us: f64,
    /// Of one.
    cores: f64,
}

/// As much as goes through.
#[derive(Serialize)]
struct Full {
    at_once: u32,
    renewals: u32,
    tasks: usize,
    tasks_per_second: f64,
    cpu_us_per_task: f64,
    p50_us: f64,
    p99_us: f64,
    bytes_per_task: f64,
}

/// Killed and started again.
#[derive(Serialize)]
struct Restart {
    /// From the start of opening the state to listening.
    opened_seconds: f64,
    /// With the process' own start.
    seconds: f64,
    committed: usize,
    /// Of outputs whose acceptance a worker was told, those that are not on record.
    lost: usize,
    bytes_per_task: f64,
}

/// Serves the load until stdin closes.
pub(super) async fn serve(process: Process) -> Result<ExitCode, Error> {
    let _logging = Logging::default().start()?;
    super::super::coordinator::keep_memory_small();
    let options = bench::Options {
        state: process.state,
        listen: process.listen,
        tasks: process.tasks,
        layers: process.layers,
        lease_ttl: Duration::from_secs(60),
    };
    let ready = |ready: bench::Ready| {
        let bench::Ready { address, opened_seconds, jobs, tasks, committed } = ready;
        Data::Json.print(&Ready { address, opened_seconds, jobs, tasks, committed });
    };
    let shutdown = CancellationToken::new();
    let service = bench::serve(options, ready, shutdown.clone());
    match ending::serve(true, None, &shutdown, service).await? {
        Some(Ok(())) | None => Ok(ExitCode::SUCCESS),
        Some(Err(error)) => Err(Error::Coordinator { message: explain(&error), code: error.code() }),
    }
}

pub(super) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let temporary = std::env::temp_dir().join(format!("deltaconv-bench-{}", std::process::id()));
    let state = arguments.state.clone().unwrap_or_else(|| temporary.clone());
    let measured = measure(&arguments, &state).await;
    if arguments.state.is_none() {
        // What is left of it is in the system's temporary folder.
        let _ = std::fs::remove_dir_all(&temporary);
    }
    let figures = measured?;
    match arguments.output.data() {
        Some(data) => data.print(&figures),
        None => output::print(&describe(&figures)),
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(arguments: &Arguments, state: &Path) -> Result<Figures, Error> {
    let failed = |error: cluster::Error| Error::Bench { message: error.to_string(), code: error.code() };
    let (process, ready) = Coordinator::start(state, "127.0.0.1:0", arguments.tasks)?;
    output::say(&format!("{} tasks of {} jobs are submitted", ready.tasks, ready.jobs));
    let at_rest = process.memory()?;
    let token = read(&state.join("worker.token"))?;
    let url = format!("http://{}", ready.address);
    let mut cluster = Cluster::join(&url, &token, arguments.workers as usize).await.map_err(failed)?;

    let before = process.cpu()?;
    let mut paced = cluster.keep_time(arguments.sync_every, arguments.lasting).await.map_err(failed)?;
    let paced = Paced {
        sync_every_seconds: arguments.sync_every.as_secs_f64(),
        syncs: paced.count(),
        p50_us: micros(&mut paced, 50),
        p99_us: micros(&mut paced, 99),
        cores: (process.cpu()? - before).as_secs_f64() / arguments.lasting.as_secs_f64(),
    };
    let with_workers = process.memory()?;
    output::say(&format!("{} workers called every {} s", arguments.workers, paced.sync_every_seconds));

    let (before, began) = (process.cpu()?, Instant::now());
    let wanted = (ready.tasks as f64 * DONE_BEFORE_KILL) as usize;
    let (at_once, renewals) = (arguments.at_once as usize, arguments.renewals as usize);
    let (done, mut latencies) = cluster.work(at_once, wanted, renewals).await.map_err(failed)?;
    let full = Full {
        at_once: arguments.at_once,
        renewals: arguments.renewals,
        tasks: done,
        tasks_per_second: done as f64 / began.elapsed().as_secs_f64(),
        cpu_us_per_task: (process.cpu()? - before).as_secs_f64() * 1e6 / done.max(1) as f64,
        p50_us: micros(&mut latencies, 50),
        p99_us: micros(&mut latencies, 99),
        bytes_per_task: (process.memory()?.saturating_sub(with_workers.saturating_sub(at_rest))) as f64
            / ready.tasks as f64,
    };
    output::say(&format!("{done} tasks are done"));

    drop(cluster);
    process.kill()?;
    let began = Instant::now();
    let (process, again) = Coordinator::start(state, &ready.address.to_string(), arguments.tasks)?;
    let restart = Restart {
        opened_seconds: again.opened_seconds,
        seconds: began.elapsed().as_secs_f64(),
        committed: again.committed,
        lost: done.saturating_sub(again.committed),
        bytes_per_task: process.memory()? as f64 / again.tasks as f64,
    };
    process.kill()?;
    Ok(Figures {
        workers: arguments.workers as usize,
        tasks: ready.tasks,
        jobs: ready.jobs,
        bytes_per_task: at_rest as f64 / ready.tasks as f64,
        bytes_per_worker: with_workers.saturating_sub(at_rest) as f64 / f64::from(arguments.workers),
        paced,
        full,
        restart,
    })
}

fn micros(latencies: &mut Latencies, percent: usize) -> f64 {
    latencies.percentile(percent).unwrap_or_default().as_secs_f64() * 1e6
}

/// A coordinator's process. It ends with this one.
struct Coordinator {
    child: Child,
    _stdout: BufReader<ChildStdout>,
}

impl Coordinator {
    /// Starts it on `state` and waits until it listens.
    fn start(state: &Path, listen: &str, tasks: u32) -> Result<(Self, Ready), Error> {
        let failed = |error: std::io::Error| bench_error("starting the coordinator", &error);
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(["bench", "coordinator-process", "--listen", listen, "--tasks", &tasks.to_string(), "--state"]);
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "warn");
        }
        command.arg(state).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let Some(stdout) = child.stdout.take() else {
            return Err(unmeasured("the coordinator's process has no output".into()));
        };
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line).map_err(failed)?;
        let ready =
            serde_json::from_str(&line).map_err(|error| bench_error("the coordinator did not start", &error))?;
        Ok((Self { child, _stdout: stdout }, ready))
    }

    /// Its resident memory, in bytes.
    fn memory(&self) -> Result<u64, Error> {
        let status = read(format!("/proc/{}/status", self.child.id()).as_ref())?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
        kib.map(|kib| kib << 10).ok_or_else(|| unmeasured("/proc tells no memory of a process".into()))
    }

    /// Its CPU time, of user and system.
    fn cpu(&self) -> Result<Duration, Error> {
        let stat = read(format!("/proc/{}/stat", self.child.id()).as_ref())?;
        // The name may hold anything; after it come state, parent and so on, and as 12th and 13th the times.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
        let mut ticks = || fields.next().and_then(|field| field.parse::<u64>().ok());
        let (Some(user), Some(system)) = (ticks(), ticks()) else {
            return Err(unmeasured("/proc tells no CPU time of a process".into()));
        };
        // Linux counts them in hundredths of a second, whatever the kernel's own clock.
        Ok(Duration::from_millis(10 * (user + system)))
    }

    /// Ends it as a power loss would.
    fn kill(mut self) -> Result<(), Error> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map(drop).map_err(|error| bench_error("killing the coordinator", &error))
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|error| bench_error(&path.display().to_string(), &error))
}

fn bench_error(what: &str, error: &dyn std::error::Error) -> Error {
    unmeasured(format!("{what}: {error}"))
}

fn unmeasured(message: String) -> Error {
    Error::Bench { message, code: Code::Unmeasured }
}

fn describe(figures: &Figures) -> String {
    let Figures { paced, full, restart, .. } = figures;
    let mut listing = table::table(["what", "measured"]);
    let mut row = |what: String, measured: String| _ = listing.add_row([what, measured]);
    row("memory of a task, at rest".into(), format!("{:.0} B", figures.bytes_per_task));
    row("memory of a task, most of them done".into(), format!("{:.0} B", full.bytes_per_task));
    row("memory of a worker".into(), format!("{:.1} KiB", figures.bytes_per_worker / 1024.0));
    row(
        format!("Sync, each worker every {} s", paced.sync_every_seconds),
        format!("p50 {:.2} ms, p99 {:.2} ms, {:.2} cores", paced.p50_us / 1e3, paced.p99_us / 1e3, paced.cores),
    );
    row(
        format!("tasks, {} at once, {} renewals each", full.at_once, full.renewals),
        format!("{:.0}/s, {:.1} µs of CPU each", full.tasks_per_second, full.cpu_us_per_task),
    );
    row("Sync meanwhile".into(), format!("p50 {:.2} ms, p99 {:.2} ms", full.p50_us / 1e3, full.p99_us / 1e3));
    row(
        "killed and started again".into(),
        format!("{:.2} s, of {} accepted outputs {} lost", restart.seconds, full.tasks, restart.lost),
    );
    row("memory of a task then".into(), format!("{:.0} B", restart.bytes_per_task));
    format!("{} workers, {} tasks of {} jobs\n{}", figures.workers, figures.tasks, figures.jobs, table::text(&listing))
}
