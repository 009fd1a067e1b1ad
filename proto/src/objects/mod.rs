//! Object stores by URL: what lies under one prefix.

mod allowed;
mod back_end;
#[cfg(any(feature = "s3", feature = "gs", feature = "az"))]
mod environment;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "s3")]
mod instance;
#[cfg(feature = "s3")]
mod open_uploads;
#[cfg(any(feature = "s3", feature = "gs", feature = "az"))]
mod options;
mod parts;
#[cfg(feature = "s3")]
mod profile;
#[cfg(feature = "network")]
mod retry;
#[cfg(feature = "s3")]
mod s3;
#[cfg(all(test, feature = "network"))]
mod test_server;
#[cfg(feature = "testing")]
pub mod testing;
pub mod traffic;
mod tree;
mod upload;
#[cfg(feature = "http")]
mod web;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use url::Url;

pub use allowed::Allowed;
pub use parts::{Part, read_exact_at, read_parts};
use traffic::Direction;
pub use tree::PART;
pub use upload::{Outgoing, Upload};

use crate::brief::Brief;
use crate::code::Code;
use crate::v1::ObjectRef;

/// What can go wrong between a process and an object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL is not one.
    #[error("{:?} is not a URL ({source}); write file:///folder", Brief(.url))]
    InvalidUrl {
        /// What was given.
        url: String,
        /// What the parser said.
        source: url::ParseError,
    },
    /// A URL whose text doesn't say where it leads.
    #[error("{:?} can't be used: {reason}; write the URL of the folder that is meant", Brief(.url))]
    UnclearUrl {
        /// What was given.
        url: String,
        /// What is unclear.
        reason: &'static str,
    },
    /// No back end serves this scheme.
    #[error(
        "no store for {}: take file:///… (a folder that all machines see), s3://, gs:// or az://; to read alone also \
         https:// or hf://", Brief(.url)
    )]
    Unsupported {
        /// What was given.
        url: String,
    },
    /// The build has no such back end.
    #[error("this build has no way to {}: build it with `--features {feature}`", Brief(.url))]
    NotBuilt {
        /// What was given.
        url: String,
        /// The cargo feature that has it.
        feature: &'static str,
    },
    /// The store can't be used as the URL and the environment have it.
    #[error("{} can't be used: {reason}", Brief(.url))]
    Configuration {
        /// What was given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A URL that names no repository in one state.
    #[error(
        "{} can't be used: {reason}; write hf://owner/name@commit with the commit's 40 digits, which `git ls-remote \
         https://huggingface.co/owner/name HEAD` shows", Brief(.url)
    )]
    Repository {
        /// What was given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The store knows nobody who may see the object.
    #[error(
        "{url}/{key} is not shown to us: give credentials that may read it (for the Hugging Face hub a token in HF_TOKEN, \
         and the repository's licence accepted); what doesn't exist may be refused like this, too"
    )]
    Refused {
        /// The prefix.
        url: String,
        /// The key below it.
        key: String,
    },
    /// Nobody is to read or write there.
    #[error("{} is not among the places that are allowed: {allowed}", Brief(.url))]
    NotAllowed {
        /// What was given.
        url: String,
        /// Those that are.
        allowed: String,
    },
    /// A URL that carries credentials would end up in logs and state.
    #[error("{} carries {what}; remove it", Brief(.url))]
    NotInUrl {
        /// The URL, without what it must not carry.
        url: String,
        /// What it must not carry.
        what: &'static str,
    },
    /// The key can't be one.
    #[error("{key:?} is no object key: {reason}")]
    InvalidKey {
        /// What was given.
        key: String,
        /// Why.
        reason: String,
    },
    /// The object isn't there.
    #[error("{url}/{key} does not exist")]
    NotFound {
        /// The prefix.
        url: String,
        /// The key below it.
        key: String,
    },
    /// The object is there, and must not be.
    #[error("{url}/{key} exists already")]
    AlreadyExists {
        /// The prefix.
        url: String,
        /// The key below it.
        key: String,
    },
    /// The object is larger than what it is meant to be could need.
    #[error("{url}/{key} has {size} bytes, and at most {limit} are expected there")]
    TooLarge {
        /// The prefix.
        url: String,
        /// The key below it.
        key: String,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The object isn't what its digest says.
    #[error("{key} is broken: expected digest {expected}, found {found}")]
    Broken {
        /// The key.
        key: String,
        /// From the manifest.
        expected: String,
        /// Digest of what was read, or what kept it from being read.
        found: String,
    },
    /// A thread that read or wrote ended early.
    #[error("reading or writing was given up: {0}")]
    GivenUp(tokio::task::JoinError),
    /// The store failed.
    #[error("{url}/{key}: {source}")]
    Store {
        /// The prefix.
        url: String,
        /// The key below it.
        key: String,
        /// What the store said.
        source: object_store::Error,
    },
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        use object_store::Error as Said;
        match self {
            Self::InvalidUrl { .. } | Self::UnclearUrl { .. } | Self::Unsupported { .. } => Code::StoreUrl,
            Self::NotBuilt { .. } => Code::NotBuilt,
            Self::Configuration { .. } => Code::StoreSettings,
            Self::Repository { .. } => Code::HubRepository,
            Self::Refused { .. }
            | Self::Store { source: Said::PermissionDenied { .. } | Said::Unauthenticated { .. }, .. } => {
                Code::AccessRefused
            }
            Self::NotAllowed { .. } => Code::StoreNotAllowed,
            Self::NotInUrl { .. } => Code::SecretInUrl,
            Self::InvalidKey { .. } => Code::ObjectKey,
            Self::NotFound { .. } => Code::NotFound,
            Self::AlreadyExists { .. } => Code::AlreadyExists,
            Self::TooLarge { .. } => Code::TooLarge,
            Self::Broken { .. } => Code::Broken,
            Self::GivenUp(_) => Code::Interrupted,
            Self::Store { .. } => Code::StoreFailed,
        }
    }

    /// Whether it says that there is no such object.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// Of an object that isn't what its digest says, before it is called broken.
