//! How fast activations come from a store, and what a step costs by where its samples lie.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use deltaconv_proto::code::Code;
use deltaconv_proto::objects::{self, Objects, PART, read_parts};
use deltaconv_proto::v1::ObjectRef;
use futures::{StreamExt, TryStreamExt};

use super::Error;
use crate::accelerator::Accelerator;
use crate::shards::Pool;
use crate::shards::cache::bytes_of;

/// Runs of each kind, by turns, of which the median counts.
pub(super) const RUNS: usize = 5;

/// What is read.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where shards are written, which are removed again.
    pub store: Store,
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes of a shard.
    pub shard: u64,
    /// Bytes on their way at the same time.
    pub memory: usize,
}

/// A store to be measured.
#[derive(Clone, Debug)]
pub enum Store {
    /// Folder or bucket.
    Url(String),
    /// An S3 server in this process, of a temporary folder, over the loopback interface. Only of a build with the feature
    /// `bench-s3`.
    S3Loopback,
}

/// What keeps a store up, as long as it is measured.
#[cfg(feature = "bench-s3")]
type Server = Option<deltaconv_proto::objects::testing::S3Server>;
#[cfg(not(feature = "bench-s3"))]
type Server = ();

impl Store {
    /// A folder of it that is nobody else's.
    pub(super) fn open(&self) -> Result<(Objects, Server), Error> {
        let own = format!("bench-{}", std::process::id());
        match self {
            Self::Url(url) => Ok((Objects::open(url)?.below(&own)?, Server::default())),
            #[cfg(feature = "bench-s3")]
            Self::S3Loopback => {
                let server = deltaconv_proto::objects::testing::S3Server::start();
                Ok((server.objects(&own), Some(server)))
            }
            #[cfg(not(feature = "bench-s3"))]
            Self::S3Loopback => {
                let message = "this build has no S3 server; build it with `--features bench-s3`".to_owned();
                Err(Error::Data { message, code: Code::NotBuilt })
            }
        }
    }
}

/// What reading came to.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Bytes a second of ranges that are read and dropped.
    pub bare: f64,
    /// Of shards that are read in parts, in order, verified, and into buffers that are used again, as training does.
    pub verified: f64,
    /// Median of verified over bare, each of one run.
    pub ratio: f64,
    /// By how many bytes the process' memory grew at most while it read verified shards, where the system says so.
    pub peak: Option<u64>,
}

/// Writes shards, reads them bare and verified, and removes them.
///
/// # Errors
/// A store that can't be written or read.
pub fn reading(options: &Options) -> Result<Reading, Error> {
    with_shards(options, async |store, shards| measure(&store, &shards, options.memory).await)
}

/// Writes shards, does something with them, and removes them.
pub(super) fn with_shards<T>(
    options: &Options,
    work: impl AsyncFnOnce(Objects, Vec<ObjectRef>) -> Result<T, Error>,
) -> Result<T, Error> {
    runtime()?.block_on(async {
        let (store, _server) = options.store.open()?;
        let measured = match write(&store, options).await {
            Ok(shards) => work(store.clone(), shards).await,
            Err(error) => Err(error.into()),
        };
        let keys = (0..options.bytes.div_ceil(options.shard.max(1))).map(|index| index.to_string()).collect();
        // What is left lies where the operator said.
        store.remove(keys).for_each(|_| futures::future::ready(())).await;
        measured
    })
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| Error::Data { message: error.to_string(), code: Code::NotStarted })
}

async fn write(store: &Objects, options: &Options) -> Result<Vec<ObjectRef>, objects::Error> {
    let mut shards = Vec::new();
    let mut left = options.bytes;
    while left > 0 {
        let len = left.min(options.shard.max(1)) as usize;
        let bytes = random(shards.len() as u64 + 1, len);
        shards.push(store.put(&shards.len().to_string(), bytes).await?);
        left -= len as u64;
    }
    Ok(shards)
}

/// Bytes that no store can make shorter: Marsaglia, "Xorshift RNGs", 2003. `seed` is not 0.
pub(super) fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(len);
    bytes
}

