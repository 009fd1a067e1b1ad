//! What is asked for again, for how long, and what isn't.
//!
//! `object_store` makes a request again after timeouts, 408, 429, 5xx and broken connections, with back-off and jitter, and
//! never after another answer: a 403 or 404 would be the same the next time. Bodies are another matter: one that breaks goes
//! on only where the server sent an ETag, one that ends early without an error is taken for a whole one, and those of listings
//! are asked for once. And where the answer to the end of an upload in parts got lost, the store knows no such upload when it
//! is asked again. [`Retried`] closes these gaps.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::client::HttpError;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result, RetryConfig, UploadPart,
};
use tokio::time::Instant;

/// Until a connection stands.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Without a byte of the answer: longer, and the connection is taken for dead. The request's own body is sent in this time,
/// too, so that it must do for the largest object that is put whole.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);
/// Of one request with all of its body: 32 MiB come through at 37 kB/s. `object_store` would end them after 30 s, which a part
/// of that size on a line that many workers share may well need.
const WHOLE_LIMIT: Duration = Duration::from_secs(900);

/// How often, after which pauses, and for how long something is asked for again.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// Before the second attempt; each later pause is longer, and all are jittered.
    pub(super) first_pause: Duration,
    /// No pause is longer.
    pub(super) longest_pause: Duration,
    /// Attempts after the first.
    pub(super) retries: usize,
    /// No attempt starts later than this after what it repeats. Signatures hold for 5 minutes, and are not renewed.
    pub(super) within: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(15),
            retries: 10,
            within: Duration::from_secs(180),
        }
    }
}

impl Policy {
    /// For requests whose answer never came, or says to come again.
    pub(super) fn requests(&self) -> RetryConfig {
        let backoff = BackoffConfig { init_backoff: self.first_pause, max_backoff: self.longest_pause, base: 2.0 };
        RetryConfig { backoff, max_retries: self.retries, retry_timeout: self.within }
    }

    fn attempts(&self) -> Attempts {
        let pauses = ExponentialBuilder::default().with_min_delay(self.first_pause).with_max_delay(self.longest_pause);
        let pauses = pauses.with_jitter().with_max_times(self.retries).build();
        Attempts { made: 1, pauses, within: self.within, since: Instant::now() }
    }
}

/// How long requests to any store may take.
pub(super) fn client() -> ClientOptions {
    let options = ClientOptions::new().with_connect_timeout(CONNECT_LIMIT);
    options.with_read_timeout(SILENCE_LIMIT).with_timeout(WHOLE_LIMIT)
}

/// What a store said last after several attempts.
#[derive(Debug, thiserror::Error)]
#[error("given up after {attempts} attempts, the last of which said: {source}")]
struct GivenUp {
    attempts: usize,
    source: Error,
}

#[derive(Debug)]
struct Attempts {
    made: usize,
    pauses: ExponentialBackoff,
    within: Duration,
    since: Instant,
}

impl Attempts {
    /// Waits until the next attempt after this error, or returns it where none should follow.
    async fn pause_after(&mut self, error: Error) -> Result<()> {
        if !passes(&error) {
            return Err(error);
        }
        match self.pauses.next() {
            Some(pause) if self.since.elapsed() < self.within => {
                tracing::info!(attempt = self.made, reason = %error, ?pause, "asking a store again");
                self.made += 1;
                tokio::time::sleep(pause).await;
                Ok(())
            }
            _ => {
                let source = Box::new(GivenUp { attempts: self.made, source: error });
                Err(Error::Generic { store: "object store", source })
            }
        }
    }
}

/// Whether the same request may succeed later. `object_store` hands out a connection's error as it is, or as a listing's, only
/// where it makes no further attempt of its own; below those of requests that it has repeated it lies deeper.
fn passes(error: &Error) -> bool {
    use io::ErrorKind::*;
    let Error::Generic { source, .. } = error else { return false };
    if source.is::<HttpError>() || source.source().is_some_and(|source| source.is::<HttpError>()) {
        return true;
    }
    let kind = source.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(
        kind,
        Some(BrokenPipe | ConnectionAborted | ConnectionReset | Interrupted | ResourceBusy | TimedOut | UnexpectedEof)
    )
}

/// A store whose bodies go on where they broke, and come whole or as an error; listings are begun again.
#[derive(Debug)]
pub(super) struct Retried {
    pub(super) inner: Arc<dyn ObjectStore>,
    pub(super) policy: Policy,
}

impl fmt::Display for Retried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// A body on its way.
struct Body {
    store: Arc<dyn ObjectStore>,
    location: Path,
    options: GetOptions,
    meta: ObjectMeta,
    /// What is still to come.
    rest: Range<u64>,
    stream: BoxStream<'static, Result<Bytes>>,
    attempts: Attempts,
}