const READS: usize = 3;

/// The objects under one URL: a job's prefix, a teacher's folder. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Objects {
    url: String,
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

/// An upload in parts that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenUpload {
    /// What it would become.
    pub key: String,
    /// The store's name for it.
    id: String,
}

/// The longest URL that is read.
const MAX_URL_BYTES: usize = 2048;

/// Refuses a URL that carries what must not be kept, and one that could lead elsewhere than it seems to: what begins with the
/// text of another URL and a slash lies below that one.
pub fn parse_url(url: &str) -> Result<Url, Error> {
    if let Some(reason) = unclear(url) {
        return Err(Error::UnclearUrl { url: url.into(), reason });
    }
    let parsed = Url::parse(url).map_err(|source| Error::InvalidUrl { url: url.into(), source })?;
    let carried = match &parsed {
        u if !u.username().is_empty() || u.password().is_some() => Some("credentials"),
        u if u.query().is_some() => Some("a query"),
        u if u.fragment().is_some() => Some("a fragment"),
        _ => None,
    };
    if let Some(what) = carried {
        let mut clean = parsed.clone();
        // Both only fail on URLs that can't have a user, which then have none to remove.
        let _ = clean.set_username("");
        let _ = clean.set_password(None);
        clean.set_query(None);
        clean.set_fragment(None);
        return Err(Error::NotInUrl { url: clean.into(), what });
    }
    Ok(parsed)
}

/// What of a URL parsers read otherwise than it looks: they leave control characters out, go up at `..`, and decode.
fn unclear(url: &str) -> Option<&'static str> {
    let path = url.split_once("://").map_or(url, |(_, path)| path).to_ascii_lowercase();
    let is_dots = |part: &str| matches!(part.replace("%2e", ".").as_str(), "." | "..");
    match () {
        () if url.len() > MAX_URL_BYTES => Some("it is longer than 2048 bytes"),
        () if url.contains(|c: char| c.is_control()) || url.trim() != url => {
            Some("it has control characters, or spaces around it")
        }
        () if path.contains("%2f") || path.contains('\\') || path.contains("%5c") => {
            Some("it has a backslash or an encoded slash")
        }
        () if path.split('/').any(is_dots) => Some("a part of its path is '.' or '..'"),
        () => None,
    }
}

/// Splits the URL of an object into that of its folder and its key there.
///
/// # Errors
/// [`Error::InvalidKey`] where the URL ends with no name.
pub fn folder_of(url: &str) -> Result<(&str, &str), Error> {
    match url.rsplit_once('/') {
        Some((folder, key)) if !key.is_empty() && !folder.ends_with('/') => Ok((folder, key)),
        _ => Err(Error::InvalidKey { key: url.chars().take(200).collect(), reason: "it names no file".to_owned() }),
    }
}

