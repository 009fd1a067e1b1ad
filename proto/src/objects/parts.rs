//! Objects that a manifest lists, as a stream of parts: many are on their way at once, in memory that is bounded whatever
//! the objects' sizes, and every object is verified before its last part is given.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use futures::{Stream, StreamExt, TryStreamExt};
use object_store::{GetOptions, GetResult, GetResultPayload};
use tokio_util::task::AbortOnDropHandle;

use super::traffic::{self, Direction};
use super::tree::{PART, PartHasher, Value, root};
use super::{Error, Objects};
use crate::v1::ObjectRef;

/// Of a file, read and hashed while it is still in a processor's cache.
const AT_ONCE: usize = 512 << 10;

/// A piece of an object.
#[derive(Debug)]
pub struct Part<B> {
    /// Which of the objects.
    pub object: usize,
    /// Its first byte there, a multiple of [`PART`].
    pub start: u64,
    /// [`PART`] bytes, or what is left of the object.
    pub bytes: B,
    /// Whether it is the object's last one: then all its parts together have been verified, and not before.
    pub is_last: bool,
}

/// The parts of `objects`, in their order, each of the store beside it, and each read into what `allocate` gives for its
/// number of bytes.
///
/// At most `memory` bytes, and one part at least, are being read or wait to be taken. To be polled within a tokio runtime.
///
/// # Errors
/// [`Error::Broken`] for an object that is missing, of another size, or altered. What comes behind an error is of no use.
pub fn read_parts<I, B, A>(
    objects: I,
    memory: usize,
    allocate: A,
) -> impl Stream<Item = Result<Part<B>, Error>> + Send + use<I, B, A>
where
    I: IntoIterator<Item = (Objects, ObjectRef), IntoIter: Send>,
    B: AsMut<[u8]> + Send + 'static,
    A: Fn(usize) -> B + Send + Sync + 'static,
{
    let allocate = Arc::new(allocate);
    let parts = objects.into_iter().enumerate().flat_map(|(index, source)| {
        let (size, source) = (source.1.size, Arc::new(source));
        (0..size.max(1)).step_by(PART).map(move |start| (index, source.clone(), start))
    });
    let reads = futures::stream::iter(parts).map(move |(index, source, start)| {
        let allocate = allocate.clone();
        let read = async move {
            let (store, object) = &*source;
            let (bytes, value) = store.read_part(object, start, &*allocate).await?;
            let is_last = start + PART as u64 >= object.size;
            Ok((Part { object: index, start, bytes, is_last }, value, source))
        };
        AbortOnDropHandle::new(tokio::spawn(read))
    });
    let mut values = Vec::new();
    let in_flight = (memory / PART).max(1);
    let reads = reads.buffered(in_flight).map(|joined| joined.unwrap_or_else(|error| Err(Error::GivenUp(error))));
    reads.and_then(move |(part, value, source)| {
        values.push(value);
        let verified = if part.is_last { verify(&source.1, &std::mem::take(&mut values)) } else { Ok(()) };
        futures::future::ready(verified.map(|()| part))
    })
}

impl Objects {
    /// Reads one part, and gives its value in the object's tree.
    async fn read_part<B, A>(&self, object: &ObjectRef, start: u64, allocate: &A) -> Result<(B, Value), Error>
    where
        B: AsMut<[u8]> + Send + 'static,
        A: Fn(usize) -> B,
    {
        let (key, began) = (&object.key, Instant::now());
        let range = start..object.size.min(start + PART as u64);
        // A range of nothing is no range.
        let options = match range.is_empty() {
            true => GetOptions::default(),
            false => GetOptions { range: Some(range.clone().into()), ..GetOptions::default() },
        };
        let found = match self.store().get_opts(&self.path(key)?, options).await {
            Ok(found) if found.meta.size == object.size => found,
            Ok(found) => return Err(object.broken(format!("{} bytes instead of {}", found.meta.size, object.size))),
            Err(object_store::Error::NotFound { .. }) => return Err(object.broken("no object".to_owned())),
            Err(error) => return Err(self.unreadable(object, error).await),
        };
        let buffer = allocate((range.end - range.start) as usize);
        let hasher = PartHasher::new(start, range.end - range.start == object.size);
        let filled = fill(buffer, hasher, found).await.map_err(|error| self.error(key, error))?;
        traffic::tell(Direction::Read, (range.end - range.start) as usize, began);
        Ok(filled)
    }

