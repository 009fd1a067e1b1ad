//! Objects larger than memory: read in pieces, hashed on the way, and visible only once they are whole.

use bytes::Bytes;
use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::v1::ObjectRef;
use futures::{Stream, StreamExt};
use object_store::{ObjectStoreExt, WriteMultipart};

use super::{Error, abandoned};

/// Objects are read and written in pieces of this many bytes. All parts of an upload but the last are of one size,
/// which some stores insist on.
pub(super) const PIECE_BYTES: u64 = 6 << 20;
/// Pieces that are on their way at a time, in each direction.
const IN_FLIGHT: usize = 3;
/// Hashing this much takes a fraction of a millisecond, after which other tasks of the thread get their turn.
const HASHED_AT_ONCE: usize = 256 << 10;

/// The bytes of an object in order, in pieces.
pub(super) fn read(objects: &Objects, key: &str, size: u64) -> impl Stream<Item = Result<Bytes, Error>> + use<> {
    let (objects, key) = (objects.clone(), key.to_owned());
    let starts = (0..size.div_ceil(PIECE_BYTES)).map(|i| i * PIECE_BYTES);
    let pieces =
        starts.map(move |start| read_piece(objects.clone(), key.clone(), start, size.min(start + PIECE_BYTES)));
    futures::stream::iter(pieces).buffered(IN_FLIGHT)
}

async fn read_piece(objects: Objects, key: String, start: u64, end: u64) -> Result<Bytes, Error> {
    let bytes = objects.get_range(&key, start, end).await?;
    let (expected, found) = (end - start, bytes.len() as u64);
    if found != expected {
        return Err(Error::Short { url: objects.url().to_owned(), key, start, expected, found });
    }
    Ok(bytes)
}

/// BLAKE3 that leaves the thread to others in between.
#[derive(Default)]
pub(super) struct Digest(blake3::Hasher);

impl Digest {
    pub(super) async fn update(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(HASHED_AT_ONCE) {
            self.0.update(piece);
            tokio::task::yield_now().await;
        }
    }

    pub(super) fn hex(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

/// An object that is being written. Nobody sees it before [`Self::finish`]; one that is there is replaced then.
pub(super) struct Upload<'a> {
    objects: &'a Objects,
    key: &'a str,
    parts: WriteMultipart,
    digest: Digest,
    size: u64,
}

impl<'a> Upload<'a> {
    pub(super) async fn begin(objects: &'a Objects, key: &'a str) -> Result<Self, Error> {
        abandoned::remove(objects, key).await;
        let upload = objects.store().put_multipart(&objects.path(key)?).await.map_err(|e| failed(objects, key, e))?;
        let parts = WriteMultipart::new_with_chunk_size(upload, PIECE_BYTES as usize);
        Ok(Self { objects, key, parts, digest: Digest::default(), size: 0 })
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.digest.update(bytes).await;
        // A block comes as one slice: cut it, so that parts leave memory before the next ones are buffered.
        for piece in bytes.chunks(PIECE_BYTES as usize) {
            self.parts.wait_for_capacity(IN_FLIGHT).await.map_err(|e| failed(self.objects, self.key, e))?;
            self.parts.write(piece);
        }
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Makes the object visible, and checks that the store has all of it.
    pub(super) async fn finish(self) -> Result<ObjectRef, Error> {
        let Self { objects, key, parts, digest, size } = self;
        parts.finish().await.map_err(|e| failed(objects, key, e))?;
        let found = objects.size(key).await?;
        if found != size {
            let (url, key) = (objects.url().to_owned(), key.to_owned());
            return Err(Error::WrittenSize { url, key, expected: size, found });
        }
        Ok(ObjectRef { key: key.to_owned(), size, digest: digest.hex() })
    }

    /// Gives up what was written so far.
    pub(super) async fn abort(self) {
        let (url, key) = (self.objects.url().to_owned(), self.key);
        if let Err(error) = self.parts.abort().await {
            tracing::warn!(%url, key, %error, "an unfinished upload stays behind");
        }
    }

    /// [`Self::finish`] after success, [`Self::abort`] after a failure.
    pub(super) async fn end<T>(self, written: Result<T, Error>) -> Result<(T, ObjectRef), Error> {
        match written {
            Ok(value) => Ok((value, self.finish().await?)),
            Err(error) => {
                self.abort().await;
                Err(error)
            }
        }
    }
}

fn failed(objects: &Objects, key: &str, source: object_store::Error) -> Error {
    objects::Error::Store { url: objects.url().to_owned(), key: key.to_owned(), source }.into()
}
