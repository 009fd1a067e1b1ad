//! What monitoring systems ask a worker.

use std::net::SocketAddr;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use super::Error;
use crate::metrics;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers `/healthz` and `/metrics` until `shutdown`.
///
/// # Errors
/// [`Error::Listen`] where nobody can listen there.
pub(super) async fn start(address: SocketAddr, shutdown: CancellationToken) -> Result<(), Error> {
    let failed = |source| Error::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(%address, "metrics are served");
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(|| async { ([(CONTENT_TYPE, OPEN_METRICS)], metrics::text()) }));
    let server = Server::builder().accept_http1(true).add_routes(Routes::from(router));
    tokio::spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        let served = server.serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::warn!(%error, "metrics are served no more");
        }
    });
    Ok(())
}
