//! Repositories of the Hugging Face hub, read-only: `hf://owner/name@commit`, and folders below.
//!
//! Files are read by ranges, as from every store, so that planning fetches headers alone. hf-hub, the hub's own crate, only
//! downloads whole files and brings some ninety others along; `object_store`'s HTTP client needs none that other stores
//! don't.

use std::env;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderValue};
use object_store::http::{HttpBuilder, HttpStore};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use serde::Deserialize;
use url::Url;

use super::Error;
use super::retry::{self, Policy, Retried};

/// Where the hub is, unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";
/// Hexadecimal digits of a commit.
const COMMIT_DIGITS: usize = 40;
/// A listing of more than this is no model's.
const MAX_LISTING_BYTES: u64 = 16 << 20;

/// Which repository, in which state.
#[derive(Debug, PartialEq, Eq)]
struct Repository {
    owner: String,
    name: String,
    commit: String,
}

/// A repository's files as a store.
#[derive(Debug)]
struct Hub {
    repository: Repository,
    files: HttpStore,
    listings: Arc<HttpStore>,
}

/// The store of an `hf://` URL, and the folder in it. Endpoint and token are those of the environment, as the hub's own
/// tools read them.
pub(super) fn open(url: &Url) -> std::result::Result<(Arc<dyn ObjectStore>, Path), Error> {
    let endpoint = env::var("HF_ENDPOINT").unwrap_or_else(|_| ENDPOINT.to_owned());
    let token = env::var("HF_TOKEN").ok().filter(|token| !token.is_empty());
    open_at(url, &endpoint, token.as_deref())
}

fn open_at(url: &Url, endpoint: &str, token: Option<&str>) -> std::result::Result<(Arc<dyn ObjectStore>, Path), Error> {
    let (repository, folder) = parse(url)?;
    let refused = |reason: String| Error::Repository { url: url.to_string(), reason };
    let mut headers = HeaderMap::new();
    if let Some(token) = token {
        // Redirects to another host go without it.
        let value = HeaderValue::from_str(&format!("Bearer {token}"));
        let mut value = value.map_err(|_| refused("HF_TOKEN has characters that no token has".to_owned()))?;
        value.set_sensitive(true);
        headers.insert("authorization", value);
    }
    let endpoint = endpoint.trim_end_matches('/');
    let options = retry::client().with_default_headers(headers).with_allow_http(endpoint.starts_with("http://"));
    let policy = Policy::default();
    let store = |path: String| {
        let builder = HttpBuilder::new().with_url(format!("{endpoint}/{path}")).with_client_options(options.clone());
        builder.with_retry(policy.requests()).build().map_err(|e| refused(e.to_string()))
    };
    let Repository { owner, name, commit } = &repository;
    let files = store(format!("{owner}/{name}/resolve/{commit}"))?;
    let listings = store(format!("api/models/{owner}/{name}/revision"))?;
    let hub = Hub { files, listings: Arc::new(listings), repository };
    Ok((Arc::new(Retried { inner: Arc::new(hub), policy }), folder))
}

/// The repository that a URL names, and the folder in it.
fn parse(url: &Url) -> std::result::Result<(Repository, Path), Error> {
    let refused = |reason: &str| Error::Repository { url: url.to_string(), reason: reason.to_owned() };
    let plain = |name: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !name.is_empty() && !name.starts_with('.') && name.chars().all(known)
    };
    let owner = url.host_str().filter(|owner| plain(owner)).ok_or_else(|| refused("it has no owner"))?;
    let path = url.path().trim_matches('/');
    let (repository, folder) = path.split_once('/').unwrap_or((path, ""));
    let (name, commit) = repository.split_once('@').ok_or_else(|| refused("it has no commit"))?;
    if !plain(name) {
        return Err(refused("it has no name"));
    }
    if commit.len() != COMMIT_DIGITS || !commit.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(refused("a branch or tag can move while workers join"));
    }
    let folder = Path::parse(folder).map_err(|_| refused("its folder is no path"))?;
    Ok((Repository { owner: owner.to_owned(), name: name.to_owned(), commit: commit.to_owned() }, folder))
}

impl fmt::Display for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Repository { owner, name, commit } = &self.repository;
        write!(f, "hf://{owner}/{name}@{commit}")
    }
}

impl Hub {
    fn read_only(&self, operation: &str) -> object_store::Error {
        object_store::Error::NotSupported {
            source: format!("{self} can only be read, and {operation} was asked").into(),
        }
    }

