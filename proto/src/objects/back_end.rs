//! Which store a URL names. Credentials come from the environment, by the variables that each store's own tools read, or
//! from the machine that this runs on; a URL carries none.

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use url::Url;

use super::Error;
#[cfg(any(feature = "s3", feature = "gs", feature = "az"))]
use super::environment::Environment;
#[cfg(any(feature = "gs", feature = "az"))]
use super::options;
#[cfg(any(feature = "s3", feature = "gs", feature = "az", feature = "http"))]
use super::retry::{Policy, Retried};
use crate::Brief;

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
        "http" | "https" => web(url),
        "hf" => hf(url),
        _ => Err(Error::Unsupported { url: url.to_string() }),
    }
}

fn folder(url: &Url) -> Result<Path, Error> {
    Path::from_url_path(url.path()).map_err(|e| refused(url, Brief(&e)))
}

fn refused(url: &Url, reason: impl ToString) -> Error {
    Error::Configuration { url: url.to_string(), reason: reason.to_string() }
}

/// Refuses an endpoint in plain text where that isn't allowed; each request would fail, and not say why.
#[cfg(any(feature = "s3", feature = "az"))]
pub(super) fn check_endpoint(
    url: &Url,
    endpoint: Option<&str>,
    allowed: Option<&str>,
    allow: &str,
) -> Result<(), Error> {
    match endpoint {
        Some(endpoint) if endpoint.starts_with("http://") && allowed == Some("false") => {
            Err(refused(url, format!("its endpoint is {endpoint}; set {allow}=true to send requests in plain text")))
        }
        _ => Ok(()),
    }
}

/// A store behind a network, as its builder made it.
#[cfg(any(feature = "s3", feature = "gs", feature = "az", feature = "http"))]
pub(super) fn retried(
    url: &Url,
    store: object_store::Result<impl ObjectStore>,
    policy: Policy,
) -> Result<Opened, Error> {
    let store = store.map_err(|e| refused(url, e))?;
    Ok((Arc::new(Retried { inner: Arc::new(store), policy }), folder(url)?))
}

#[cfg(feature = "s3")]
fn s3(url: &Url) -> Result<Opened, Error> {
    let policy = Policy::default();
    retried(url, super::s3::builder(url, &Environment::of_process(), &policy)?.build(), policy)
}

#[cfg(feature = "gs")]
fn gs(url: &Url) -> Result<Opened, Error> {
    let (environment, policy) = (Environment::of_process(), Policy::default());
    let builder = object_store::gcp::GoogleCloudStorageBuilder::new();
    let mut builder = builder.with_client_options(super::retry::client()).with_retry(policy.requests());
    builder = environment.get("SERVICE_ACCOUNT").into_iter().fold(builder, |b, path| b.with_service_account_path(path));
    for (key, value) in environment.options(&options::GS).map_err(|e| refused(url, e))? {
        builder = builder.with_config(key, value);
    }
    retried(url, builder.with_url(url.as_str()).build(), policy)
}

#[cfg(feature = "az")]
fn az(url: &Url) -> Result<Opened, Error> {
    use object_store::ClientConfigKey;
    use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};

    let (environment, policy) = (Environment::of_process(), Policy::default());
    let builder = MicrosoftAzureBuilder::new();
    let mut builder = builder.with_client_options(super::retry::client()).with_retry(policy.requests());
    for (key, value) in environment.options(&options::AZ).map_err(|e| refused(url, e))? {
        builder = builder.with_config(key, value);
    }
    // The name that Azure's machines give it.
    builder =
        environment.get("IDENTITY_ENDPOINT").into_iter().fold(builder, |b, endpoint| b.with_msi_endpoint(endpoint));
    let value = |key| builder.get_config_value(&key);
    let allowed = value(AzureConfigKey::Client(ClientConfigKey::AllowHttp));
    check_endpoint(url, value(AzureConfigKey::Endpoint).as_deref(), allowed.as_deref(), "AZURE_ALLOW_HTTP")?;
    retried(url, builder.with_url(url.as_str()).build(), policy)
}

#[cfg(feature = "http")]
fn web(url: &Url) -> Result<Opened, Error> {
    let policy = Policy::default();
    retried(url, super::web::open(url, &policy), policy)
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

#[cfg(not(feature = "http"))]
fn web(url: &Url) -> Result<Opened, Error> {
    Err(Error::NotBuilt { url: url.to_string(), feature: "http" })
}

#[cfg(not(feature = "hub"))]
fn hf(url: &Url) -> Result<Opened, Error> {
    Err(Error::NotBuilt { url: url.to_string(), feature: "hub" })
}
