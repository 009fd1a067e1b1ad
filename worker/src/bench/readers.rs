//! Whether a store gives many readers together as much as a few.

use std::time::Instant;

use deltaconv_proto::objects::{Objects, PART};
use deltaconv_proto::v1::ObjectRef;
use futures::StreamExt;

use super::Error;
use super::data::{Options, RUNS, median, read_verified, with_shards};

/// Readers that are compared.
const FEW: usize = 8;
const MANY: usize = 64;

/// What readers came to.
#[derive(Clone, Copy, Debug)]
pub struct Readers {
    /// Bytes a second of 8 readers together.
    pub few: f64,
    /// Of 64.
    pub many: f64,
    /// Median of many over few, each of one run.
    pub ratio: f64,
    /// Readers that got an error, of all runs.
    pub failed: usize,
}

/// Has 8 and 64 readers read all shards together, verified, each its share of the shards in an equal share of
/// `options.memory`, and one part at least.
///
/// # Errors
/// A store that can't be written.
pub fn readers(options: &Options) -> Result<Readers, Error> {
    with_shards(options, async |store, shards| {
        let bytes = shards.iter().map(|shard| shard.size).sum::<u64>() as f64;
        let (mut few, mut many, mut ratios, mut failed) = (Vec::new(), Vec::new(), Vec::new(), 0);
        // One more, so that what only happens once counts nowhere.
        for run in 0..=RUNS {
            let (of_few, failed_of_few) = read(&store, &shards, FEW, options.memory).await;
            let (of_many, failed_of_many) = read(&store, &shards, MANY, options.memory).await;
            failed += failed_of_few + failed_of_many;
            if run > 0 {
                few.push(bytes / of_few);
                many.push(bytes / of_many);
                ratios.push(of_few / of_many);
            }
        }
        Ok(Readers { few: median(few), many: median(many), ratio: median(ratios), failed })
    })
}

/// Seconds until the last of so many readers has its share, and how many failed.
async fn read(store: &Objects, shards: &[ObjectRef], readers: usize, memory: usize) -> (f64, usize) {
    let share = |reader: usize| shards.iter().skip(reader).step_by(readers).cloned().collect::<Vec<ObjectRef>>();
    let began = Instant::now();
    let tasks = (0..readers).map(|reader| {
        let (store, share) = (store.clone(), share(reader));
        tokio::spawn(async move { read_verified(&store, &share, (memory / readers).max(PART)).await })
    });
    let tasks: Vec<_> = tasks.collect();
    let ended = futures::stream::iter(tasks).then(|task| task).collect::<Vec<_>>().await;
    let failed = ended.iter().filter(|read| !matches!(read, Ok(Ok(())))).count();
    (began.elapsed().as_secs_f64(), failed)
}

#[cfg(test)]
mod tests {
    use super::super::data::Store;
    use super::*;

    #[test]
    fn all_readers_get_their_shares() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = url::Url::from_directory_path(folder.path()).expect("absolute").to_string();
        let options = Options { store: Store::Url(url), bytes: 66 << 16, shard: 1 << 16, memory: 1 << 20 };
        let measured = readers(&options).expect("reads");
        assert!(measured.ratio > 0.0 && measured.ratio.is_finite());
        assert_eq!(measured.failed, 0);
    }
}