async fn measure(store: &Objects, shards: &[ObjectRef], reading: usize) -> Result<Reading, Error> {
    let bytes = shards.iter().map(|shard| shard.size).sum::<u64>() as f64;
    let (mut bare, mut verified, mut ratios, mut peak) = (Vec::new(), Vec::new(), Vec::new(), None);
    // One more, so that what only happens once counts nowhere.
    for run in 0..=RUNS {
        let began = Instant::now();
        read_bare(store, shards, reading).await?;
        let of_bare = bytes / began.elapsed().as_secs_f64();
        let before = memory("VmRSS:");
        let _ = fs::write("/proc/self/clear_refs", "5");
        let began = Instant::now();
        read_verified(store, shards, reading).await?;
        let of_verified = bytes / began.elapsed().as_secs_f64();
        if run > 0 {
            bare.push(of_bare);
            verified.push(of_verified);
            ratios.push(of_verified / of_bare);
            let grown = before.zip(memory("VmHWM:")).map(|(before, most)| most.saturating_sub(before));
            peak = peak.max(grown);
        }
    }
    Ok(Reading { bare: median(bare), verified: median(verified), ratio: median(ratios), peak })
}

async fn read_bare(store: &Objects, shards: &[ObjectRef], memory: usize) -> Result<(), Error> {
    let ranges = shards.iter().flat_map(|shard| (0..shard.size).step_by(PART).map(move |start| (shard.clone(), start)));
    let reads = ranges.map(|(shard, start)| {
        let store = store.clone();
        // Tasks of their own, as verified reads are, so that one thread's speed isn't the store's.
        async move {
            let end = shard.size.min(start + PART as u64);
            let read = tokio::spawn(async move { store.get_range(&shard.key, start, end).await });
            read.await.unwrap_or_else(|error| Err(objects::Error::GivenUp(error)))
        }
    });
    let reads = futures::stream::iter(reads).buffer_unordered((memory / PART).max(1));
    Ok(reads.try_for_each(|_| futures::future::ready(Ok(()))).await?)
}

pub(super) async fn read_verified(store: &Objects, shards: &[ObjectRef], memory: usize) -> Result<(), Error> {
    let sources: Vec<_> = shards.iter().map(|shard| (store.clone(), shard.clone())).collect();
    let pool = Arc::new(Pool::new(&Accelerator::None));
    let buffers = pool.clone();
    let parts = read_parts(sources, memory, move |len| buffers.buffer(len));
    let taken = parts.try_for_each(|part| {
        pool.give_back(part.bytes);
        futures::future::ready(Ok(()))
    });
    Ok(taken.await?)
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A figure of this process' memory, in bytes.
pub(super) fn memory(name: &str) -> Option<u64> {
    bytes_of(&fs::read_to_string("/proc/self/status").ok()?, name)
}

/// Seconds of a training step by where its samples lie.
#[derive(Clone, Debug)]
pub struct Steps {
    /// `16×64×64×320 K7`.
    pub name: String,
    /// In tensors on the device.
    pub tensor: f64,
    /// In the device's memory, as training keeps them.
    pub device: f64,
    /// In the host's, page-locked.
    pub host: f64,
}

/// Measures steps on the first GPU, giving each result as it comes.
#[cfg(feature = "cuda")]
pub fn steps(mut each: impl FnMut(Steps)) -> Result<(), Error> {
    use deltaconv_kernels::cuda::{Gpu, StepTimes, measure_samples};

    let gpu = Gpu::open(0)?;
    let device = crate::accelerator::open_device(0)?;
    for case in deltaconv_kernels::bench::cases() {
        let StepTimes { tensor, device, host } = measure_samples(&gpu, &device, &case)?;
        each(Steps { name: case.name(), tensor, device, host });
    }
    Ok(())
}

/// There is none.
#[cfg(not(feature = "cuda"))]
pub fn steps(_: impl FnMut(Steps)) -> Result<(), Error> {
    Err(Error::NoCuda)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_removed_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = url::Url::from_directory_path(folder.path()).expect("absolute").to_string();
        let options = Options { store: Store::Url(url), bytes: 3 << 20, shard: 1 << 20, memory: 64 << 20 };
        let measured = reading(&options).expect("reads");
        assert!(measured.ratio > 0.0 && measured.ratio.is_finite());
        let files = fs::read_dir(folder.path()).expect("a folder").flatten();
        assert!(files.flat_map(|entry| fs::read_dir(entry.path())).flatten().next().is_none());
    }
}
