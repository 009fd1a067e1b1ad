//! `deltaconv bench data`.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use deltaconv_worker::bench::data::Store;
use deltaconv_worker::bench::readers::{self, Readers};
use deltaconv_worker::bench::writing::{self, Writing};
use deltaconv_worker::bench::{self, Device, data};
use serde::Serialize;

use crate::args::Output;
use crate::error::Error;
use crate::{byte_size, location, output, table};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Folder or bucket to write shards to and read them from; they are removed again [default: the system's temporary folder]
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// Instead, an S3 server in this process over a temporary folder (of a build with the feature `bench-s3`)
    #[arg(long, conflicts_with = "url")]
    s3_loopback: bool,
    /// Bytes of a layer, such as "4 GiB"
    #[arg(long, value_name = "SIZE", default_value = "4 GiB", value_parser = byte_size::parse)]
    layer: u64,
    /// Bytes of a shard
    #[arg(long, value_name = "SIZE", default_value = "64 MiB", value_parser = byte_size::parse)]
    shard: u64,
    /// Bytes on their way from the store at the same time
    #[arg(long, value_name = "SIZE", default_value = "256 MiB", value_parser = byte_size::parse)]
    read_memory: u64,
    /// Bytes on their way to the store at the same time
    #[arg(long, value_name = "SIZE", default_value = "256 MiB", value_parser = byte_size::parse)]
    write_memory: u64,
    #[command(flatten)]
    output: Output,
}

/// How activations come, as programs read it.
#[derive(Serialize)]
struct Flow {
    bare_bytes_per_second: f64,
    verified_bytes_per_second: f64,
    ratio: f64,
    peak_bytes: Option<u64>,
    read_memory: u64,
    writing: WritingRow,
    readers: ReadersRow,
    steps: Vec<StepRow>,
}

/// How activations go to a store.
#[derive(Serialize)]
struct WritingRow {
    bare_bytes_per_second: f64,
    hashed_bytes_per_second: f64,
    ratio: f64,
    peak_bytes: Option<u64>,
    /// Parts on their way, and one part of each shard that is being written.
    limit_bytes: u64,
}

/// 8 and 64 readers of one store.
#[derive(Serialize)]
struct ReadersRow {
    bytes_per_second_of_8: f64,
    bytes_per_second_of_64: f64,
    ratio: f64,
    failed: usize,
}

/// Times are in µs, ratios of step rates to that on a tensor.
#[derive(Serialize)]
struct StepRow {
    shape: String,
    tensor_us: f64,
    device_us: f64,
    device_ratio: f64,
    host_us: f64,
    host_ratio: f64,
}

pub(super) fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let failed = |error: bench::Error| Error::Bench { message: error.to_string(), code: error.code() };
    let folder = arguments.url.unwrap_or_else(|| std::env::temp_dir().to_string_lossy().into_owned());
    let store = match arguments.s3_loopback {
        true => Store::S3Loopback,
        false => Store::Url(location::url(&folder, Path::new(""))?),
    };
    let options = data::Options {
        store,
        bytes: arguments.layer,
        shard: arguments.shard,
        memory: usize::try_from(arguments.read_memory).unwrap_or(usize::MAX),
    };
    let reading = data::reading(&options).map_err(failed)?;
    let to_write =
        data::Options { memory: usize::try_from(arguments.write_memory).unwrap_or(usize::MAX), ..options.clone() };
    let Writing { bare, hashed, ratio, peak, limit } = writing::writing(&to_write).map_err(failed)?;
    let Readers { few, many, ratio: many_over_few, failed: failed_readers } =
        readers::readers(&options).map_err(failed)?;
    let mut steps = Vec::new();
    if Device::default_here() == Device::Cuda {
        data::steps(|measured| {
            output::say(&format!("{} measured", measured.name));
            let data::Steps { name: shape, tensor, device, host } = measured;
            let (device_ratio, host_ratio) = (tensor / device, tensor / host);
            let [tensor_us, device_us, host_us] = [tensor, device, host].map(|seconds| seconds * 1e6);
            steps.push(StepRow { shape, tensor_us, device_us, device_ratio, host_us, host_ratio });
        })
        .map_err(failed)?;
    }
    let flow = Flow {
        bare_bytes_per_second: reading.bare,
        verified_bytes_per_second: reading.verified,
        ratio: reading.ratio,
        peak_bytes: reading.peak,
        read_memory: arguments.read_memory,
        writing: WritingRow {
            bare_bytes_per_second: bare,
            hashed_bytes_per_second: hashed,
            ratio,
            peak_bytes: peak,
            limit_bytes: limit,
        },
        readers: ReadersRow {
            bytes_per_second_of_8: few,
            bytes_per_second_of_64: many,
            ratio: many_over_few,
            failed: failed_readers,
        },
        steps,
    };
    match arguments.output.data() {
        Some(data) => data.print(&flow),
        None => output::print(&describe_flow(&flow, &options)),
    }
    Ok(ExitCode::SUCCESS)
}

fn describe_flow(flow: &Flow, options: &data::Options) -> String {
    let rate = |bytes: f64| format!("{}/s", table::bytes(bytes as u64));
    let mut text = format!(
        "{} in shards of {}: {} verified, {} bare ranges, ratio {:.2}",
        table::bytes(options.bytes),
        table::bytes(options.shard),
        rate(flow.verified_bytes_per_second),
        rate(flow.bare_bytes_per_second),
        flow.ratio,
    );
    if let Some(peak) = flow.peak_bytes {
        text += &format!("\nmemory grew by {}, of {} for reading", table::bytes(peak), table::bytes(flow.read_memory));
    }
    let writing = &flow.writing;
    text += &format!(
        "\nwritten: {} hashed, {} bare multipart puts, ratio {:.2}",
        rate(writing.hashed_bytes_per_second),
        rate(writing.bare_bytes_per_second),
        writing.ratio,
    );
    if let Some(peak) = writing.peak_bytes {
        text +=
            &format!("\nmemory grew by {}, of {} for writing", table::bytes(peak), table::bytes(writing.limit_bytes));
    }
    let ReadersRow { bytes_per_second_of_8: few, bytes_per_second_of_64: many, ratio, failed } = flow.readers;
    text += &format!("\n8 readers: {}; 64: {}, ratio {ratio:.2}, {failed} failed", rate(few), rate(many));
    if flow.steps.is_empty() {
        return text;
    }
    let mut listing = table::table(["step on samples in", "tensors µs", "GPU µs", "rate", "host µs", "rate"]);
    for row in &flow.steps {
        listing.add_row([
            row.shape.clone(),
            format!("{:.1}", row.tensor_us),
            format!("{:.1}", row.device_us),
            format!("{:.2}", row.device_ratio),
            format!("{:.1}", row.host_us),
            format!("{:.2}", row.host_ratio),
        ]);
    }
    table::numbers(&mut listing, &[1, 2, 3, 4, 5]);
    format!("{text}\n\n{}", table::text(&listing))
}
