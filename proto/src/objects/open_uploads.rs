//! Uploads in parts that were begun and have not ended. S3 keeps their parts, and bills them, until somebody gives them up;
//! `object_store` can end an upload that it knows, but not list them.

use std::time::Duration;

use object_store::ClientConfigKey;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpRequestBody, ReqwestConnector};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};
use serde::Deserialize;
use url::Url;

use super::environment::Environment;
use super::retry::{self, Policy};
use super::{Error, OpenUpload, s3};

/// How long the signature of one request holds.
const SIGNED_FOR: Duration = Duration::from_secs(300);
/// S3 lists up to 1000 uploads in about as many KiB.
const MAX_LISTING_BYTES: usize = 8 << 20;

/// A store of S3 and what asks it without `object_store`.
pub(super) struct OpenUploads {
    store: AmazonS3,
    client: HttpClient,
    url: String,
}

/// S3's answer, `ListMultipartUploads` in its API reference.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Listing {
    is_truncated: bool,
    next_key_marker: String,
    next_upload_id_marker: String,
    upload: Vec<Begun>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Begun {
    key: String,
    upload_id: String,
}

impl OpenUploads {
    /// Of the bucket of an `s3://` URL, as the environment has it.
    pub(super) fn of(url: &Url) -> Result<Self, Error> {
        Self::new(s3::builder(url, &Environment::of_process(), &Policy::default())?, url.to_string())
    }

    fn new(builder: AmazonS3Builder, url: String) -> Result<Self, Error> {
        let failed = |error: object_store::Error| Error::Configuration { url: url.clone(), reason: error.to_string() };
        let allowed = builder.get_config_value(&AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp));
        let options = retry::client().with_allow_http(allowed.as_deref() == Some("true"));
        let client = ReqwestConnector::default().connect(&options).map_err(failed)?;
        Ok(Self { store: builder.build().map_err(failed)?, client, url })
    }

    /// Those to keys below `prefix`.
    pub(super) async fn below(&self, prefix: &Path) -> Result<Vec<OpenUpload>, Error> {
        let folder = format!("{prefix}/");
        let mut query = vec![("uploads".to_owned(), String::new()), ("prefix".to_owned(), folder.clone())];
        let mut found = Vec::new();
        loop {
            let listing = self.listing(&query).await?;
            found.extend(listing.upload.into_iter().filter_map(|Begun { key, upload_id }| {
                Some(OpenUpload { key: key.strip_prefix(&folder)?.to_owned(), id: upload_id })
            }));
            let Listing { is_truncated, next_key_marker, next_upload_id_marker, .. } = listing;
            let markers = [("key-marker", next_key_marker), ("upload-id-marker", next_upload_id_marker)];
            let markers = markers.map(|(name, value)| (name.to_owned(), value));
            // One that says the same again would never end.
            if !is_truncated || query[2..] == markers {
                return Ok(found);
            }
            query.truncate(2);
            query.extend(markers);
        }
    }

    /// Drops the parts of an upload to `path`.
    pub(super) async fn give_up(&self, path: &Path, id: &String) -> object_store::Result<()> {
        self.store.abort_multipart(path, id).await
    }

    async fn listing(&self, query: &[(String, String)]) -> Result<Listing, Error> {
        // Without the URL, which is signed.
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Store {
            url: self.url.clone(),
            key: "?uploads".to_owned(),
            source: object_store::Error::Generic { store: "S3", source },
        };
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        let (bucket, method) = (Path::default(), request.method().clone());
        let options = SignedUrlOptions::new().with_query(query.iter().cloned());
        let signed = self.store.signed_url_opts(method, &bucket, SIGNED_FOR, &options).await;
        let signed = signed.map_err(|error| failed(error.into()))?;
        *request.uri_mut() = signed.as_str().parse().map_err(|_| failed("its endpoint is no URL".into()))?;
        let answer = self.client.execute(request).await.map_err(|error| failed(kind(&error).into()))?;
        if !answer.status().is_success() {
            return Err(failed(format!("listing uploads was answered with {}", answer.status()).into()));
        }
        let body = answer.into_body().bytes().await.map_err(|error| failed(kind(&error).into()))?;
        if body.len() > MAX_LISTING_BYTES {
            return Err(failed(format!("a listing of {} bytes", body.len()).into()));
        }
        quick_xml::de::from_reader(&body[..]).map_err(|error| failed(error.into()))
    }
}

/// What went wrong, without the URL.
fn kind(error: &HttpError) -> String {
    format!("listing uploads failed: {:?}", error.kind())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::test_server::serve;
    use super::*;

    fn opened(endpoint: &str) -> OpenUploads {
        let builder = AmazonS3Builder::new().with_url("s3://bucket").with_endpoint(endpoint).with_allow_http(true);
        let builder = builder.with_access_key_id("key").with_secret_access_key("a secret");
        OpenUploads::new(builder, "s3://bucket".to_owned()).expect("opens")
    }

    #[tokio::test]
    async fn uploads_are_listed_page_by_page_and_only_those_below_the_prefix() {
        let upload = |key: &str, id: &str| {
            format!(
                "<Upload><Key>{key}</Key><UploadId>{id}</UploadId><Initiated>2026-01-01T00:00:00Z</Initiated></Upload>"
            )
        };
        let page = |more: &str, uploads: String| {
            let body = format!(
                "<ListMultipartUploadsResult><Bucket>bucket</Bucket>{more}{uploads}</ListMultipartUploadsResult>"
            );
            (200, String::new(), body.into_bytes())
        };
        let truncated = "<IsTruncated>true</IsTruncated><NextKeyMarker>out/a</NextKeyMarker>\
                         <NextUploadIdMarker>1</NextUploadIdMarker>";
        let first = page(truncated, upload("out/a", "1") + &upload("outer/x", "9"));
        let second = page("<IsTruncated>false</IsTruncated>", upload("out/b/c", "2"));
        let (endpoint, _) = serve(HashMap::from([
            ("/bucket/?uploads=&prefix=out%2F".to_owned(), first),
            ("/bucket/?uploads=&prefix=out%2F&key-marker=out%2Fa&upload-id-marker=1".to_owned(), second),
        ]));
        let found = opened(&endpoint).below(&Path::from("out")).await.expect("a listing");
        let found: Vec<(&str, &str)> = found.iter().map(|upload| (&upload.key[..], &upload.id[..])).collect();
        assert_eq!(found, [("a", "1"), ("b/c", "2")]);
    }

    #[tokio::test]
    async fn a_refusal_names_the_bucket_and_not_the_signature() {
        let (endpoint, _) = serve(HashMap::new());
        let error = opened(&endpoint).below(&Path::from("out")).await.map(drop).expect_err("refused");
        let text = format!("{error} {error:?}");
        assert!(text.contains("s3://bucket") && text.contains("404"), "{text}");
        assert!(!text.contains("X-Amz-Signature"), "{text}");
    }
}
