//! What browsers and monitoring systems ask, on the same port as everything else.

use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::page;
use crate::core::Handle;
use crate::observe::metrics::Metrics;

/// A core that doesn't answer within this time hangs.
const PATIENCE: Duration = Duration::from_secs(2);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `/healthz`, `/readyz` and `/metrics`, and the page.
pub(crate) fn router(core: &Handle, metrics: &Metrics) -> Router {
    let (of_health, of_readiness, core, metrics) = (core.clone(), core.clone(), core.clone(), metrics.clone());
    let page = page::router(&core);
    Router::new()
        .route("/healthz", get(move || healthy(of_health.clone())))
        .route("/readyz", get(move || ready(of_readiness.clone())))
        .route("/metrics", get(move || measured(core.clone(), metrics.clone())))
        .merge(page)
}

/// Whether the process does its work, and needs no restart.
async fn healthy(core: Handle) -> Response {
    match tokio::time::timeout(PATIENCE, core.read(|_, _| ())).await {
        Ok(Ok(())) => "ok\n".into_response(),
        // Read-only and unreadable: it mends itself once the disk does, and a restart would not help.
        Ok(Err(unserved)) => format!("{unserved}\n").into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the state's thread doesn't answer\n").into_response(),
    }
}

/// Whether changes are taken in.
async fn ready(core: Handle) -> Response {
    let read_only = core.read(|state, _| state.read_only().map(str::to_owned));
    match tokio::time::timeout(PATIENCE, read_only).await {
        Ok(Ok(None)) => "ready\n".into_response(),
        Ok(Ok(Some(reason))) => (StatusCode::SERVICE_UNAVAILABLE, format!("read-only: {reason}\n")).into_response(),
        Ok(Err(unserved)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{unserved}\n")).into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the state's thread doesn't answer\n").into_response(),
    }
}

async fn measured(core: Handle, metrics: Metrics) -> Response {
    let looked = core.read(|state, now| (state.totals(), state.census(now)));
    match tokio::time::timeout(PATIENCE, looked).await {
        Ok(Ok((totals, census))) => match metrics.text(&totals, &census) {
            Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        },
        Ok(Err(unserved)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{unserved}\n")).into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the state's thread doesn't answer\n").into_response(),
    }
}
