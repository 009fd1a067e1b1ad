//! From a URL and a token file to a coordinator that knows this worker.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use deltaconv_proto::v1;
use deltaconv_proto::v1::worker_service_client::WorkerServiceClient;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::{Error, Options, device};
use crate::accelerator::Accelerator;

/// Puts the token on every call.
#[derive(Clone)]
pub(super) struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

pub(super) type Client = WorkerServiceClient<InterceptedService<Channel, Bearer>>;

/// A coordinator that this worker has joined.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) worker_id: String,
    pub(super) checkpoint_interval: Duration,
}

/// Waits between tries: short at first, so that a restarted coordinator is met within two seconds.
pub(super) fn waits() -> impl Iterator<Item = Duration> {
    let builder = ExponentialBuilder::default().with_min_delay(Duration::from_millis(100));
    builder.with_max_delay(Duration::from_secs(1)).with_jitter().without_max_times().build()
}

/// Whether the same call may succeed later. A coordinator that is away, starting or stopping is worth waiting for.
pub(super) fn may_pass(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::ResourceExhausted => true,
        // tonic's word for a connection that broke in the middle.
        Code::Unknown | Code::Internal => true,
        _ => false,
    }
}

/// Joins, however long that takes. `None` when `shutdown` comes first.
pub(super) async fn join(
    options: &Options,
    accelerator: &Accelerator,
    shutdown: &CancellationToken,
) -> Result<Option<Connection>, Error> {
    let address = |reason: String| Error::Address { url: options.coordinator.clone(), reason };
    let endpoint = Endpoint::from_shared(options.coordinator.clone()).map_err(|e| address(e.to_string()))?;
    if endpoint.uri().scheme_str() != Some("http") {
        return Err(address("it doesn't start with http://".into()));
    }
    let endpoint = endpoint
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10));
    let mut said = false;
    for wait in waits() {
        match try_join(options, accelerator, &endpoint).await {
            Ok(connection) => {
                let worker = &connection.worker_id;
                tracing::info!(worker, coordinator = options.coordinator, "joined");
                return Ok(Some(connection));
            }
            Err(Attempted::Failed(error)) => return Err(error),
            Err(Attempted::Wait(reason)) if !said => {
                tracing::info!(coordinator = options.coordinator, reason, "waiting for the coordinator");
                said = true;
            }
            Err(Attempted::Wait(_)) => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
        }
    }
    Ok(None)
}

enum Attempted {
    Wait(String),
    Failed(Error),
}

async fn try_join(options: &Options, accelerator: &Accelerator, endpoint: &Endpoint) -> Result<Connection, Attempted> {
    let path = &options.token_file;
    let text = match tokio::fs::read_to_string(path).await {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Attempted::Wait(format!("token file {} is not there yet", path.display())));
        }
        Err(source) => return Err(Attempted::Failed(Error::TokenFile { path: path.clone(), source })),
    };
    let bearer: MetadataValue<Ascii> =
        format!("Bearer {}", text.trim()).parse().map_err(|_| Attempted::Failed(Error::Token(path.clone())))?;
    let channel = endpoint.connect().await.map_err(|e| Attempted::Wait(root_cause(&e)))?;
    let mut client = WorkerServiceClient::with_interceptor(channel, Bearer(bearer));
    let request = v1::JoinRequest {
        name: options.name.clone(),
        device: Some(device::describe(options.threads, accelerator)),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let joined = client.join(request).await.map_err(|status| match may_pass(&status) {
        true => Attempted::Wait(status.message().into()),
        false => Attempted::Failed(refused(options, &status)),
    })?;
    let joined = joined.into_inner();
    Ok(Connection {
        client,
        worker_id: joined.worker_id,
        checkpoint_interval: Duration::from_millis(joined.checkpoint_interval_ms),
    })
}

pub(super) fn refused(options: &Options, status: &Status) -> Error {
    Error::Refused { url: options.coordinator.clone(), reason: status.message().into() }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
