//! What this machine is, as the coordinator and operators are told.

use deltaconv_proto::v1;

/// The CPU, its memory, and the threads that this worker may use.
pub(super) fn describe(threads: usize) -> v1::Device {
    v1::Device {
        kind: "cpu".into(),
        name: field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
        memory_bytes: memory_bytes().unwrap_or(0),
        threads: threads as u32,
        compute_capability: String::new(),
        precisions: vec!["f32".into()],
    }
}

/// Bytes of memory, 0 where the system doesn't say.
fn memory_bytes() -> Option<u64> {
    let total = field("/proc/meminfo", "MemTotal")?;
    let kib: u64 = total.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
