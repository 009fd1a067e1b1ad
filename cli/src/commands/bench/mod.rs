//! `deltaconv bench`.

mod coordinator;
mod data;

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use deltaconv_proto::code::Code;
use deltaconv_worker::bench::{self, Device, Measured, teacher};
use serde::Serialize;

use crate::args::Output;
use crate::error::Error;
use crate::{location, output, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Time the block's forward pass and training step, or check a GPU against the CPU
    #[command(after_help = "Examples:\n  deltaconv bench kernels K7\n  deltaconv bench kernels --check 100")]
    Kernels(Kernels),
    /// Time a teacher's passes, with or without capture, or check a GPU against the CPU
    #[command(after_help = "Examples:\n\
        \x20 deltaconv bench teacher MODEL --batch 16 --capture\n\
        \x20 deltaconv bench teacher MODEL --check")]
    Teacher(Teacher),
    /// Time how activations come from a store, and training steps by where their samples lie
    #[command(after_help = "Examples:\n\
        \x20 deltaconv bench data /nvme\n\
        \x20 deltaconv bench data s3://bucket/bench --layer \"1 GiB\"")]
    Data(data::Arguments),
    /// Measure a coordinator under many workers and tasks: its time, memory and restart
    #[command(after_help = "Examples:\n  deltaconv bench coordinator --workers 1000 --tasks 100000")]
    Coordinator(coordinator::Arguments),
    #[command(hide = true)]
    CoordinatorProcess(coordinator::Process),
}

