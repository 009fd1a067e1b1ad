//! The processor, the memory, and the device that blocks are trained on.

use std::thread;

use deltaconv_proto::v1;
use deltaconv_worker::bench;
use deltaconv_worker::probe;

use super::Finding;
use crate::args::Device;
use crate::table;

/// Random blocks that are compared.
const BLOCKS: u64 = 4;
/// Of the host, where a worker has teachers in F32: SD1.5 takes 3.4 GB, SDXL 10 GB (measured by `deltaconv inspect`).
const LITTLE_MEMORY: u64 = 8 << 30;

pub(super) fn processor() -> Finding {
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let found = format!("{} threads of {}; deltaconv {}", threads, probe::processor(), env!("CARGO_PKG_VERSION"));
    Finding::ok("processor", found)
}

pub(super) fn memory() -> Finding {
    const CHECK: &str = "memory";
    match probe::memory() {
        None => Finding::warning(CHECK, "the system doesn't say how much there is", "give workers --memory-cache SIZE"),
        Some((available, total)) => {
            let found = format!("{} of {} are available", table::bytes(available), table::bytes(total));
            match available < LITTLE_MEMORY {
                false => Finding::ok(CHECK, found),
                true => Finding::warning(
                    CHECK,
                    found,
                    "a worker keeps the teacher in memory: `deltaconv inspect MODEL` says how much yours takes",
                ),
            }
        }
    }
}

/// The device, its memory, and whether it computes what the processor does.
pub(super) async fn device(choice: Device) -> Vec<Finding> {
    let looked = tokio::task::spawn_blocking(move || look(choice)).await;
    looked
        .unwrap_or_else(|panic| vec![Finding::failed("device", panic.to_string(), deltaconv_proto::code::Code::Fault)])
}

fn look(choice: Device) -> Vec<Finding> {
    const CHECK: &str = "device";
    let device = match probe::device(choice.into()) {
        Ok(device) => device,
        Err(error) => return vec![Finding::failed(CHECK, error.to_string(), probe::code(&error))],
    };
    if device.kind != v1::Device::CUDA {
        let found = "the processor: no GPU is used".to_owned();
        let remedy = match probe::why_no_gpu() {
            Some(reason) => format!("if this machine has a GPU: {reason}"),
            None => "ask for the GPU with --device cuda".to_owned(),
        };
        return vec![Finding::warning(CHECK, found, remedy), processors_block()];
    }
    let driver = probe::driver().map(|version| format!(", driver {version}")).unwrap_or_default();
    let found = format!(
        "{}, compute capability {}, {}{driver}",
        device.name,
        device.compute_capability,
        table::bytes(device.memory_bytes)
    );
    vec![Finding::ok(CHECK, found), kernels()]
}

/// The GPU against the processor.
fn kernels() -> Finding {
    const CHECK: &str = "kernels";
    let mut differences = Vec::new();
    match bench::check(0, BLOCKS, |difference| differences.push(difference)) {
        Ok(held) if held == BLOCKS => {
            Finding::ok(CHECK, format!("{held} random blocks agree with the processor's, and repeat bit by bit"))
        }
        Ok(held) => {
            let found = format!("{held} of {BLOCKS} blocks agree: {}", differences.join("; "));
            Finding::failed(CHECK, found, deltaconv_proto::code::Code::DeviceFailed)
        }
        Err(error) => Finding::failed(CHECK, error.to_string(), error.code()),
    }
}

/// A block's pass on the processor, for its speed.
fn processors_block() -> Finding {
    const CHECK: &str = "kernels";
    let mut first = None;
    match bench::kernels(bench::Device::Cpu, "", |measured| {
        first.get_or_insert(measured);
    }) {
        Ok(_) => {
            let found = first.and_then(|measured| Some((measured.name.clone(), measured.step?)));
            let found = found.map(|(name, seconds)| format!("a step of {name} takes {:.1} ms", seconds * 1e3));
            Finding::ok(CHECK, found.unwrap_or_else(|| "computed".to_owned()))
        }
        Err(error) => Finding::failed(CHECK, error.to_string(), error.code()),
    }
}
