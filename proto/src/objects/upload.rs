//! Objects that are written while their bytes are still being made: in parts, many of which are on their way at once, in
//! memory that is bounded whatever the objects' sizes. Nobody sees an object before all of it is there.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use bytes::BytesMut;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::traffic::{self, Direction};
use super::tree::{PART, PartHasher, Value, root};
use super::{Error, Objects};
use crate::v1::ObjectRef;

/// Room for parts that are on their way, which several uploads share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outgoing {
    parts: usize,
    /// As long as there are uploads.
    room: Arc<Mutex<Weak<Room>>>,
}

#[derive(Debug)]
struct Room {
    parts: Arc<Semaphore>,
    /// Buffers that can be used again: the system takes longer to give new pages than a part takes to fill.
    free: Mutex<Vec<BytesMut>>,
}

impl Outgoing {
    /// For so many bytes, and one part at least.
    pub fn new(memory: usize) -> Self {
        Self { parts: (memory / PART).max(1), room: Arc::default() }
    }

    fn room(&self) -> Arc<Room> {
        let mut held = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        held.upgrade().unwrap_or_else(|| {
            let room = Room { parts: Arc::new(Semaphore::new(self.parts)), free: Mutex::default() };
            let room = Arc::new(room);
            *held = Arc::downgrade(&room);
            room
        })
    }
}

