//! `deltaconv bench`.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use deltaconv_worker::bench::{self, Device, Measured};
use serde::Serialize;

use crate::args::{Format, Output};
use crate::error::Error;
use crate::{output, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Time the block's forward pass and training step, or check a GPU against the CPU
    Kernels(Kernels),
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
    let What::Kernels(kernels) = arguments.what;
    let ended = tokio::task::spawn_blocking(move || time_or_check(&kernels)).await;
    ended.unwrap_or_else(|panic| Err(Error::Bench { message: panic.to_string() }))
}

fn time_or_check(kernels: &Kernels) -> Result<ExitCode, Error> {
    let failed = |error: bench::Error| Error::Bench { message: error.to_string() };
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
    let device = match kernels.device {
        Some(Kind::Cpu) => Device::Cpu,
        Some(Kind::Cuda) => Device::Cuda,
        None => Device::default_here(),
    };
    let mut measured = Vec::new();
    let name = bench::kernels(device, &kernels.only, |row| {
        output::say(&format!("{} measured", row.name));
        measured.push(row);
    })
    .map_err(failed)?;
    match kernels.output.format {
        Format::Json => output::print_json(&Listing { device: name, kernels: measured.iter().map(row).collect() }),
        Format::Text => output::print(&describe(&name, &measured)),
    }
    Ok(ExitCode::SUCCESS)
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
