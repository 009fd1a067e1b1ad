//! The command line: one subcommand a file of [`crate::commands`], and what they share.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use deltaconv_worker::DeviceChoice;

use crate::error::Error;
use crate::output::{self, Data};
use crate::{commands, config, demo, duration};

const EXIT_CODES: &str = "Exit codes: 0 done, 1 the job failed or was cancelled, or a check did not hold, 2 the command could not do what was \
                          asked, 130 interrupted.";

/// Convert pre-trained diffusion models into attention-free ones.
#[derive(Debug, Parser)]
#[command(name = "deltaconv", version, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Arguments {
    /// File of settings [default: deltaconv/config.toml in ~/.config or /etc]
    #[arg(long, global = true, value_name = "FILE", env = config::VARIABLE)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Convert the shipped teacher, with a coordinator and workers on this machine
    #[command(after_help = "Examples:\n  deltaconv demo\n  deltaconv demo --teacher tiny-pixart --out pixart-demo")]
    Demo(demo::Arguments),
    /// Write a shipped teacher to a folder or a store, and print a job that converts it
    #[command(after_help = "Examples:\n\
        \x20 deltaconv teacher tiny-unet --out teachers/tiny-unet > tiny-unet.toml\n\
        \x20 deltaconv teacher tiny-unet --out s3://bucket/models/tiny-unet > tiny-unet.toml")]
    Teacher(commands::teacher::Arguments),
    /// Plan jobs, lease their tasks to workers, and assemble the results
    #[command(after_help = "Examples:\n\
        \x20 deltaconv coordinator --state /var/lib/deltaconv\n\
        \x20 deltaconv coordinator --state /var/lib/deltaconv --listen 0.0.0.0:7433 --certs certs --allow-store s3://bucket/jobs")]
    Coordinator(commands::coordinator::Arguments),
    /// Join a coordinator and work for it
    #[command(after_help = "Examples:\n\
        \x20 deltaconv worker --invitation-file invitation --disk-cache /nvme\n\
        \x20 deltaconv worker --token-file /var/lib/deltaconv/worker.token")]
    Worker(commands::worker::Arguments),
    /// Have a cluster's queue start workers, as many as there is work for
    #[command(after_help = "Examples:\n\
        \x20 deltaconv alloc slurm --partition gpu --gpus 1 --max-workers 8 --token-file worker.token")]
    Alloc(commands::alloc::Arguments),
    /// Submit a job, or see what it would do
    #[command(after_help = "Examples:\n  deltaconv submit sd15.toml --dry-run\n  job=$(deltaconv submit sd15.toml)")]
    Submit(commands::submit::Arguments),
    /// Show what a model is: its layers, which of them are replaced, and the memory that it needs
    #[command(after_help = "Examples:\n\
        \x20 deltaconv inspect s3://bucket/models/sd15\n\
        \x20 deltaconv inspect deltaconv-demo/output")]
    Inspect(commands::inspect::Arguments),
    /// Draw pictures with a teacher or a converted model
    #[command(after_help = "Examples:\n\
        \x20 deltaconv sample deltaconv-demo/output --prompt \"a red circle\" --seed 7 --out student.png")]
    Sample(commands::sample::Arguments),
    /// Show what a model's layers cost as attention and as blocks, and how far their attention reaches
    #[command(after_help = "Examples:\n\
        \x20 deltaconv analyze s3://bucket/models/sd15 --resolution 512,1024 --samples 0\n\
        \x20 deltaconv analyze teacher --svg reach.svg --kernel-sizes sizes.toml")]
    Analyze(commands::analyze::Arguments),
    /// List the jobs
    #[command(after_help = "Examples:\n  deltaconv jobs -o wide\n  deltaconv jobs --watch")]
    Jobs(commands::jobs::Arguments),
    /// Show where a job stands
    #[command(after_help = "Examples:\n  deltaconv status sd15-1\n  deltaconv status sd15-1 -o wide")]
    Status(commands::status::Arguments),
    /// Follow a job until it ends
    #[command(after_help = "Examples:\n  deltaconv watch sd15-1\n  deltaconv watch sd15-1 --until failed -o json")]
    Watch(commands::watch::Arguments),
    /// Show jobs, layers, workers and events on the whole terminal
    #[command(after_help = "Examples:\n  deltaconv top\n  deltaconv top sd15-1 --every 5s")]
    Top(commands::top::Arguments),
    /// Show what a job that is done achieved, layer by layer and stage by stage, and what it cost
    #[command(after_help = "Examples:\n  deltaconv report sd15-1\n  deltaconv report sd15-1 -o json")]
    Report(OfJob),
    /// Show what happened: to a job, or to all of them and the workers
    #[command(after_help = "Examples:\n\
        \x20 deltaconv events sd15-1\n\
        \x20 deltaconv events --follow\n\
        \x20 deltaconv events -o json --after 1200")]
    Events(commands::events::Arguments),
    /// Show what was said while a task was worked on
    #[command(after_help = "Examples:\n\
        \x20 deltaconv logs sd15-1/r0/distill/mid_block.attentions.0.transformer_blocks.0 --follow")]
    Logs(commands::logs::Arguments),
    /// Say why a job or a task waits, and what would help
    #[command(after_help = "Examples:\n\
        \x20 deltaconv explain sd15-1\n\
        \x20 deltaconv explain sd15-1/r0/distill/mid_block.attentions.0.transformer_blocks.0")]
    Explain(commands::explain::Arguments),
    /// List the workers; give one nothing new, or tasks again
    #[command(after_help = "Examples:\n\
        \x20 deltaconv workers -o wide\n\
        \x20 deltaconv workers invite --uses 8 --expires 1h\n\
        \x20 deltaconv workers drain gpu-7")]
    Workers(commands::workers::Arguments),
    /// Measure what this machine does
    #[command(after_help = "Examples:\n\
        \x20 deltaconv bench kernels K7\n\
        \x20 deltaconv bench data /nvme\n\
        \x20 deltaconv bench coordinator --workers 1000 --tasks 100000")]
    Bench(commands::bench::Arguments),
    /// End a job before it is done
    #[command(after_help = "Examples:\n  deltaconv cancel sd15-1\n  deltaconv cancel sd15-1 --yes")]
    Cancel(commands::cancel::Arguments),
    /// Hold a job's work up: what is at work is handed back at a checkpoint
    #[command(after_help = "Examples:\n  deltaconv pause sd15-1")]
    Pause(OfJob),
    /// Have a paused job go on
    #[command(after_help = "Examples:\n  deltaconv resume sd15-1")]
    Resume(OfJob),
    /// Have a failed job go on, or a quarantined task tried again
    #[command(after_help = "Examples:\n\
        \x20 deltaconv retry sd15-1\n\
        \x20 deltaconv retry sd15-1/r0/distill/mid_block.attentions.0.transformer_blocks.0")]
    Retry(commands::retry::Arguments),
    /// Remove what a job needs no more: its activations, latents and checkpoints, and what attempts left behind
    #[command(after_help = "Examples:\n  deltaconv gc sd15-1 --dry-run\n  deltaconv gc sd15-1 --yes")]
    Gc(commands::gc::Arguments),
    /// Make, renew and show certificates for a coordinator and for who calls it
    #[command(after_help = "Examples:\n\
        \x20 deltaconv certs init --out certs --host coordinator.example.org\n\
        \x20 deltaconv certs issue operator alice --dir certs > alice.pem\n\
        \x20 deltaconv certs show certs/*.pem")]
    Certs(commands::certs::Arguments),
    /// Check this machine, a store and the coordinator, and say what to do
    #[command(after_help = "Examples:\n\
        \x20 deltaconv doctor --offline\n\
        \x20 deltaconv doctor --store s3://bucket/jobs --disk /nvme")]
    Doctor(commands::doctor::Arguments),
    /// Show what is set, and by what
    #[command(after_help = "Examples:\n  deltaconv config show --changed\n  deltaconv config show worker --threads 4")]
    Config(commands::config::Arguments),
    /// Write what has a shell complete commands
    #[command(after_help = "Examples:\n\
        \x20 deltaconv completions bash > /etc/bash_completion.d/deltaconv\n\
        \x20 deltaconv completions zsh > ~/.zfunc/_deltaconv")]
    Completions(commands::completions::Arguments),
    /// Write manual pages
    #[command(after_help = "Examples:\n  deltaconv man --out /usr/local/share/man/man1")]
    Man(commands::completions::Manual),
    /// Say what the code of an error means, and what to do
    #[command(after_help = "Examples:\n  deltaconv explain-error DC0012\n  deltaconv explain-error")]
    ExplainError(commands::explain_error::Arguments),
    /// Print a page of the documentation that is made from the program itself
    #[command(hide = true)]
    Reference(commands::reference::Arguments),
}

/// Where the coordinator is, and who calls it.
#[derive(Clone, Debug, Args)]
pub(crate) struct Connection {
    /// URL of the coordinator
    #[arg(long, value_name = "URL", env = "DELTACONV_COORDINATOR", default_value = DEFAULT_COORDINATOR)]
    pub(crate) coordinator: String,
    /// File with your certificate, its key and the coordinator's authority, for a coordinator that speaks TLS (https://)
    #[arg(long, value_name = "FILE", env = "DELTACONV_CREDENTIALS")]
    pub(crate) credentials: Option<PathBuf>,
    /// Call a coordinator without TLS (http://) also on another machine, where others may read along
    #[arg(long, env = "DELTACONV_ALLOW_PLAINTEXT")]
    pub(crate) allow_plaintext: bool,
}

/// Of a coordinator on this machine.
pub(crate) const DEFAULT_COORDINATOR: &str = "http://127.0.0.1:7433";

impl Connection {
    /// To a coordinator that wants to know nothing of who calls.
    pub(crate) fn to(url: &str) -> Self {
        Self { coordinator: url.to_owned(), credentials: None, allow_plaintext: false }
    }
}

impl std::fmt::Display for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.coordinator)
    }
}

/// What becomes of another coordinator that works on the same output.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Ownership {
    /// Also where another coordinator works on the job's output: that one stops and touches nothing there any more
    #[arg(long)]
    pub(crate) take_over: bool,
}

/// How what is shown is written to stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// For people, with more columns
    Wide,
    /// For programs: an object a line
    Json,
    /// The same as a document
    Yaml,
}

/// Whether output is for people or for programs.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Output {
    /// How to write what is shown
    #[arg(short = 'o', long = "output", value_enum, value_name = "FORMAT", default_value_t, env = "DELTACONV_OUTPUT")]
    format: Format,
}

impl Output {
    /// How programs are told; `None` where people are.
    pub(crate) fn data(self) -> Option<Data> {
        match self.format {
            Format::Table | Format::Wide => None,
            Format::Json => Some(Data::Json),
            Format::Yaml => Some(Data::Yaml),
        }
    }

    /// Whether people want to see more.
    pub(crate) fn is_wide(self) -> bool {
        self.format == Format::Wide
    }
}

/// Whether what is shown is shown again as it changes.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Refresh {
    /// Show it again and again, until interrupted
    #[arg(
        short = 'w',
        long = "watch",
        value_name = "TIME",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2s",
        value_parser = duration::parse
    )]
    pub(crate) every: Option<Duration>,
}

/// Whether what can't be undone is asked for once more.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Confirmation {
    /// Don't ask whether that is meant; needed where there is no terminal to ask at
    #[arg(short = 'y', long)]
    yes: bool,
}

impl Confirmation {
    /// Asks on a terminal whether it shall be done.
    pub(crate) fn ask(self, what: &str) -> Result<(), Error> {
        if self.yes {
            return Ok(());
        }
        if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
            return Err(Error::Unconfirmed { what: what.to_owned() });
        }
        output::ask(&format!("{what}? [y/N] "));
        let mut answer = String::new();
        // Nobody who answers is nobody who agrees.
        let _ = io::stdin().read_line(&mut answer);
        match answer.trim().to_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Error::Declined),
        }
    }
}

/// A job, and how what is said of it is written.
#[derive(Debug, Args)]
pub(crate) struct OfJob {
    /// The job's id, as `deltaconv jobs` lists it
    pub(crate) job: String,
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// A job or one of its tasks, and how what is said of it is written.
#[derive(Debug, Args)]
pub(crate) struct OfJobOrTask {
    /// A job's id, as `deltaconv jobs` lists it, or a task's, as `deltaconv status` does
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What to compute on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// The GPU where this build and machine have one
    #[default]
    Auto,
    /// The processor
    Cpu,
    /// The GPU; CUDA_VISIBLE_DEVICES says which
    Cuda,
}

impl From<Device> for DeviceChoice {
    fn from(device: Device) -> Self {
        match device {
            Device::Auto => Self::Auto,
            Device::Cpu => Self::Cpu,
            Device::Cuda => Self::Cuda,
        }
    }
}