impl Room {
    /// An empty buffer for a part.
    fn buffer(&self) -> BytesMut {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| BytesMut::with_capacity(PART))
    }

    fn give_back(&self, mut buffer: BytesMut) {
        buffer.clear();
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

/// An object that is being written. Given up when it is dropped unfinished.
///
/// At most one part, of [`PART`] bytes, waits here until it is full; those that are on their way count against the room.
/// To be used within a tokio runtime.
#[derive(Debug)]
pub struct Upload {
    objects: Objects,
    key: String,
    path: Path,
    room: Arc<Room>,
    /// Without memory before the first byte.
    filling: BytesMut,
    /// Bytes that were sent.
    sent: u64,
    /// Begun when there is more than one part, by this runtime.
    multipart: Option<(Box<dyn MultipartUpload>, Handle)>,
    /// On their way, in their order.
    parts: VecDeque<AbortOnDropHandle<Result<(), Error>>>,
    /// Of all parts that were sent.
    values: Vec<Value>,
}

impl Objects {
    /// Begins to write an object; one that is there with this key is replaced when the upload is finished.
    ///
    /// # Errors
    /// A key that can't be one.
    pub fn upload(&self, key: &str, room: &Outgoing) -> Result<Upload, Error> {
        Ok(Upload {
            objects: self.clone(),
            key: key.to_owned(),
            path: self.path(key)?,
            room: room.room(),
            filling: BytesMut::new(),
            sent: 0,
            multipart: None,
            parts: VecDeque::new(),
            values: Vec::new(),
        })
    }
}

impl Upload {
    /// Takes the next bytes. Waits where there is no room for another part.
    ///
    /// # Errors
    /// What the store said to this part or one before.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            // Only now that more comes: the last part is sent when it is known to be the last.
            if self.filling.len() == PART {
                self.send().await?;
            }
            if self.filling.capacity() == 0 {
                self.filling = self.room.buffer();
            }
            let (now, later) = bytes.split_at(bytes.len().min(PART - self.filling.len()));
            self.filling.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Sends what is left and lets others see the object.
    ///
    /// # Errors
    /// What the store said; then there is no object.
    pub async fn finish(mut self) -> Result<ObjectRef, Error> {
        if self.multipart.is_none() {
            return self.objects.put(&self.key, mem::take(&mut self.filling).freeze()).await;
        }
        self.send().await?;
        while let Some(part) = self.parts.pop_front() {
            joined(part).await?;
        }
        if let Some((multipart, _)) = &mut self.multipart {
            multipart.complete().await.map_err(|error| self.objects.error(&self.key, error))?;
        }
        self.multipart = None;
        let digest = root(&self.values).to_hex().to_string();
        Ok(ObjectRef { key: mem::take(&mut self.key), size: self.sent, digest })
    }

    /// Sends the part that was filled.
    async fn send(&mut self) -> Result<(), Error> {
        while self.parts.front().is_some_and(AbortOnDropHandle::is_finished)
            && let Some(part) = self.parts.pop_front()
        {
            joined(part).await?;
        }
        let mut hasher = PartHasher::new(self.sent, false);
        hasher.update(&self.filling);
        self.values.push(hasher.finish());
        // The semaphore is never closed.
        let permit = self.room.parts.clone().acquire_owned().await.ok();
        let (multipart, _) = match &mut self.multipart {
            Some(begun) => begun,
            none => {
                let begun = self.objects.store.put_multipart(&self.path).await;
                none.insert((begun.map_err(|error| self.objects.error(&self.key, error))?, Handle::current()))
            }
        };
        let bytes = mem::take(&mut self.filling).freeze();
        self.sent += bytes.len() as u64;
        let sending = multipart.put_part(bytes.clone().into());
        let (objects, key, room) = (self.objects.clone(), self.key.clone(), self.room.clone());
        let part = async move {
            let began = Instant::now();
            sending.await.map_err(|error| objects.error(&key, error))?;
            traffic::tell(Direction::Write, bytes.len(), began);
            // A store that still holds on to the bytes keeps the buffer.
            if let Ok(buffer) = bytes.try_into_mut() {
                room.give_back(buffer);
            }
            drop(permit);
            Ok(())
        };
        self.parts.push_back(AbortOnDropHandle::new(tokio::spawn(part)));
        Ok(())
    }
}

async fn joined(part: AbortOnDropHandle<Result<(), Error>>) -> Result<(), Error> {
    part.await.unwrap_or_else(|error| Err(Error::GivenUp(error)))
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.parts.clear();
        let Some((mut multipart, runtime)) = self.multipart.take() else { return };
        let (url, key) = (self.objects.url.clone(), mem::take(&mut self.key));
        runtime.spawn(async move {
            if let Err(error) = multipart.abort().await {
                tracing::warn!(url, key, %error, "the parts of an object that was given up stay until `deltaconv gc`");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::TryStreamExt;
    use object_store::memory::InMemory;
    use proptest::prelude::*;

    use super::super::testing::{Fault, Faulty, S3Server};
    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
    }

    /// Writes `bytes` in pieces of `piece` bytes.
    async fn upload(objects: &Objects, key: &str, bytes: &[u8], piece: usize) -> Result<ObjectRef, Error> {
        let mut upload = objects.upload(key, &Outgoing::new(2 * PART))?;
        for piece in bytes.chunks(piece) {
            upload.write(piece).await?;
        }
        upload.finish().await
    }

    #[tokio::test]
    async fn objects_of_all_sizes_are_as_if_they_were_put_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = url::Url::from_directory_path(folder.path()).expect("absolute");
        let server = S3Server::start();
        for objects in [Objects::open(url.as_str()).expect("opens"), server.objects("layer")] {
            for (len, piece) in [(0, 1), (1, 1), (PART, 3000), (PART + 1, PART), (5 * PART - 7, 3 * PART)] {
                let bytes = bytes(len);
                let object = upload(&objects, "a/b", &bytes, piece).await.expect("uploads");
                assert_eq!((object.size, &object.digest), (len as u64, &crate::digest::of(&bytes)));
                assert!(objects.get_verified(&object).await.expect("verified") == bytes);
            }
        }
    }

    #[tokio::test]
    async fn nothing_is_seen_of_an_object_that_is_not_finished() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = url::Url::from_directory_path(folder.path()).expect("absolute");
        let objects = Objects::open(url.as_str()).expect("opens");
        let mut upload = objects.upload("x", &Outgoing::new(PART)).expect("a key");
        upload.write(&bytes(3 * PART)).await.expect("takes");
        let seen: Vec<(String, u64)> = objects.listing().try_collect().await.expect("lists");
        assert_eq!((seen, objects.size("x").await.is_err()), (Vec::new(), true));
        drop(upload);
        // What had been sent is removed beside us.
        let gone = async {
            while std::fs::read_dir(folder.path()).expect("a folder").next().is_some() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), gone).await.expect("nothing is left");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn whatever_goes_wrong_the_object_is_right_or_there_is_none(seed: u64, rate in 0.0..0.3) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
            runtime.expect("a runtime").block_on(async {
                let clean = Objects::new("memory:", Arc::new(InMemory::new()));
                let (faulty, _) = Faulty::between(&clean, seed, rate, &Fault::ALL);
                let bytes = bytes(3 * PART + 5);
                match upload(&faulty, "x", &bytes, PART / 2).await {
                    Ok(object) => assert!(clean.get_verified(&object).await.expect("verified") == bytes),
                    // A refusal may come after the last step was done.
                    Err(_) => if let Ok(found) = clean.get("x", u64::MAX).await { assert!(found == bytes) },
                }
            });
        }
    }
}
