//! A store whose operations fail now and then, as its seed says.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use super::super::Objects;
use super::super::retry::{Policy, Retried};
use super::schedule::{Drawn, Fault, Schedule};

/// The longest delay, in the clock of the test.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// A store around another in which a part of all operations fails. Which ones, and how, is decided by the seed and the
/// operation's number, so that operations in the same order meet the same faults. Clones count together.
#[derive(Clone, Debug)]
pub struct Faulty {
    inner: Arc<dyn ObjectStore>,
    schedule: Arc<Schedule>,
}

impl Faulty {
    /// A store in which `rate` (0 to 1) of the operations that one of these `kinds` can happen to have it.
    pub fn new(inner: Arc<dyn ObjectStore>, seed: u64, rate: f64, kinds: &[Fault]) -> Self {
        Self { inner, schedule: Arc::new(Schedule::new(seed, rate, kinds, LONGEST_DELAY)) }
    }

    /// The same objects behind such a store, which is used as one behind a network but for shorter pauses, and the store.
    pub fn between(objects: &Objects, seed: u64, rate: f64, kinds: &[Fault]) -> (Objects, Self) {
        let faulty = Self::new(objects.store.clone(), seed, rate, kinds);
        let pauses = (Duration::from_millis(1), Duration::from_millis(10));
        let policy = Policy { first_pause: pauses.0, longest_pause: pauses.1, ..Policy::default() };
        let retried = Retried { inner: Arc::new(faulty.clone()), policy };
        (Objects { store: Arc::new(retried), ..objects.clone() }, faulty)
    }

    /// How often a fault happened.
    pub fn fired(&self, fault: Fault) -> u64 {
        self.schedule.fired(fault)
    }

    /// How many operations there were.
    pub fn operations(&self) -> u64 {
        self.schedule.operations()
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with faults", self.inner)
    }
}

fn failed(source: io::Error) -> Error {
    Error::Generic { store: "faulty", source: Box::new(source) }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        use Fault::*;
        let possible: &[Fault] = if options.head { &[Delay, Busy] } else { &[Delay, Busy, Reset, Short, Flipped] };
        let mut drawn = self.schedule.draw(possible);
        self.schedule.before(drawn.as_mut()).await.map_err(failed)?;
        let found = self.inner.get_opts(location, options).await?;
        let length = found.range.end - found.range.start;
        match drawn {
            Some(drawn @ Drawn { fault: Reset | Short | Flipped, .. }) if length > 0 => {
                let (meta, range) = (found.meta.clone(), found.range.clone());
                let (attributes, extensions) = (found.attributes.clone(), found.extensions.clone());
                let (body, _) = drawn.disturb(found.into_stream(), length, self.schedule.clone(), failed);
                Ok(GetResult { payload: GetResultPayload::Stream(body), meta, range, attributes, extensions })
            }
            _ => Ok(found),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (schedule, listing) = (self.schedule.clone(), self.inner.list(prefix));
        let listing = async move {
            let mut drawn = schedule.draw(&[Fault::Delay, Fault::Busy, Fault::Stale]);
            schedule.before(drawn.as_mut()).await.map_err(failed)?;
            let mut found: Vec<_> = listing.try_collect().await?;
            if let Some(mut drawn @ Drawn { fault: Fault::Stale, .. }) = drawn
                && !found.is_empty()
            {
                found.sort_by(|a, b| (a.last_modified, &a.location).cmp(&(b.last_modified, &b.location)));
                found.truncate(drawn.listed(found.len()));
                schedule.fire(Fault::Stale);
            }
            Ok::<_, Error>(stream::iter(found.into_iter().map(Ok)))
        };
        stream::once(listing).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.schedule.before(self.schedule.draw(&[Fault::Delay, Fault::Busy]).as_mut()).await.map_err(failed)?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let mut drawn = self.schedule.draw(&[Fault::Delay, Fault::Busy]);
        let is_done = drawn.as_mut().is_some_and(Drawn::is_done);
        if !is_done {
            self.schedule.before(drawn.as_mut()).await.map_err(failed)?;
            return self.inner.put_opts(location, payload, options).await;
        }
        let done = self.inner.put_opts(location, payload, options).await?;
        self.schedule.before(drawn.as_mut()).await.map_err(failed).map(|()| done)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.schedule.before(self.schedule.draw(&[Fault::Delay, Fault::Busy]).as_mut()).await.map_err(failed)?;
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(FaultyUpload { inner, schedule: self.schedule.clone() }))
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let schedule = self.schedule.clone();
        let locations = locations.and_then(move |location| {
            let schedule = schedule.clone();
            async move {
                schedule.before(schedule.draw(&[Fault::Delay, Fault::Busy]).as_mut()).await.map_err(failed)?;
                Ok(location)
            }
        });
        self.inner.delete_stream(locations.boxed())
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.schedule.before(self.schedule.draw(&[Fault::Delay, Fault::Busy]).as_mut()).await.map_err(failed)?;
        self.inner.copy_opts(from, to, options).await
    }
}