    /// The files of the commit. Their sizes are not among what the hub lists, and are 0.
    async fn listed(listings: Arc<HttpStore>, commit: String) -> Result<Vec<ObjectMeta>> {
        #[derive(Deserialize)]
        struct Listing {
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let wrong =
            |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic { store: "hub", source };
        let answer = listings.get(&Path::from(commit)).await?;
        if answer.meta.size > MAX_LISTING_BYTES {
            return Err(wrong(format!("the listing has {} bytes", answer.meta.size).into()));
        }
        let listing: Listing = serde_json::from_slice(&answer.bytes().await?).map_err(|e| wrong(e.into()))?;
        let meta = |sibling: Sibling| {
            let location = Path::parse(&sibling.rfilename).map_err(|e| wrong(e.into()))?;
            Ok(ObjectMeta { location, last_modified: Default::default(), size: 0, e_tag: None, version: None })
        };
        listing.siblings.into_iter().map(meta).collect()
    }
}

#[async_trait]
impl ObjectStore for Hub {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned().unwrap_or_default();
        let listing = Self::listed(self.listings.clone(), self.repository.commit.clone());
        stream::once(listing)
            .map_ok(move |files| {
                let below = files.into_iter().filter(|file| file.location.prefix_matches(&prefix));
                stream::iter(below.map(Ok).collect::<Vec<_>>())
            })
            .try_flatten()
            .boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(self.read_only("a listing by folder"))
    }

    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        Err(self.read_only("a write"))
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(self.read_only("a write"))
    }

    fn delete_stream(&self, _: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let refused = self.read_only("a deletion");
        stream::once(async { Err(refused) }).boxed()
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(self.read_only("a copy"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::Objects;
    use super::super::test_server::serve;
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn opened(endpoint: &str, folder: &str) -> Objects {
        let url = format!("hf://owner/name@{COMMIT}{folder}");
        let (store, prefix) = open_at(&Url::parse(&url).expect("a URL"), endpoint, Some("secret")).expect("opens");
        Objects { url, store, prefix }
    }

    #[tokio::test]
    async fn files_are_read_by_ranges_and_the_token_stays_with_the_hub() {
        let file = format!("/owner/name/resolve/{COMMIT}/unet/weights");
        let (elsewhere, asked_elsewhere) =
            serve(HashMap::from([("/blob".to_owned(), (200, String::new(), (0..100).collect()))]));
        let moved = (302, format!("Location: {elsewhere}/blob\r\n"), Vec::new());
        let (hub, asked) = serve(HashMap::from([(file.clone(), moved)]));
        for (folder, key) in [("", "unet/weights"), ("/unet", "weights")] {
            let objects = opened(&hub, folder);
            assert_eq!(objects.size(key).await.expect("a size"), 100);
            assert_eq!(&objects.get_range(key, 10, 13).await.expect("a part")[..], [10, 11, 12]);
        }
        let asked = asked.lock().expect("no panic");
        assert!(asked.iter().all(|(path, token)| path.ends_with(&file) && token.as_deref() == Some("Bearer secret")));
        let elsewhere = asked_elsewhere.lock().expect("no panic");
        assert_eq!(elsewhere.len(), 4);
        assert!(elsewhere.iter().all(|(_, token)| token.is_none()), "the token went to another host: {elsewhere:?}");
    }

    #[tokio::test]
    async fn what_is_missing_refused_or_written_is_told_apart() {
        let refused = format!("/owner/name/resolve/{COMMIT}/gated");
        let (hub, _) = serve(HashMap::from([(refused, (403, String::new(), Vec::new()))]));
        let objects = opened(&hub, "");
        assert!(matches!(objects.size("missing").await, Err(Error::NotFound { .. })));
        let gated = objects.size("gated").await.expect_err("refused");
        assert!(matches!(gated, Error::Refused { .. }), "{gated:?}");
        assert!(!format!("{gated} {gated:?} {objects:?}").contains("secret"));
        let written = objects.put("new", &b"x"[..]).await.expect_err("read-only");
        assert!(written.to_string().contains("can only be read"), "{written}");
    }

    #[tokio::test]
    async fn the_files_of_the_commit_are_listed() {
        let listing = br#"{"siblings": [{"rfilename": "README.md"}, {"rfilename": "unet/config.json"}]}"#;
        let path = format!("/api/models/owner/name/revision/{COMMIT}");
        let (hub, _) = serve(HashMap::from([(path, (200, String::new(), listing.to_vec()))]));
        assert_eq!(opened(&hub, "").list(10).await.expect("a listing"), ["README.md", "unet/config.json"]);
        assert_eq!(opened(&hub, "/unet").list(10).await.expect("a listing"), ["config.json"]);
    }

    #[test]
    fn a_repository_is_named_with_its_commit() {
        let parsed = |url: &str| parse(&Url::parse(url).expect("a URL"));
        let (repository, folder) = parsed(&format!("hf://Owner/na.me-1@{COMMIT}/a/b")).expect("a repository");
        assert_eq!((repository.owner.as_str(), repository.name.as_str()), ("Owner", "na.me-1"));
        assert_eq!(folder.as_ref(), "a/b");
        for url in ["hf://owner/name@main", "hf://owner/name", "hf://owner", "hf://owner/..@0123", "hf:///name@main"] {
            let error = parsed(url).expect_err(url);
            assert!(error.to_string().contains("hf://owner/name@commit"), "{error}");
        }
    }
}