    /// What to say of an object whose part can't be had: that it has another size, if it has.
    async fn unreadable(&self, object: &ObjectRef, error: object_store::Error) -> Error {
        match self.size(&object.key).await {
            Ok(size) if size != object.size => object.broken(format!("{size} bytes instead of {}", object.size)),
            _ => self.error(&object.key, error),
        }
    }
}

impl ObjectRef {
    /// It isn't what the manifest says.
    pub(super) fn broken(&self, found: String) -> Error {
        Error::Broken { key: self.key.clone(), expected: self.digest.clone(), found }
    }
}

/// Fills `buffer` with what was found, which must be as long, and hashes it.
async fn fill<B>(mut buffer: B, mut hasher: PartHasher, found: GetResult) -> object_store::Result<(B, Value)>
where
    B: AsMut<[u8]> + Send + 'static,
{
    let mut start = found.range.start;
    match found.payload {
        GetResultPayload::File(file, path) => {
            let read = tokio::task::spawn_blocking(move || {
                for bytes in buffer.as_mut().chunks_mut(AT_ONCE) {
                    read_exact_at(&file, bytes, start)?;
                    hasher.update(bytes);
                    start += bytes.len() as u64;
                }
                io::Result::Ok((buffer, hasher.finish()))
            });
            let failed = |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic {
                store: "LocalFileSystem",
                source: format!("{}: {source}", path.display()).into(),
            };
            read.await.map_err(|e| failed(e.into()))?.map_err(|e| failed(e.into()))
        }
        GetResultPayload::Stream(mut chunks) => {
            let mut filled = 0;
            while let Some(chunk) = chunks.try_next().await? {
                if let Some(space) = buffer.as_mut().get_mut(filled..filled + chunk.len()) {
                    space.copy_from_slice(&chunk);
                }
                filled += chunk.len();
            }
            let expected = buffer.as_mut().len();
            let failed = |source| object_store::Error::Generic { store: "a store", source };
            if filled != expected {
                return Err(failed(format!("a body of {filled} bytes instead of {expected}").into()));
            }
            let hashed = tokio::task::spawn_blocking(move || {
                hasher.update(buffer.as_mut());
                (buffer, hasher.finish())
            });
            hashed.await.map_err(|e| failed(e.into()))
        }
    }
}

/// Reads exactly as many bytes as fit, from byte `start` of a file on.
///
/// # Errors
/// A file that ends before, or can't be read.
#[cfg(unix)]
pub fn read_exact_at(file: &std::fs::File, buffer: &mut [u8], start: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, start)
}

/// Reads exactly as many bytes as fit, from byte `start` of a file on.
///
/// # Errors
/// A file that ends before, or can't be read.
#[cfg(not(unix))]
pub fn read_exact_at(mut file: &std::fs::File, buffer: &mut [u8], start: u64) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(buffer)
}

