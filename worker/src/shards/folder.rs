//! Shards kept in a folder of the node, which all its workers share: each in a file that is named by its digest, and
//! verified whenever it is read.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use deltaconv_proto::digest;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::v1::{NodeCache, ObjectRef};
use url::Url;

/// Files that are being written end like this.
const UNFINISHED: &str = ".unfinished";
/// Unfinished files of this age are nobody's any more.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// A folder with a limit to what it holds.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    objects: Objects,
    limit: u64,
}

/// A file of the folder, whatever it is.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Listed {
    used: SystemTime,
    bytes: u64,
    name: String,
}

/// A file that is being written. Removed when it is dropped unfinished.
#[derive(Debug)]
pub(super) struct Writing {
    file: File,
    unfinished: PathBuf,
    finished: PathBuf,
}

impl Folder {
    /// Makes the folder, if there is none.
    pub(crate) fn open(path: &Path, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let path = path.canonicalize()?;
        let url = Url::from_directory_path(&path).map_err(|()| io::Error::other("the path is not absolute"))?;
        let objects = Objects::open(url.as_str()).map_err(io::Error::other)?;
        Ok(Self { path, objects, limit })
    }

    /// Opens what the folder has of an object, if it has it. It counts as used now.
    pub(super) fn open_file(&self, object: &ObjectRef) -> Option<File> {
        let file = File::open(self.file(object)?).ok()?;
        (file.metadata().ok()?.len() == object.size).then_some(())?;
        // A file that can't be marked as used is only removed earlier.
        let _ = file.set_modified(SystemTime::now());
        Some(file)
    }

    /// Where to read an object in the folder, if it has it. It counts as used now.
    pub(super) fn find(&self, object: &ObjectRef) -> Option<(Objects, ObjectRef)> {
        self.open_file(object)?;
        Some((self.objects.clone(), ObjectRef { key: object.digest.clone(), ..object.clone() }))
    }

    /// What the folder holds, as the coordinator is told: of what was used last, as much as a statement takes.
    pub(super) fn statement(&self) -> io::Result<NodeCache> {
        let mut files = self.files()?;
        files.sort_by_key(|file| Reverse(file.used));
        let prefixes = files.iter().filter_map(|file| digest::prefix(&file.name));
        let mut shards: Vec<u64> = prefixes.take(digest::MAX_STATED).collect();
        // The same for the same shards, in whatever order they were used.
        shards.sort_unstable();
        let bytes: Vec<u8> = shards.iter().flat_map(|shard| shard.to_le_bytes()).collect();
        let version = digest::prefix(&digest::of(&bytes)).filter(|_| !shards.is_empty()).map_or(0, |it| it.max(1));
        Ok(NodeCache { version, shards })
    }

    /// Removes an object that turned out to be broken.
    pub(super) fn remove(&self, object: &ObjectRef) {
        if let Some(file) = self.file(object)
            && let Err(error) = fs::remove_file(&file)
        {
            tracing::warn!(file = %file.display(), %error, "a broken file of the cache stays");
        }
    }

    /// Begins to write an object, after removing what was used least recently and not since `began` where there is no
    /// room. `None` where that isn't enough.
    pub(super) fn begin(&self, object: &ObjectRef, began: SystemTime) -> io::Result<Option<Writing>> {
        let Some(finished) = self.file(object) else { return Ok(None) };
        if !self.make_room(object.size, began)? {
            return Ok(None);
        }
        let file = tempfile::Builder::new().prefix(&object.digest).suffix(UNFINISHED).tempfile_in(&self.path)?;
        let (file, unfinished) = file.keep().map_err(|error| error.error)?;
        Ok(Some(Writing { file, unfinished, finished }))
    }

    /// Only what has the form of a digest becomes a file's name.
    fn file(&self, object: &ObjectRef) -> Option<PathBuf> {
        digest::is_valid(&object.digest).then(|| self.path.join(&object.digest))
    }

    fn make_room(&self, bytes: u64, began: SystemTime) -> io::Result<bool> {
        let mut files = self.files()?;
        files.sort();
        let mut held: u64 = files.iter().map(|file| file.bytes).sum();
        for file in files {
            if held.saturating_add(bytes) <= self.limit {
                break;
            }
            if file.is_removable(began) && fs::remove_file(self.path.join(&file.name)).is_ok() {
                held -= file.bytes;
            }
        }
        Ok(held.saturating_add(bytes) <= self.limit)
    }

    fn files(&self) -> io::Result<Vec<Listed>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            // Another worker may have removed it since.
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            files.push(Listed { used, bytes: metadata.len(), name: entry.file_name().to_string_lossy().into_owned() });
        }
        Ok(files)
    }
}

