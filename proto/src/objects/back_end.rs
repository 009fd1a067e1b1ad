//! Which store a URL names. Credentials come from the environment, by the variables that each store's own tools read, or
//! from the machine that this runs on; a URL carries none.

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use url::Url;

use super::Error;

type Opened = (Arc<dyn ObjectStore>, Path);

/// The store of a URL, and the folder in it.
pub(super) fn open(url: &Url) -> Result<Opened, Error> {
    match url.scheme() {
        "file" if url.host_str().is_none_or(str::is_empty) => {
            Ok((Arc::new(LocalFileSystem::new().with_fsync(true)), folder(url)?))
        }
        "s3" => s3(url),
        "gs" => gs(url),
        "az" => az(url),
        "hf" => hf(url),
        _ => Err(Error::Unsupported { url: url.to_string() }),
    }
}

fn folder(url: &Url) -> Result<Path, Error> {
    Path::from_url_path(url.path()).map_err(|e| Error::Configuration { url: url.to_string(), reason: e.to_string() })
}

/// A cloud's store, as its builder made it.
#[cfg(any(feature = "s3", feature = "gs", feature = "az"))]
fn built(url: &Url, store: object_store::Result<impl ObjectStore>) -> Result<Opened, Error> {
    let store = store.map_err(|e| Error::Configuration { url: url.to_string(), reason: e.to_string() })?;
    Ok((Arc::new(store), folder(url)?))
}

#[cfg(feature = "s3")]
fn s3(url: &Url) -> Result<Opened, Error> {
    built(url, object_store::aws::AmazonS3Builder::from_env().with_url(url.as_str()).build())
}

#[cfg(feature = "gs")]
fn gs(url: &Url) -> Result<Opened, Error> {
    built(url, object_store::gcp::GoogleCloudStorageBuilder::from_env().with_url(url.as_str()).build())
}

#[cfg(feature = "az")]
fn az(url: &Url) -> Result<Opened, Error> {
    built(url, object_store::azure::MicrosoftAzureBuilder::from_env().with_url(url.as_str()).build())
}

#[cfg(feature = "hub")]
fn hf(url: &Url) -> Result<Opened, Error> {
    super::hub::open(url)
}

#[cfg(not(feature = "s3"))]
fn s3(url: &Url) -> Result<Opened, Error> {
    Err(Error::NotBuilt { url: url.to_string(), feature: "s3" })
}

#[cfg(not(feature = "gs"))]
fn gs(url: &Url) -> Result<Opened, Error> {
    Err(Error::NotBuilt { url: url.to_string(), feature: "gs" })
}

#[cfg(not(feature = "az"))]
fn az(url: &Url) -> Result<Opened, Error> {
    Err(Error::NotBuilt { url: url.to_string(), feature: "az" })
}

#[cfg(not(feature = "hub"))]
fn hf(url: &Url) -> Result<Opened, Error> {
    Err(Error::NotBuilt { url: url.to_string(), feature: "hub" })
}

#[cfg(all(test, feature = "s3"))]
mod tests {
    use std::collections::HashMap;

    use object_store::aws::AmazonS3Builder;

    use super::super::Objects;
    use super::super::test_server::serve;
    use super::*;

    #[tokio::test]
    async fn a_bucket_is_read_by_ranges_with_signed_requests() {
        let listing = "<ListBucketResult><Name>bucket</Name><KeyCount>1</KeyCount><IsTruncated>false</IsTruncated>\
                       <Contents><Key>models/a/unet/config.json</Key><Size>9</Size><ETag>&quot;1&quot;</ETag>\
                       <LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>";
        let headers = "ETag: \"1\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n";
        let (endpoint, asked) = serve(HashMap::from([
            ("/bucket/models/a/weights".to_owned(), (200, headers.to_owned(), (0..100).collect())),
            ("/bucket/models/a/private".to_owned(), (403, String::new(), Vec::new())),
            ("/bucket?list-type=2&prefix=models%2Fa%2F".to_owned(), (200, String::new(), listing.into())),
        ]));
        let url = Url::parse("s3://bucket/models/a").expect("a URL");
        let builder = AmazonS3Builder::new().with_url(url.as_str()).with_endpoint(endpoint).with_allow_http(true);
        let builder = builder.with_access_key_id("key").with_secret_access_key("a secret");
        let (store, prefix) = built(&url, builder.build()).expect("opens");
        let objects = Objects { url: url.to_string(), store, prefix };
        assert_eq!(objects.size("weights").await.expect("a size"), 100);
        assert_eq!(&objects.get_range("weights", 10, 13).await.expect("a part")[..], [10, 11, 12]);
        assert_eq!(objects.list(10).await.expect("a listing"), ["unet/config.json"]);
        assert!(matches!(objects.size("missing").await, Err(Error::NotFound { .. })));
        let private = objects.size("private").await.expect_err("refused");
        assert!(matches!(private, Error::Refused { .. }), "{private:?}");
        assert!(!format!("{private:?} {objects:?}").contains("a secret"));
        let asked = asked.lock().expect("no panic");
        assert!(
            asked.iter().all(|(_, token)| token.as_ref().is_some_and(|token| token.starts_with("AWS4-HMAC-SHA256")))
        );
    }
}