/// An upload in which parts, and its end, can be refused.
#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    schedule: Arc<Schedule>,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (schedule, part) = (self.schedule.clone(), self.inner.put_part(data));
        // Drawn here: parts run in any order.
        let mut drawn = schedule.draw(&[Fault::Delay, Fault::Busy]);
        async move {
            schedule.before(drawn.as_mut()).await.map_err(failed)?;
            part.await
        }
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.schedule.before(self.schedule.draw(&[Fault::Delay, Fault::Busy]).as_mut()).await.map_err(failed)?;
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use proptest::prelude::*;

    use super::*;

    /// What reads and listings through a store with faults came to: bytes, an error, or how many keys.
    async fn outcomes(seed: u64, kinds: &[Fault], length: usize) -> (Vec<String>, Faulty) {
        let clean = Objects::new("memory:", Arc::new(InMemory::new()));
        let bytes: Vec<u8> = (0..length).map(|i| (i * i) as u8).collect();
        let object = clean.put("a", bytes.clone()).await.expect("put");
        let (objects, faulty) = Faulty::between(&clean, seed, 0.5, kinds);
        let mut outcomes = Vec::new();
        for _ in 0..6 {
            outcomes.push(match objects.get_verified(&object).await {
                Ok(read) => {
                    assert_eq!(read, bytes, "wrong bytes were called verified");
                    "read".to_owned()
                }
                Err(error) => error.to_string(),
            });
            outcomes.push(format!("{:?}", objects.list(10).await.map(|keys| keys.len()).map_err(|e| e.to_string())));
        }
        (outcomes, faulty)
    }

    fn in_paused_time<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(future)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_read_verified_is_right_or_an_error(seed: u64, length in 1..300_usize) {
            in_paused_time(outcomes(seed, &Fault::ALL, length));
        }
    }

    #[test]
    fn every_fault_fires_and_the_same_seed_brings_the_same() {
        for kind in Fault::ALL {
            let (first, faulty) = in_paused_time(outcomes(7, &[kind], 100));
            assert!(faulty.fired(kind) > 0, "{kind:?} never fired in {} operations", faulty.operations());
            let others = Fault::ALL.into_iter().filter(|other| *other != kind);
            assert_eq!(others.map(|other| faulty.fired(other)).sum::<u64>(), 0, "besides {kind:?}");
            let (again, _) = in_paused_time(outcomes(7, &[kind], 100));
            assert_eq!(first, again, "{kind:?}");
        }
    }

    #[test]
    fn resets_and_short_bodies_are_read_to_their_end() {
        for kind in [Fault::Delay, Fault::Reset, Fault::Short] {
            let (outcomes, faulty) = in_paused_time(outcomes(3, &[kind], 100));
            assert!(faulty.fired(kind) > 0);
            assert!(outcomes.iter().step_by(2).all(|outcome| outcome == "read"), "{kind:?}: {outcomes:?}");
        }
    }

    #[test]
    fn flipped_bits_and_stale_listings_show() {
        let (flipped, _) = in_paused_time(outcomes(3, &[Fault::Flipped], 100));
        assert!(flipped.iter().any(|outcome| outcome.contains("broken")), "{flipped:?}");
        let (stale, _) = in_paused_time(outcomes(3, &[Fault::Stale], 100));
        assert!(stale.iter().any(|outcome| outcome == "Ok(0)"), "{stale:?}");
    }

    #[test]
    fn a_refused_write_may_have_happened() {
        in_paused_time(async {
            let clean = Objects::new("memory:", Arc::new(InMemory::new()));
            let (objects, faulty) = Faulty::between(&clean, 1, 1.0, &[Fault::Busy]);
            for i in 0..20 {
                let error = objects.put(&format!("{i}"), &b"x"[..]).await.expect_err("refused").to_string();
                assert!(error.contains("503 SlowDown"), "{error}");
            }
            let written = clean.list(20).await.expect("a listing").len();
            assert!((1..20).contains(&written), "{written} of 20 were written");
            assert_eq!(faulty.fired(Fault::Busy), 20);
        });
    }
}
