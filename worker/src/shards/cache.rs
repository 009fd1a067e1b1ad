//! How much of a worker's machine activations may take.

use std::fs;
use std::io;
use std::path::PathBuf;

use deltaconv_proto::objects::Outgoing;
use deltaconv_proto::v1::NodeCache;

use super::{Budget, Folder};

/// Without a better figure: what every machine that runs a worker has.
const LEAST_MEMORY: u64 = 1 << 30;

/// Where a worker may keep activations, and how many bytes of them.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of a GPU's memory; without, 60 % of what is free when a layer's training begins.
    pub device: Option<u64>,
    /// Of the host's memory; without, half of what is free when the worker starts.
    pub memory: Option<u64>,
    /// A folder that all workers of a machine may share, and how many bytes it may hold.
    pub folder: Option<(PathBuf, u64)>,
    /// On their way from the store at the same time.
    pub reading: u64,
    /// On their way to the store at the same time. Beside them, up to 8 MiB of each layer wait until they are so many.
    pub writing: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { device: None, memory: None, folder: None, reading: 256 << 20, writing: 256 << 20 }
    }
}

/// As [`Options`], opened.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    pub(crate) device: Option<u64>,
    pub(crate) memory: Budget,
    pub(crate) folder: Option<Folder>,
    pub(crate) reading: usize,
    pub(crate) outgoing: Outgoing,
}

impl Cache {
    /// Makes the folder where there is none.
    pub(crate) fn open(options: &Options) -> io::Result<Self> {
        let memory = options.memory.unwrap_or_else(|| free_memory().unwrap_or(LEAST_MEMORY) / 2);
        let folder = options.folder.as_ref().map(|(path, limit)| Folder::open(path, *limit)).transpose()?;
        let [reading, writing] =
            [options.reading, options.writing].map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let outgoing = Outgoing::new(writing);
        Ok(Self { device: options.device, memory: Budget::new(memory), folder, reading, outgoing })
    }

    /// What the folder holds. Lists it, which takes milliseconds for thousands of files.
    pub(crate) fn statement(&self) -> NodeCache {
        let Some(folder) = &self.folder else { return NodeCache::default() };
        folder.statement().unwrap_or_else(|error| {
            tracing::warn!(%error, "the cache's folder can't be listed; the coordinator doesn't know what it holds");
            NodeCache::default()
        })
    }
}

/// Bytes that this process may still take: what the machine has available, or its control group's limit if that is less.
fn free_memory() -> Option<u64> {
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    let available = bytes_of(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    Some(limit.map_or(available, |limit: u64| limit.min(available)))
}

/// The figure of this name in a file of the kernel's that gives KiB, in bytes.
pub(crate) fn bytes_of(file: &str, name: &str) -> Option<u64> {
    let line = file.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_available_memory_is_found_among_the_kernels_figures() {
        let meminfo =
            "MemTotal:       24689764 kB\nMemFree:         1 kB\nMemAvailable:   23068672 kB\nBuffers: 7 kB\n";
        assert_eq!(bytes_of(meminfo, "MemAvailable:"), Some(22 << 30));
        assert_eq!(bytes_of("MemTotal: 5 kB\n", "MemAvailable:"), None);
    }
}
