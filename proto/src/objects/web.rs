//! Folders on web servers, read-only: `https://host/folder`.
//!
//! Files are read by ranges, which a server must support. Few give listings of their folders: only those that speak WebDAV.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::http::{HttpBuilder, HttpStore};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, RetryConfig,
};
use url::{Position, Url};

use super::retry::{self, Policy};

/// Of a request for a listing: servers without say so by 501, too, which is repeated as other 5xx are.
const LISTING_RETRIES: usize = 2;

/// A server's files as a store.
#[derive(Debug)]
pub(super) struct Web {
    server: Arc<str>,
    files: HttpStore,
    listings: HttpStore,
}

/// The server of an `http://` or `https://` URL.
pub(super) fn open(url: &Url, policy: &Policy) -> Result<Web> {
    let server = &url[..Position::BeforePath];
    let builder = HttpBuilder::new().with_url(server);
    let builder = builder.with_client_options(retry::client().with_allow_http(url.scheme() == "http"));
    let listing = RetryConfig { max_retries: LISTING_RETRIES.min(policy.retries), ..policy.requests() };
    Ok(Web {
        server: server.into(),
        listings: builder.clone().with_retry(listing).build()?,
        files: builder.with_retry(policy.requests()).build()?,
    })
}

impl fmt::Display for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.server)
    }
}

impl Web {
    fn read_only(&self, operation: &str) -> Error {
        Error::NotSupported { source: format!("{self} can only be read, and {operation} was asked").into() }
    }
}

/// What a listing that can't be had is called.
fn without_listing(server: &str, reason: &str) -> Error {
    let what = format!(
        "{server} gives no listing of the folder ({reason}), which needs WebDAV's PROPFIND; copy the files to a folder or a \
         bucket and name that"
    );
    Error::NotSupported { source: what.into() }
}

#[async_trait]
impl ObjectStore for Web {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let server = self.server.clone();
        let refused = move |e: Error| without_listing(&server, &e.to_string());
        let server = self.server.clone();
        // A server that knows no PROPFIND may well say that there is no such folder, which would be an empty one.
        let mut files = self.listings.list(prefix).map_err(refused).peekable();
        stream::once(async move {
            match std::pin::Pin::new(&mut files).peek().await {
                Some(_) => Ok(files),
                None => Err(without_listing(&server, "the answer has no files")),
            }
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

    use super::super::test_server::{Asked, serve};
    use super::super::{Error, Objects};

    fn served() -> (Objects, Asked) {
        let listing = "<D:multistatus xmlns:D=\"DAV:\"><D:response><D:href>/models/a/unet/config.json</D:href>\
                       <D:propstat><D:prop><D:getlastmodified>Thu, 01 Jan 2026 00:00:00 GMT</D:getlastmodified>\
                       <D:getcontentlength>9</D:getcontentlength><D:resourcetype/></D:prop>\
                       <D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response></D:multistatus>";
        let (server, asked) = serve(HashMap::from([
            ("/models/a/weights".to_owned(), (200, String::new(), (0..100).collect())),
            ("/models/a/private".to_owned(), (403, String::new(), Vec::new())),
            ("/models/a".to_owned(), (207, String::new(), listing.into())),
            ("/models/plain".to_owned(), (405, String::new(), Vec::new())),
        ]));
        (Objects::open(&format!("{server}/models/a")).expect("opens"), asked)
    }

    #[tokio::test]
    async fn files_are_read_by_ranges() {
        let (objects, asked) = served();
        assert_eq!(objects.size("weights").await.expect("a size"), 100);
        assert_eq!(&objects.get_range("weights", 10, 13).await.expect("a part")[..], [10, 11, 12]);
        assert_eq!(objects.get("weights", 100).await.expect("all").len(), 100);
        assert!(matches!(objects.size("missing").await, Err(Error::NotFound { .. })));
        assert!(matches!(objects.size("private").await, Err(Error::Refused { .. })));
        assert_eq!(asked.lock().expect("no panic").len(), 5);
    }

    #[tokio::test]
    async fn writes_are_refused_before_any_request() {
        let (objects, asked) = served();
        for error in [
            objects.put("new", &b"x"[..]).await.map(drop).expect_err("read-only"),
            objects.create("new", &b"x"[..]).await.expect_err("read-only"),
        ] {
            assert!(error.to_string().contains("can only be read"), "{error}");
        }
        assert!(asked.lock().expect("no panic").is_empty());
    }

    #[tokio::test]
    async fn a_listing_is_had_or_said_to_be_missing() {
        let (objects, _) = served();
        assert_eq!(objects.list(10).await.expect("a listing"), ["unet/config.json"]);
        for folder in ["plain", "unknown"] {
            let (url, _) = objects.url().rsplit_once('/').expect("a folder");
            let plain = Objects::open(&format!("{url}/{folder}")).expect("opens");
            let error = plain.list(10).await.expect_err("no listing").to_string();
            assert!(error.contains("no listing") && error.contains("PROPFIND"), "{error}");
        }
    }
}
