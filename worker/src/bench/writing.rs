//! How fast activations go to a store.

use std::fs;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use deltaconv_proto::code::Code;
use deltaconv_proto::objects::{self, Objects, Outgoing, PART};
use deltaconv_proto::v1::ObjectRef;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use tokio::sync::Semaphore;

use super::Error;
use super::data::{Options, RUNS, median, memory, random, runtime};

/// Shards that are written at the same time: as many as Stable Diffusion 1.x has layers.
const LAYERS: usize = 16;
/// Bytes that a shard is given at a time: about a sample.
const AT_ONCE: usize = 1 << 20;

/// What writing came to.
#[derive(Clone, Copy, Debug)]
pub struct Writing {
    /// Bytes a second of multipart puts of bytes that are there already.
    pub bare: f64,
    /// Of shards that are copied into parts as capture records them, hashed and put.
    pub hashed: f64,
    /// Median of hashed over bare, each of one run.
    pub ratio: f64,
    /// By how many bytes the process' memory grew at most while it wrote shards, where the system says so.
    pub peak: Option<u64>,
    /// How many it may: parts on their way, and one part of each shard that is being written.
    pub limit: u64,
}

/// Writes shards bare and hashed, with `options.memory` bytes on their way, and removes them.
///
/// # Errors
/// A store that can't be written.
pub fn writing(options: &Options) -> Result<Writing, Error> {
    runtime()?.block_on(measure(options))
}

async fn measure(options: &Options) -> Result<Writing, Error> {
    let (store, _server) = options.store.open()?;
    let keys: Vec<String> = (0..options.bytes.div_ceil(options.shard.max(1))).map(|index| index.to_string()).collect();
    // As capture's batches: more than a processor's caches hold.
    let len = options.shard.min(options.bytes).max(1) as usize;
    let shards: Vec<Bytes> = (0..LAYERS.min(keys.len()) as u64).map(|seed| random(seed + 1, len).into()).collect();
    let bytes = (keys.len() * len) as f64;
    let shard = |index: usize| shards[index % shards.len()].clone();
    let (mut bare, mut hashed, mut ratios, mut peak) = (Vec::new(), Vec::new(), Vec::new(), None);
    // One more, so that what only happens once counts nowhere.
    for run in 0..=RUNS {
        let room = Arc::new(Semaphore::new((options.memory / PART).max(1)));
        let put = |index: usize| put_bare(store.clone(), index.to_string(), shard(index), room.clone());
        let of_bare = bytes / timed(&store, &keys, put).await?;
        let before = memory("VmRSS:");
        let _ = fs::write("/proc/self/clear_refs", "5");
        let room = Outgoing::new(options.memory);
        let put = |index: usize| put_hashed(store.clone(), index.to_string(), shard(index), room.clone());
        let of_hashed = bytes / timed(&store, &keys, put).await?;
        if run > 0 {
            bare.push(of_bare);
            hashed.push(of_hashed);
            ratios.push(of_hashed / of_bare);
            let grown = before.zip(memory("VmHWM:")).map(|(before, most)| most.saturating_sub(before));
            peak = peak.max(grown);
        }
    }
    let limit = (options.memory + LAYERS.min(keys.len()) * PART) as u64;
    Ok(Writing { bare: median(bare), hashed: median(hashed), ratio: median(ratios), peak, limit })
}

/// Seconds that writing all shards takes. Removes them.
async fn timed<F>(store: &Objects, keys: &[String], put: impl Fn(usize) -> F) -> Result<f64, Error>
where
    F: Future<Output = Result<(), objects::Error>> + Send + 'static,
{
    let began = Instant::now();
    let puts = futures::stream::iter(0..keys.len()).map(|index| tokio::spawn(put(index))).buffer_unordered(LAYERS);
    let written: Result<Vec<_>, _> = puts.try_collect().await;
    let seconds = began.elapsed().as_secs_f64();
    // What is left lies where the operator said.
    store.remove(keys.to_vec()).for_each(|_| futures::future::ready(())).await;
    let written = written.map_err(|error| Error::Data { message: error.to_string(), code: Code::Fault })?;
    written.into_iter().collect::<Result<(), _>>()?;
    Ok(seconds)
}

async fn put_bare(store: Objects, key: String, shard: Bytes, room: Arc<Semaphore>) -> Result<(), objects::Error> {
    let failed = |source| objects::Error::Store { url: store.url().to_owned(), key: key.clone(), source };
    let mut upload = store.store().put_multipart(&store.path(&key)?).await.map_err(failed)?;
    let mut parts = tokio::task::JoinSet::new();
    for start in (0..shard.len()).step_by(PART) {
        let permit = room.clone().acquire_owned().await.ok();
        let part = upload.put_part(shard.slice(start..shard.len().min(start + PART)).into());
        parts.spawn(async move {
            let _permit = permit;
            part.await
        });
    }
    for sent in parts.join_all().await {
        sent.map_err(failed)?;
    }
    upload.complete().await.map_err(failed)?;
    Ok(())
}

async fn put_hashed(store: Objects, key: String, shard: Bytes, room: Outgoing) -> Result<(), objects::Error> {
    let mut upload = store.upload(&key, &room)?;
    for bytes in shard.chunks(AT_ONCE) {
        upload.write(bytes).await?;
    }
    let _: ObjectRef = upload.finish().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::data::Store;
    use super::*;

    #[test]
    fn what_is_written_is_removed_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = url::Url::from_directory_path(folder.path()).expect("absolute").to_string();
        let options = Options { store: Store::Url(url), bytes: 60 << 20, shard: 20 << 20, memory: 16 << 20 };
        let measured = writing(&options).expect("writes");
        assert!(measured.ratio > 0.0 && measured.ratio.is_finite());
        assert_eq!(measured.limit, (16 + 3 * 8) << 20);
        let files = fs::read_dir(folder.path()).expect("a folder").flatten();
        assert!(files.flat_map(|entry| fs::read_dir(entry.path())).flatten().next().is_none());
    }
}