impl Listed {
    fn is_removable(&self, began: SystemTime) -> bool {
        let is_abandoned = self.name.ends_with(UNFINISHED) && self.used.elapsed().is_ok_and(|age| age > ABANDONED);
        is_abandoned || (digest::is_valid(&self.name) && self.used < began)
    }
}

impl Writing {
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Lets others find the file.
    pub(super) fn finish(self) -> io::Result<File> {
        let file = File::open(&self.unfinished)?;
        fs::rename(&self.unfinished, &self.finished)?;
        Ok(file)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // Gone already where it was finished.
        let _ = fs::remove_file(&self.unfinished);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(bytes: &[u8]) -> ObjectRef {
        ObjectRef { key: "k".into(), size: bytes.len() as u64, digest: digest::of(bytes) }
    }

    fn put(folder: &Folder, bytes: &[u8], began: SystemTime) -> bool {
        let Some(mut writing) = folder.begin(&object(bytes), began).expect("begins") else { return false };
        writing.write(bytes).expect("writes");
        writing.finish().expect("finishes");
        true
    }

    #[test]
    fn what_was_used_least_recently_makes_room_but_not_what_this_task_uses() {
        let path = tempfile::tempdir().expect("a folder");
        let folder = Folder::open(path.path(), 10).expect("opens");
        let (a, b, c) = (&b"aaaa"[..], &b"bbbb"[..], &b"cccc"[..]);
        let old = SystemTime::now() - Duration::from_secs(60);
        assert!(put(&folder, a, old) && put(&folder, b, old));
        let used = |bytes, seconds| {
            let file = folder.open_file(&object(bytes)).expect("there");
            file.set_modified(old + Duration::from_secs(seconds)).expect("set");
        };
        used(a, 2);
        used(b, 1);
        assert!(!put(&folder, c, old), "both have been used since the task began");
        assert!(put(&folder, c, old + Duration::from_secs(30)));
        let held = [a, b, c].map(|bytes| folder.find(&object(bytes)).is_some());
        assert_eq!(held, [true, false, true]);
        // What was found counts as used.
        assert!(!put(&folder, b, old + Duration::from_secs(50)));
        assert!(!put(&folder, &[0; 11], SystemTime::now() + Duration::from_secs(60)));
    }

    #[test]
    fn what_is_stated_is_what_is_held_and_was_used_last() {
        let path = tempfile::tempdir().expect("a folder");
        let folder = Folder::open(path.path(), 1 << 20).expect("opens");
        let statement = || folder.statement().expect("listed");
        assert_eq!(statement(), NodeCache::default());
        let (a, b) = (&b"aaaa"[..], &b"bbbb"[..]);
        let prefix = |bytes| digest::prefix(&digest::of(bytes)).expect("a digest");
        assert!(put(&folder, a, SystemTime::now()));
        let of_one = statement();
        assert_eq!((of_one.version != 0, of_one.shards), (true, vec![prefix(a)]));
        fs::write(path.path().join("foreign"), b"").expect("writes");
        let writing = folder.begin(&object(b), SystemTime::now()).expect("begins").expect("fits");
        assert_eq!(statement().version, of_one.version);
        drop(writing);
        assert!(put(&folder, b, SystemTime::now()));
        let of_both = statement();
        assert_ne!(of_both.version, of_one.version);
        let later = SystemTime::now() + Duration::from_secs(60);
        folder.open_file(&object(a)).expect("there").set_modified(later).expect("set");
        assert_eq!(statement(), of_both);

        for other in 0..digest::MAX_STATED {
            File::create(path.path().join(digest::of(&other.to_le_bytes()))).expect("made");
        }
        let as_many = statement().shards;
        assert_eq!(as_many.len(), digest::MAX_STATED);
        assert!(as_many.contains(&prefix(a)) && !as_many.contains(&prefix(b)));
    }

    #[test]
    fn unfinished_and_shortened_files_are_not_found() {
        let path = tempfile::tempdir().expect("a folder");
        let folder = Folder::open(path.path(), 100).expect("opens");
        let began = SystemTime::now();
        let mut writing = folder.begin(&object(b"abc"), began).expect("begins").expect("fits");
        writing.write(b"ab").expect("writes");
        assert!(folder.find(&object(b"abc")).is_none());
        drop(writing);
        assert_eq!(fs::read_dir(path.path()).expect("a folder").count(), 0);
        assert!(put(&folder, b"abc", began));
        fs::write(path.path().join(digest::of(b"abc")), b"ab").expect("writes");
        assert!(folder.find(&object(b"abc")).is_none());
        let foreign = ObjectRef { digest: "../x".into(), ..object(b"abc") };
        assert!(folder.begin(&foreign, began).expect("no failure").is_none());
    }
}
