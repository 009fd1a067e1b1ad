//! Shards that no memory had room for: their samples are read one by one, from the node's folder or from the store, and
//! each is verified by the digest that it had when its shard was.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::shard::{Layout, Shape};
use deltaconv_proto::v1::ObjectRef;
use half::f16;

use super::memory::{Buffer, Memory};
use crate::task::Error;

/// A verified shard that is elsewhere.
#[derive(Debug)]
pub(super) struct Away {
    object: ObjectRef,
    /// In the node's folder, until it fails.
    file: Option<Arc<File>>,
    file_failed: AtomicBool,
    /// Of samples, by where they begin.
    digests: HashMap<usize, blake3::Hash>,
}

impl Away {
    pub(super) fn new(object: ObjectRef, file: Option<File>, digests: HashMap<usize, blake3::Hash>) -> Self {
        Self { object, file: file.map(Arc::new), file_failed: AtomicBool::new(false), digests }
    }

    /// Numbers `range` of the object, which must be all of a sample.
    pub(super) async fn read(&self, store: &Objects, range: Range<usize>) -> Result<Memory, Error> {
        let (start, end) = (2 * range.start as u64, 2 * range.end as u64);
        let mut buffer = Buffer::plain((end - start) as usize);
        if let Some(file) = self.file.as_ref().filter(|_| !self.file_failed.load(Ordering::Relaxed)) {
            let file = file.clone();
            let read = move || {
                let result = objects::read_exact_at(&file, buffer.as_mut(), start);
                (buffer, result)
            };
            let result;
            (buffer, result) = tokio::task::spawn_blocking(read).await.map_err(objects::Error::GivenUp)?;
            let reason = match result {
                Ok(()) if self.is_right(buffer.bytes(), range.start) => {
                    return Ok(buffer.keep());
                }
                Ok(()) => "a sample was altered since it was written".to_owned(),
                Err(error) => error.to_string(),
            };
            if !self.file_failed.swap(true, Ordering::Relaxed) {
                let ObjectRef { key, digest, .. } = &self.object;
                tracing::warn!(key, digest, reason, "the cache's file is not used any more; reading from the store");
            }
        }
        let bytes = store.get_range(&self.object.key, start, end).await?;
        let fits = bytes.len() == buffer.bytes().len();
        if fits {
            buffer.as_mut().copy_from_slice(&bytes);
        }
        if !fits || !self.is_right(buffer.bytes(), range.start) {
            let ObjectRef { key, digest, .. } = self.object.clone();
            let found = format!("other bytes from {start} to {end} than when it was verified");
            return Err(objects::Error::Broken { key, expected: digest, found }.into());
        }
        Ok(buffer.keep())
    }

    fn is_right(&self, bytes: &[u8], start: usize) -> bool {
        self.digests.get(&start).is_some_and(|digest| blake3::hash(bytes) == *digest)
    }
}

/// Digests of a shard's samples, from its parts in their order.
#[derive(Debug)]
pub(super) struct Digests {
    /// In the order in which they stand.
    samples: Vec<Range<usize>>,
    next: usize,
    hasher: blake3::Hasher,
    found: HashMap<usize, blake3::Hash>,
}

impl Digests {
    pub(super) fn new(layout: &Layout) -> Self {
        let of_bucket =
            |(bucket, shape): (usize, &Shape)| (0..shape.samples).map(move |row| layout.sample(bucket, row));
        let mut samples: Vec<Range<usize>> = layout.shapes.iter().enumerate().flat_map(of_bucket).collect();
        samples.sort_by_key(|sample| sample.start);
        Self { samples, next: 0, hasher: blake3::Hasher::new(), found: HashMap::new() }
    }

    /// Takes the part that begins with number `first`.
    pub(super) fn take(&mut self, numbers: &[f16], first: usize) {
        let end = first + numbers.len();
        while let Some(sample) = self.samples.get(self.next).filter(|sample| sample.start < end) {
            let overlap = sample.start.max(first)..sample.end.min(end);
            let bytes = bytemuck::cast_slice::<f16, u8>(&numbers[overlap.start - first..overlap.end - first]);
            self.hasher.update(bytes);
            if sample.end > end {
                break;
            }
            self.found.insert(sample.start, self.hasher.finalize());
            self.hasher.reset();
            self.next += 1;
        }
    }

    pub(super) fn finish(self) -> HashMap<usize, blake3::Hash> {
        self.found
    }
}