impl Objects {
    /// Opens the store of `url`. Reads nothing yet.
    pub fn open(url: &str) -> Result<Self, Error> {
        let parsed = parse_url(url)?;
        let (store, prefix) = back_end::open(&parsed)?;
        Ok(Self { url: url.trim_end_matches('/').into(), store, prefix })
    }

    /// The objects of `store` under its root; for stores that have no URL.
    pub fn new(url: impl Into<String>, store: Arc<dyn ObjectStore>) -> Self {
        Self { url: url.into(), store, prefix: Path::default() }
    }

    /// The objects below `folder` of these.
    pub fn below(&self, folder: &str) -> Result<Self, Error> {
        let prefix = self.path(folder)?;
        Ok(Self { url: format!("{}/{folder}", self.url), store: self.store.clone(), prefix })
    }

    /// The URL, without a closing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The store behind, for what this type has no words for.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The path of `key` in [`Self::store`]. Refuses keys that would leave the prefix.
    pub fn path(&self, key: &str) -> Result<Path, Error> {
        let invalid = |reason: String| Error::InvalidKey { key: key.chars().take(200).collect(), reason };
        if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(invalid("it has an empty part, or one that is '.' or '..'".into()));
        }
        let below = Path::parse(key).map_err(|e| invalid(Brief(&e).to_string()))?;
        Ok(Path::from_iter(self.prefix.parts().chain(below.parts())))
    }

    fn error(&self, key: &str, source: object_store::Error) -> Error {
        let (url, key) = (self.url.clone(), key.to_owned());
        match source {
            object_store::Error::NotFound { .. } => Error::NotFound { url, key },
            object_store::Error::AlreadyExists { .. } => Error::AlreadyExists { url, key },
            object_store::Error::Unauthenticated { .. } | object_store::Error::PermissionDenied { .. } => {
                Error::Refused { url, key }
            }
            source => Error::Store { url, key, source },
        }
    }

    /// The size of an object in bytes.
    pub async fn size(&self, key: &str) -> Result<u64, Error> {
        let meta = self.store.head(&self.path(key)?).await.map_err(|e| self.error(key, e))?;
        Ok(meta.size)
    }

    /// A whole object, if it has at most `limit` bytes.
    pub async fn get(&self, key: &str, limit: u64) -> Result<Bytes, Error> {
        let began = Instant::now();
        // Without a range: not every server gives parts of its small files.
        let found = self.store.get(&self.path(key)?).await.map_err(|e| self.error(key, e))?;
        let size = found.meta.size;
        if size > limit {
            return Err(Error::TooLarge { url: self.url.clone(), key: key.into(), size, limit });
        }
        let bytes = found.bytes().await.map_err(|e| self.error(key, e))?;
        traffic::tell(Direction::Read, bytes.len(), began);
        Ok(bytes)
    }

    /// The bytes `start..end` of an object.
    pub async fn get_range(&self, key: &str, start: u64, end: u64) -> Result<Bytes, Error> {
        if start == end {
            return Ok(Bytes::new());
        }
        let began = Instant::now();
        let bytes = self.store.get_range(&self.path(key)?, start..end).await.map_err(|e| self.error(key, e))?;
        traffic::tell(Direction::Read, bytes.len(), began);
        Ok(bytes)
    }

    /// A whole object that a manifest lists, after checking its size and digest. [`Error::Broken`] if it is missing,
    /// of another size, or altered.
    pub async fn get_verified(&self, object: &ObjectRef) -> Result<Bytes, Error> {
        let size = match self.size(&object.key).await {
            Err(Error::NotFound { .. }) => return Err(object.broken("no object".into())),
            other => other?,
        };
        if size != object.size {
            return Err(object.broken(format!("{size} bytes instead of {}", object.size)));
        }
        let mut found = String::new();
        // Bytes that were altered on their way are right the next time, and nobody has to make the object again.
        for _ in 0..READS {
            let bytes = self.get_range(&object.key, 0, size).await?;
            found = crate::digest::of(&bytes);
            if found == object.digest {
                return Ok(bytes);
            }
        }
        Err(object.broken(found))
    }

    /// Writes an object whole, or not at all; one that is there is replaced.
    pub async fn put(&self, key: &str, bytes: impl Into<Bytes>) -> Result<ObjectRef, Error> {
        let bytes = bytes.into();
        let object = ObjectRef::of(key, &bytes);
        self.put_object(&object, bytes).await?;
        Ok(object)
    }

    /// Writes the object that was described: its digest is not computed here, where that would keep others waiting.
    pub async fn put_object(&self, object: &ObjectRef, bytes: impl Into<Bytes>) -> Result<(), Error> {
        let (key, bytes, began) = (&object.key, bytes.into(), Instant::now());
        let size = bytes.len();
        self.store.put(&self.path(key)?, PutPayload::from_bytes(bytes)).await.map_err(|e| self.error(key, e))?;
        traffic::tell(Direction::Write, size, began);
        Ok(())
    }

    /// Writes an object if there is none with this key; otherwise [`Error::AlreadyExists`].
    pub async fn create(&self, key: &str, bytes: impl Into<Bytes>) -> Result<(), Error> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let payload = PutPayload::from_bytes(bytes.into());
        self.store.put_opts(&self.path(key)?, payload, options).await.map_err(|e| self.error(key, e))?;
        Ok(())
    }

    /// The keys of at most `limit` objects, in no order.
    pub async fn list(&self, limit: usize) -> Result<Vec<String>, Error> {
        self.listing().map_ok(|(key, _)| key).take(limit).try_collect().await
    }

    /// Keys and sizes of all objects, in no order.
    pub fn listing(&self) -> BoxStream<'static, Result<(String, u64), Error>> {
        let objects = self.clone();
        let found = self.store.list(Some(&self.prefix)).map(move |meta| {
            let meta = meta.map_err(|e| objects.error("", e))?;
            Ok(objects.key(&meta.location).map(|key| (key, meta.size)))
        });
        found.try_filter_map(|found| async { Ok(found) }).boxed()
    }

    /// The names of folders right below, in no order; what lies in them is not looked at.
    pub async fn folders(&self) -> Result<Vec<String>, Error> {
        let listed = self.store.list_with_delimiter(Some(&self.prefix)).await.map_err(|e| self.error("", e))?;
        Ok(listed.common_prefixes.iter().filter_map(|path| self.key(path)).collect())
    }

    /// Removes objects, many at a time, and answers with the key of each that is gone. One that was not there is passed
    /// over; one that can't be removed is an error, after which the others follow.
    pub fn remove(&self, keys: Vec<String>) -> BoxStream<'static, Result<String, Error>> {
        let paths: Result<Vec<Path>, Error> = keys.iter().map(|key| self.path(key)).collect();
        let paths = match paths {
            Ok(paths) => paths.into_iter().map(Ok),
            Err(error) => return stream::once(async { Err(error) }).boxed(),
        };
        let objects = self.clone();
        let removed = self.store.delete_stream(stream::iter(paths).boxed()).filter_map(move |removed| {
            let removed = match removed {
                Ok(path) => objects.key(&path).map(Ok),
                Err(object_store::Error::NotFound { .. }) => None,
                Err(error) => Some(Err(objects.error("", error))),
            };
            async { removed }
        });
        removed.boxed()
    }

    /// Uploads in parts to keys below these that were begun and have not ended, those included that are still going on, where
    /// a store lists them: S3. Azure forgets them after a week; a folder has them as files, which `object_store` names.
    pub async fn open_uploads(&self) -> Result<Vec<OpenUpload>, Error> {
        #[cfg(feature = "s3")]
        if let Some(url) = self.s3_url() {
            return open_uploads::OpenUploads::of(&url)?.below(&self.prefix).await;
        }
        Ok(Vec::new())
    }

    /// Drops the parts of an upload that nobody goes on with.
    pub async fn give_up(&self, upload: &OpenUpload) -> Result<(), Error> {
        #[cfg(feature = "s3")]
        if let Some(url) = self.s3_url() {
            let given_up = open_uploads::OpenUploads::of(&url)?.give_up(&self.path(&upload.key)?, &upload.id).await;
            return given_up.map_err(|e| self.error(&upload.key, e));
        }
        let (url, key) = (self.url.clone(), upload.key.clone());
        Err(Error::Store {
            url,
            key,
            source: object_store::Error::NotImplemented {
                operation: "giving up an upload".to_owned(),
                implementer: self.store.to_string(),
            },
        })
    }

    #[cfg(feature = "s3")]
    fn s3_url(&self) -> Option<Url> {
        Url::parse(&self.url).ok().filter(|url| url.scheme() == "s3")
    }

    /// The key of what lies at `path` in [`Self::store`], if that is below the prefix.
    fn key(&self, path: &Path) -> Option<String> {
        let parts = path.prefix_match(&self.prefix)?;
        Some(parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Objects) {
        let folder = tempfile::tempdir().expect("a folder");
        let url = Url::from_directory_path(folder.path()).expect("absolute");
        let objects = Objects::open(url.as_str()).expect("opens");
        (folder, objects)
    }

    #[tokio::test]
    async fn what_is_put_is_read_back_verified() {
        let (_folder, objects) = folder();
        let object = objects.put("a/b.bin", &b"hello"[..]).await.expect("put");
        assert_eq!(&objects.get_verified(&object).await.expect("verified")[..], b"hello");
        assert_eq!(objects.list(10).await.expect("list"), ["a/b.bin"]);
        let again = objects.create("a/b.bin", &b"other"[..]).await;
        assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
    }

    #[tokio::test]
    async fn what_is_removed_is_gone_and_what_is_not_there_is_passed_over() {
        let (_folder, objects) = folder();
        for key in ["a/b.bin", "a/c.bin", "d.bin"] {
            objects.put(key, &b"hello"[..]).await.expect("put");
        }
        let keys = ["a/b.bin", "a/missing.bin", "d.bin"].map(str::to_owned).to_vec();
        let removed: Vec<String> = objects.remove(keys).try_collect().await.expect("removed");
        assert_eq!(removed, ["a/b.bin", "d.bin"]);
        let left: Vec<(String, u64)> = objects.listing().try_collect().await.expect("listed");
        assert_eq!(left, [("a/c.bin".to_owned(), 5)]);
        assert_eq!(objects.folders().await.expect("listed"), ["a"]);
        assert_eq!(objects.below("none").expect("a key").folders().await.expect("listed"), Vec::<String>::new());
        let outside = objects.remove(vec!["a/c.bin".to_owned(), "../x".to_owned()]).try_next().await;
        assert!(matches!(outside, Err(Error::InvalidKey { .. })), "{outside:?}");
        assert_eq!(objects.size("a/c.bin").await.expect("still there"), 5);
    }

    #[tokio::test]
    async fn altered_truncated_and_missing_objects_are_told_apart_from_store_failures() {
        let (folder, objects) = folder();
        let object = objects.put("x.bin", &b"0123456789"[..]).await.expect("put");
        for content in [Some(&b"0123456780"[..]), Some(b"01234"), None] {
            match content {
                Some(bytes) => std::fs::write(folder.path().join("x.bin"), bytes).expect("write"),
                None => std::fs::remove_file(folder.path().join("x.bin")).expect("remove"),
            }
            let read = objects.get_verified(&object).await;
            assert!(matches!(read, Err(Error::Broken { .. })), "{read:?}");
        }
    }

    #[test]
    fn keys_stay_below_the_prefix() {
        let (_folder, objects) = folder();
        for key in ["../x", "a/../../x", "/etc/passwd", "a//b", ""] {
            assert!(objects.path(key).is_err(), "{key:?} was accepted");
        }
    }

    #[test]
    fn urls_with_secrets_or_unknown_schemes_are_refused() {
        let error = Objects::open("s3://key:secret@bucket/x").expect_err("refused").to_string();
        assert!(!error.contains("secret"), "{error}");
        assert!(matches!(Objects::open("ftp://host/x"), Err(Error::Unsupported { .. })));
        assert!(matches!(Objects::open("no url"), Err(Error::InvalidUrl { .. })));
        for url in [
            "file:///a/../b",
            "file:///a/%2E%2e/b",
            "file:///a/.\t./b",
            "s3://bucket/a%2F..%2Fb",
            "https://host/a\\..\\b",
            " file:///a",
            &format!("file:///{}", "a/".repeat(2048)),
        ] {
            let refused = Objects::open(url);
            assert!(matches!(refused, Err(Error::UnclearUrl { .. })), "{url}: {refused:?}");
        }
        assert!(Objects::open("file:///a/..b/c.%20/.d").is_ok());
        #[cfg(not(feature = "hub"))]
        assert!(matches!(Objects::open("hf://owner/name@main"), Err(Error::NotBuilt { .. })));
    }
}
