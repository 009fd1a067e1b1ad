//! What this machine is, as the coordinator and operators are told.

use deltaconv_proto::v1;

use crate::accelerator::Accelerator;

/// The GPU that blocks are trained on, or the CPU; its memory, and the threads that this worker may use.
pub(crate) fn describe(threads: usize, accelerator: &Accelerator) -> v1::Device {
    let cpu = v1::Device {
        kind: "cpu".into(),
        name: processor(),
        memory_bytes: memory().map_or(0, |(_, total)| total),
        threads: threads as u32,
        compute_capability: String::new(),
        precisions: vec!["f32".into()],
    };
    match accelerator {
        Accelerator::None => cpu,
        #[cfg(feature = "cuda")]
        Accelerator::Cuda(cuda) => {
            let capability = cuda.gpu.compute_capability().map(|(major, minor)| format!("{major}.{minor}"));
            v1::Device {
                kind: v1::Device::CUDA.into(),
                name: cuda.gpu.name().unwrap_or_default(),
                memory_bytes: cuda.gpu.memory().map_or(0, |(_, total)| total as u64),
                compute_capability: capability.unwrap_or_default(),
                precisions: vec!["bf16".into(), "f32".into()],
                ..cpu
            }
        }
    }
}

/// What the system calls the processor.
pub(crate) fn processor() -> String {
    field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into())
}

/// Bytes of memory that are available, and of all memory.
pub(crate) fn memory() -> Option<(u64, u64)> {
    let bytes = |name| Some(field("/proc/meminfo", name)?.split_whitespace().next()?.parse::<u64>().ok()? * 1024);
    Some((bytes("MemAvailable")?, bytes("MemTotal")?))
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
