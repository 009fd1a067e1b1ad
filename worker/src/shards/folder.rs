//! Shards kept in a folder of the node, which all its workers share: each in a file that is named by its digest, and
//! verified whenever it is read.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use deltaconv_proto::digest;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::v1::ObjectRef;
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

    /// What the folder has of an object, if it has it. It counts as used now.
    pub(super) fn find(&self, object: &ObjectRef) -> Option<(Objects, ObjectRef)> {
        let file = File::open(self.file(object)?).ok()?;
        (file.metadata().ok()?.len() == object.size).then_some(())?;
        // A file that can't be marked as used is only removed earlier.
        let _ = file.set_modified(SystemTime::now());
        Some((self.objects.clone(), ObjectRef { key: object.digest.clone(), ..object.clone() }))
    }

    /// Opens what the folder has of an object.
    pub(super) fn file_of(&self, object: &ObjectRef) -> Option<File> {
        File::open(self.file(object)?).ok()
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
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            // Another worker may have removed it since.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let is_abandoned = name.ends_with(UNFINISHED) && used.elapsed().is_ok_and(|age| age > ABANDONED);
            let is_removable = is_abandoned || (digest::is_valid(&name) && used < began);
            files.push((used, metadata.len(), is_removable, path));
        }
        files.sort();
        let mut held: u64 = files.iter().map(|(_, bytes, ..)| bytes).sum();
        for (_, size, is_removable, path) in files {
            if held.saturating_add(bytes) <= self.limit {
                break;
            }
            if is_removable && fs::remove_file(&path).is_ok() {
                held -= size;
            }
        }
        Ok(held.saturating_add(bytes) <= self.limit)
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
            let file = folder.file_of(&object(bytes)).expect("there");
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
