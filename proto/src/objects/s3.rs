//! S3 and what speaks like it: `s3://bucket/folder`.
//!
//! Endpoint, region, path or virtual hosts, and credentials come from the environment by `object_store`'s names for them, which
//! begin as AWS's own tools' do, or from a profile; without either from the machine this runs on.

use object_store::ClientConfigKey;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey as Key};
use url::Url;

use super::Error;
use super::back_end::check_endpoint;
use super::environment::Environment;
use super::instance::or_instance;
use super::retry::{self, Policy};
use super::{options, profile};

/// The store of an `s3://` URL, still to be built.
pub(super) fn builder(url: &Url, environment: &Environment, policy: &Policy) -> Result<AmazonS3Builder, Error> {
    let refused = |reason: String| Error::Configuration { url: url.to_string(), reason };
    let mut builder = AmazonS3Builder::new().with_client_options(retry::client()).with_retry(policy.requests());
    let profile = profile::of(environment).map_err(|e| refused(e.to_string()))?;
    // Keys and token belong together: some from each place would be refused as a wrong signature.
    let has_keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].iter().any(|name| environment.get(name).is_some());
    let keys = profile.keys.filter(|_| !has_keys);
    let is_of_profile = keys.is_some();
    if let Some(keys) = keys {
        builder = builder.with_access_key_id(keys.id).with_secret_access_key(keys.secret);
        builder = keys.session.into_iter().fold(builder, AmazonS3Builder::with_token);
    }
    // `object_store` takes the default region only where none is given yet.
    let has_region = environment.get("AWS_DEFAULT_REGION").is_some();
    builder = profile.region.filter(|_| !has_region).into_iter().fold(builder, AmazonS3Builder::with_region);
    builder = profile.endpoint.into_iter().fold(builder, AmazonS3Builder::with_endpoint);
    for (key, value) in environment.options::<Key>(&options::S3).map_err(|e| refused(e.to_string()))? {
        if !(is_of_profile && key == Key::Token) {
            builder = builder.with_config(key, value);
        }
    }
    let value = |key| builder.get_config_value(&key);
    let endpoint = value(Key::S3Endpoint).or_else(|| value(Key::Endpoint));
    let allowed = value(Key::Client(ClientConfigKey::AllowHttp));
    check_endpoint(url, endpoint.as_deref(), allowed.as_deref(), "AWS_ALLOW_HTTP")?;
    or_instance(builder.with_url(url.as_str()), environment, policy).map_err(|e| refused(e.to_string()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::Objects;
    use super::super::back_end::retried;
    use super::super::test_server::serve;
    use super::*;

    fn built(variables: &[(&str, &str)]) -> Result<AmazonS3Builder, Error> {
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let url = Url::parse("s3://bucket/folder").expect("a URL");
        builder(&url, &environment, &Policy::default())
    }

    fn values(builder: &AmazonS3Builder, keys: &[Key]) -> Vec<Option<String>> {
        keys.iter().map(|key| builder.get_config_value(key)).collect()
    }

    #[test]
    fn the_environment_says_where_and_as_whom() {
        let keys = [Key::AccessKeyId, Key::SecretAccessKey, Key::Token, Key::Region, Key::Endpoint];
        let builder = built(&[
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_SESSION_TOKEN", "token"),
            ("AWS_DEFAULT_REGION", "far"),
            ("AWS_REGION", "near"),
            ("AWS_ENDPOINT_URL", "http://host:9000"),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true"),
        ])
        .expect("builds");
        let expected = ["id", "secret", "token", "near", "http://host:9000"].map(|value| Some(value.to_owned()));
        assert_eq!(values(&builder, &keys), expected);
        assert_eq!(builder.get_config_value(&Key::VirtualHostedStyleRequest).as_deref(), Some("true"));
        assert!(builder.build().is_ok());
    }

    #[test]
    fn the_environment_goes_before_a_profile_and_its_keys_stay_together() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("credentials");
        let profile = "[lab]\naws_access_key_id = A\naws_secret_access_key = b\naws_session_token = c\nregion = r\n";
        std::fs::write(&file, profile).expect("writes");
        let file = file.to_str().expect("UTF-8");
        let keys = [Key::AccessKeyId, Key::SecretAccessKey, Key::Token, Key::Region];
        let named = [("AWS_SHARED_CREDENTIALS_FILE", file), ("AWS_PROFILE", "lab")];
        let own = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_DEFAULT_REGION", "d")];
        let other_token = ("AWS_SESSION_TOKEN", "t");
        let text = |values: [&str; 4]| values.map(|value| Some(value.to_owned()).filter(|value| !value.is_empty()));
        assert_eq!(values(&built(&named).expect("builds"), &keys), text(["A", "b", "c", "r"]));
        assert_eq!(
            values(&built(&[named, [own[0], own[1]]].concat()).expect("builds"), &keys),
            text(["id", "s", "", "r"])
        );
        assert_eq!(
            values(&built(&[named, [own[2], other_token]].concat()).expect("builds"), &keys),
            text(["A", "b", "c", "d"])
        );
    }

    #[test]
    fn what_would_fail_later_or_silently_is_refused() {
        for (variables, named) in [
            (vec![("AWS_ENDPONT", "https://host")], "AWS_ENDPOINT"),
            (vec![("AWS_ENDPOINT", "http://host")], "AWS_ALLOW_HTTP"),
            (vec![("AWS_PROFILE", "none"), ("HOME", "/nonexistent")], "none"),
        ] {
            let error = built(&variables).map(drop).expect_err(named).to_string();
            assert!(error.contains(named) && error.contains("s3://bucket/folder"), "{error}");
        }
        let error = built(&[("AWS_ALLOW_HTTP", "perhaps")]).map(drop).expect_err("refused").to_string();
        assert!(error.contains("perhaps"), "{error}");
    }

    #[tokio::test]
    async fn without_credentials_the_instance_is_asked_and_its_silence_explained() {
        let (metadata, asked) = serve(HashMap::new());
        // The second asks nobody.
        for (variable, value) in [("AWS_METADATA_ENDPOINT", metadata.as_str()), ("AWS_EC2_METADATA_DISABLED", "true")] {
            let store = built(&[(variable, value)]).expect("builds").build().expect("builds");
            let error = store.credentials().get_credential().await.map(drop).expect_err("none").to_string();
            assert!(error.contains("no credentials") && error.contains("AWS_ACCESS_KEY_ID"), "{error}");
            assert_eq!(asked.lock().expect("no panic").len(), 1);
        }
    }

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
        let (store, prefix) = retried(&url, builder.build(), Policy::default()).expect("opens");
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