impl Body {
    /// The next bytes, and the body behind them.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        loop {
            let missing = self.rest.end - self.rest.start;
            let broken = match self.stream.try_next().await {
                Ok(Some(bytes)) if bytes.len() as u64 <= missing => {
                    self.rest.start += bytes.len() as u64;
                    self.attempts.since = Instant::now();
                    return Ok(Some((bytes, self)));
                }
                Ok(Some(bytes)) => {
                    let more = bytes.len() as u64 - missing;
                    return Err(of_body(io::ErrorKind::InvalidData, format!("the body has {more} bytes too many")));
                }
                Ok(None) if missing == 0 => return Ok(None),
                Ok(None) => {
                    of_body(io::ErrorKind::UnexpectedEof, format!("the body ended {missing} bytes before its end"))
                }
                Err(error) => error,
            };
            self.attempts.pause_after(broken).await?;
            self.stream = self.rest().await.unwrap_or_else(|error| stream::once(async { Err(error) }).boxed());
        }
    }

    /// What is still to come, asked for again.
    async fn rest(&mut self) -> Result<BoxStream<'static, Result<Bytes>>> {
        let mut options = self.options.clone();
        options.range = Some(GetRange::Bounded(self.rest.clone()));
        // Not every server looks at the condition, so that the answer is compared, too.
        options.if_match = self.meta.e_tag.clone().or(options.if_match);
        let again = self.store.get_opts(&self.location, options).await?;
        let same = |meta: &ObjectMeta| (meta.size, meta.last_modified, meta.e_tag.clone());
        if same(&again.meta) != same(&self.meta) || again.range != self.rest {
            let changed = "the object changed while it was read".to_owned();
            return Err(of_body(io::ErrorKind::InvalidData, changed));
        }
        Ok(again.into_stream())
    }
}

/// A listing on its way.
struct Listing {
    store: Arc<dyn ObjectStore>,
    prefix: Option<Path>,
    stream: BoxStream<'static, Result<ObjectMeta>>,
    is_begun: bool,
    attempts: Attempts,
}

impl Listing {
    async fn next(mut self) -> Result<Option<(ObjectMeta, Self)>> {
        loop {
            match self.stream.try_next().await {
                Ok(None) => return Ok(None),
                Ok(Some(meta)) => {
                    self.is_begun = true;
                    return Ok(Some((meta, self)));
                }
                // Stores list in different orders: what was listed already can't be told from what comes again.
                Err(error) if self.is_begun => return Err(error),
                Err(error) => {
                    self.attempts.pause_after(error).await?;
                    self.stream = self.store.list(self.prefix.as_ref());
                }
            }
        }
    }
}

/// An upload in parts, whose end may have come through when the store says that there is no such upload.
#[derive(Debug)]
struct Ending {
    upload: Box<dyn MultipartUpload>,
    store: Arc<dyn ObjectStore>,
    location: Path,
    /// Bytes of all parts.
    size: u64,
}

#[async_trait]
impl MultipartUpload for Ending {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.size += data.content_length() as u64;
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        match self.upload.complete().await {
            // S3 says so, and s3s that nobody may write to it.
            Err(error @ (Error::NotFound { .. } | Error::PermissionDenied { .. })) => {
                match self.store.head(&self.location).await {
                    // Whoever writes this key writes these bytes, so that the size tells whether they are there.
                    Ok(ObjectMeta { size, e_tag, version, .. }) if size == self.size => {
                        Ok(PutResult { e_tag, version, extensions: Default::default() })
                    }
                    _ => Err(error),
                }
            }
            ended => ended,
        }
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}

fn of_body(kind: io::ErrorKind, what: String) -> Error {
    Error::Generic { store: "object store", source: Box::new(io::Error::new(kind, what)) }
}

#[async_trait]
impl ObjectStore for Retried {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let mut attempts = self.policy.attempts();
        let found = loop {
            match self.inner.get_opts(location, options.clone()).await {
                Ok(found) => break found,
                Err(error) => attempts.pause_after(error).await?,
            }
        };
        let head = options.head;
        match found.payload {
            GetResultPayload::Stream(stream) if !head => {
                let (meta, rest) = (found.meta.clone(), found.range.clone());
                let (store, location) = (self.inner.clone(), location.clone());
                let body = Body { store, location, options, meta, rest, stream, attempts };
                let payload = GetResultPayload::Stream(stream::try_unfold(body, Body::next).boxed());
                Ok(GetResult { payload, ..found })
            }
            payload => Ok(GetResult { payload, ..found }),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, stream) = (self.inner.clone(), self.inner.list(prefix));
        let attempts = self.policy.attempts();
        let listing = Listing { store, prefix: prefix.cloned(), stream, is_begun: false, attempts };
        stream::try_unfold(listing, Listing::next).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(Ending { upload, store: self.inner.clone(), location: location.clone(), size: 0 }))
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests;