#[derive(Debug, Args)]
struct Kernels {
    /// Only shapes whose name contains this, such as K7
    #[arg(default_value = "", hide_default_value = true)]
    only: String,
    /// What to measure [default: the GPU where there is one]
    #[arg(long, value_enum)]
    device: Option<Kind>,
    /// Compare the GPU with the CPU on this many random blocks instead of timing
    #[arg(long, value_name = "N")]
    check: Option<u64>,
    /// Which random blocks [default: others each time]
    #[arg(long, value_name = "N", requires = "check")]
    seed: Option<u64>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct Teacher {
    /// Folder or URL of a model in diffusers layout
    #[arg(value_name = "MODEL")]
    model: String,
    /// Samples that go through it together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
    /// Height and width of the latents [default: those that it was trained at]
    #[arg(long, value_name = "HxW", value_parser = super::size)]
    latent: Option<(usize, usize)>,
    /// What to measure [default: the GPU where there is one]
    #[arg(long, value_enum)]
    device: Option<Kind>,
    /// In what it is computed [default: bf16 on a GPU, f32 on the CPU, which has nothing else]
    #[arg(long, visible_alias = "dtype", value_enum)]
    precision: Option<Precision>,
    /// Record what goes into and out of every layer, as capture does
    #[arg(long)]
    capture: bool,
    /// Time steps that train blocks in place of all layers together, end to end, as `[recipe.finetune]` does
    #[arg(long, conflicts_with = "capture")]
    train: bool,
    /// Compare with a pass on the CPU in f32, and the gradients of a step, instead of timing
    #[arg(long, conflicts_with_all = ["capture", "train"])]
    check: bool,
    /// Of the random inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Precision {
    F32,
    Bf16,
    F16,
}

/// A teacher's times, as programs read them.
#[derive(Serialize)]
struct Passes {
    batch: u16,
    latent: [usize; 2],
    precision: String,
    milliseconds: f64,
    samples_per_second: f64,
    captured_bytes: Option<usize>,
}

/// How far a teacher's passes are from the CPU's.
#[derive(Serialize)]
struct Differences {
    differences: Vec<Difference>,
}

/// Of one of them.
#[derive(Serialize)]
struct Difference {
    of: String,
    relative_error: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Cpu,
    Cuda,
}

/// One row, as programs read it. Times are in µs.
#[derive(Serialize)]
struct Row {
    shape: [usize; 4],
    kernel_size: usize,
    gate: &'static str,
    forward_us: f64,
    forward_limit_us: f64,
    forward_ratio: f64,
    step_us: Option<f64>,
    step_limit_us: f64,
    step_ratio: Option<f64>,
    activations: Option<f64>,
}

#[derive(Serialize)]
struct Listing {
    device: String,
    kernels: Vec<Row>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let blocking = match arguments.what {
        What::Coordinator(arguments) => return coordinator::run(arguments).await,
        What::CoordinatorProcess(process) => return coordinator::serve(process).await,
        What::Kernels(kernels) => tokio::task::spawn_blocking(move || time_or_check(&kernels)),
        What::Teacher(teacher) => tokio::task::spawn_blocking(move || time_or_compare(&teacher)),
        What::Data(data) => tokio::task::spawn_blocking(move || data::run(data)),
    };
    blocking.await.unwrap_or_else(|panic| Err(Error::Bench { message: panic.to_string(), code: Code::Fault }))
}

fn time_or_check(kernels: &Kernels) -> Result<ExitCode, Error> {
    let failed = |error: bench::Error| Error::Bench { message: error.to_string(), code: error.code() };
    if let Some(count) = kernels.check {
        let seed = kernels.seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(0, |now| now.subsec_nanos().into())
        });
        let held = bench::check(seed, count, |line| output::say(&line)).map_err(failed)?;
        output::print(&format!(
            "{held} of {count} random blocks agree with the CPU and repeat bit by bit (seed {seed})"
        ));
        return Ok(if held == count { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let device = device(kernels.device);
    let mut measured = Vec::new();
    let name = bench::kernels(device, &kernels.only, |row| {
        output::say(&format!("{} measured", row.name));
        measured.push(row);
    })
    .map_err(failed)?;
    match kernels.output.data() {
        Some(data) => data.print(&Listing { device: name, kernels: measured.iter().map(row).collect() }),
        None => output::print(&describe(&name, &measured)),
    }
    Ok(ExitCode::SUCCESS)
}

fn time_or_compare(arguments: &Teacher) -> Result<ExitCode, Error> {
    let failed = |error: bench::Error| Error::Bench { message: error.to_string(), code: error.code() };
    let device = device(arguments.device);
    let default = if device == Device::Cuda { Precision::Bf16 } else { Precision::F32 };
    let precision = arguments.precision.unwrap_or(default);
    let options = teacher::Options {
        model: location::url(&arguments.model, Path::new(""))?,
        batch: arguments.batch.into(),
        latent: arguments.latent,
        device,
        precision: match precision {
            Precision::F32 => teacher::Precision::F32,
            Precision::Bf16 => teacher::Precision::Bf16,
            Precision::F16 => teacher::Precision::F16,
        },
        seed: arguments.seed,
    };
    if arguments.check {
        let differences = teacher::compare(&options).map_err(failed)?;
        let holds = differences.iter().all(teacher::Difference::holds);
        match arguments.output.data() {
            Some(data) => {
                let row = |teacher::Difference { of, relative_error, .. }| Difference { of, relative_error };
                data.print(&Differences { differences: differences.into_iter().map(row).collect() });
            }
            None => {
                for teacher::Difference { of, relative_error, .. } in differences {
                    output::print(&format!("{relative_error:.1e}  {of}"));
                }
            }
        }
        return Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let timed = match (arguments.capture, arguments.train) {
        (true, _) => teacher::Timed::Capture,
        (_, true) => teacher::Timed::Training,
        _ => teacher::Timed::Passes,
    };
    let measured = teacher::time(&options, timed).map_err(failed)?;
    let precision = precision.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let passes = Passes {
        batch: arguments.batch,
        latent: [measured.latent.0, measured.latent.1],
        precision,
        milliseconds: measured.seconds * 1e3,
        samples_per_second: f64::from(arguments.batch) / measured.seconds,
        captured_bytes: measured.captured,
    };
    match arguments.output.data() {
        Some(data) => data.print(&passes),
        None => output::print(&format!(
            "{:.1} samples/s: {:.2} ms for a batch of {} at {}×{} in {}{}",
            passes.samples_per_second,
            passes.milliseconds,
            passes.batch,
            passes.latent[0],
            passes.latent[1],
            passes.precision,
            passes.captured_bytes.map(|bytes| format!(", {} captured", table::bytes(bytes as u64))).unwrap_or_default(),
        )),
    }
    Ok(ExitCode::SUCCESS)
}

/// What was chosen, or what there is.
fn device(kind: Option<Kind>) -> Device {
    match kind {
        Some(Kind::Cpu) => Device::Cpu,
        Some(Kind::Cuda) => Device::Cuda,
        None => Device::default_here(),
    }
}

fn row(measured: &Measured) -> Row {
    Row {
        shape: measured.dims,
        kernel_size: measured.kernel_size,
        gate: if measured.sigmoid { "sigmoid" } else { "scaled" },
        forward_us: measured.forward * 1e6,
        forward_limit_us: measured.forward_limit * 1e6,
        forward_ratio: measured.forward / measured.forward_limit,
        step_us: measured.step.map(|step| step * 1e6),
        step_limit_us: measured.step_limit * 1e6,
        step_ratio: measured.step.map(|step| step / measured.step_limit),
        activations: measured.activations,
    }
}

fn describe(device: &str, measured: &[Measured]) -> String {
    let headings = ["shape", "forward µs", "limit", "ratio", "step µs", "limit", "ratio", "activations"];
    let mut listing = table::table(headings);
    for measured in measured {
        let row = row(measured);
        let of_step =
            |value: Option<f64>, digits: usize| value.map_or("–".into(), |value| format!("{value:.digits$}"));
        listing.add_row([
            measured.name.clone(),
            format!("{:.1}", row.forward_us),
            format!("{:.1}", row.forward_limit_us),
            format!("{:.2}", row.forward_ratio),
            of_step(row.step_us, 1),
            of_step(row.step_us.map(|_| row.step_limit_us), 1),
            of_step(row.step_ratio, 2),
            of_step(row.activations, 2),
        ]);
    }
    table::numbers(&mut listing, &[1, 2, 3, 4, 5, 6, 7]);
    format!("{device}; limits are one H200's\n{}", table::text(&listing))
}