/// Checks an object's digest by the values of all its parts.
fn verify(object: &ObjectRef, values: &[Value]) -> Result<(), Error> {
    let found = root(values).to_hex();
    if found.as_str() == object.digest {
        return Ok(());
    }
    Err(object.broken(found.to_string()))
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use proptest::prelude::*;

    use super::super::testing::{Fault, Faulty, S3Server};
    use super::*;

    fn folder() -> (tempfile::TempDir, Objects) {
        let folder = tempfile::tempdir().expect("a folder");
        let url = url::Url::from_directory_path(folder.path()).expect("absolute");
        let objects = Objects::open(url.as_str()).expect("opens");
        (folder, objects)
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
    }

    fn of(store: &Objects, objects: &[ObjectRef]) -> Vec<(Objects, ObjectRef)> {
        objects.iter().map(|object| (store.clone(), object.clone())).collect()
    }

    /// The objects as they were read, or the first error.
    async fn read(objects: &Objects, refs: &[ObjectRef], memory: usize) -> Result<Vec<Vec<u8>>, Error> {
        let mut parts = std::pin::pin!(read_parts(of(objects, refs), memory, |len| vec![0; len]));
        let mut found = vec![Vec::new(); refs.len()];
        while let Some(part) = parts.try_next().await? {
            assert_eq!(part.start as usize, found[part.object].len());
            found[part.object].extend(part.bytes);
            assert_eq!(part.is_last, found[part.object].len() as u64 == refs[part.object].size);
        }
        Ok(found)
    }

    #[tokio::test]
    async fn parts_of_all_sizes_are_read_in_order_and_verified() {
        let (_folder, objects) = folder();
        let mut refs = Vec::new();
        let lengths = [1, 5 * PART, 0, PART, PART + 1, 3000, 3 * PART - 7];
        for (index, len) in lengths.into_iter().enumerate() {
            refs.push(objects.put(&format!("{index}"), bytes(len)).await.expect("put"));
        }
        for memory in [1, 4 * PART] {
            let found = read(&objects, &refs, memory).await.expect("reads");
            assert!(found.iter().zip(lengths).all(|(found, len)| *found == bytes(len)));
        }
    }

    #[tokio::test]
    async fn no_last_part_is_given_of_an_object_that_is_not_what_the_manifest_says() {
        let (folder, objects) = folder();
        let good = objects.put("good", bytes(100)).await.expect("put");
        let object = objects.put("x", bytes(2 * PART + 5)).await.expect("put");
        let file = folder.path().join("x");
        let altered = |at: usize| {
            let mut altered = bytes(2 * PART + 5);
            altered[at] ^= 1;
            Some(altered)
        };
        for content in [altered(3), altered(2 * PART - 1), altered(2 * PART + 4), Some(bytes(2 * PART)), None] {
            match &content {
                Some(bytes) => std::fs::write(&file, bytes).expect("write"),
                None => std::fs::remove_file(&file).expect("remove"),
            }
            let mut parts =
                std::pin::pin!(read_parts(of(&objects, &[good.clone(), object.clone()]), 8 * PART, |len| vec![0; len]));
            let mut last = Vec::new();
            let error = loop {
                match parts.try_next().await {
                    Ok(Some(part)) if part.is_last => last.push(part.object),
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("taken"),
                    Err(error) => break error,
                }
            };
            assert!(matches!(&error, Error::Broken { key, .. } if key == "x"), "{error}");
            assert_eq!(last, [0]);
        }
    }

    #[tokio::test]
    async fn parts_come_from_s3_as_from_a_folder() {
        let server = S3Server::start();
        let objects = server.objects("layer");
        let lengths = [PART + 3000, 17, 2 * PART];
        let mut refs = Vec::new();
        for (index, len) in lengths.into_iter().enumerate() {
            refs.push(objects.put(&format!("{index}"), bytes(len)).await.expect("put"));
        }
        let found = read(&objects, &refs, 4 * PART).await.expect("reads");
        assert!(found.iter().zip(lengths).all(|(found, len)| *found == bytes(len)));
        let longer = ObjectRef { size: refs[1].size + 1, ..refs[1].clone() };
        let error = read(&objects, &[longer], PART).await.expect_err("refused").to_string();
        assert!(error.contains("17 bytes instead of 18"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn whatever_goes_wrong_the_parts_are_right_or_an_error_is_given(seed: u64, rate in 0.0..0.3) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
            runtime.expect("a runtime").block_on(async {
                let clean = Objects::new("memory:", Arc::new(InMemory::new()));
                let lengths = [PART + 1, 5, 2 * PART + 9];
                let mut refs = Vec::new();
                for (index, len) in lengths.into_iter().enumerate() {
                    refs.push(clean.put(&format!("{index}"), bytes(len)).await.expect("put"));
                }
                let (faulty, _) = Faulty::between(&clean, seed, rate, &Fault::ALL);
                if let Ok(found) = read(&faulty, &refs, 3 * PART).await {
                    assert!(found.iter().zip(lengths).all(|(found, len)| *found == bytes(len)));
                }
            });
        }
    }

    #[tokio::test]
    async fn no_more_is_in_memory_than_allowed() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static LIVE: AtomicUsize = AtomicUsize::new(0);
        struct Counted(Vec<u8>);
        impl AsMut<[u8]> for Counted {
            fn as_mut(&mut self) -> &mut [u8] {
                &mut self.0
            }
        }
        impl Drop for Counted {
            fn drop(&mut self) {
                LIVE.fetch_sub(self.0.len(), Ordering::Relaxed);
            }
        }
        let (_folder, objects) = folder();
        let object = objects.put("x", bytes(12 * PART)).await.expect("put");
        let allocate = |len| {
            LIVE.fetch_add(len, Ordering::Relaxed);
            Counted(vec![0; len])
        };
        let mut parts = std::pin::pin!(read_parts(of(&objects, &[object]), 3 * PART, allocate));
        let mut most = 0;
        while let Some(part) = parts.try_next().await.expect("reads") {
            // The one that was taken, and those that are on their way.
            most = most.max(LIVE.load(Ordering::Relaxed));
            drop(part);
        }
        assert!((2 * PART..=4 * PART).contains(&most), "{most}");
    }
}
