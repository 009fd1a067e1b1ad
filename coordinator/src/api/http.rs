//! What browsers and monitoring systems ask, on the same port as everything else.

use std::fmt::Display;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::page;
use crate::core::{Handle, Unserved};
use crate::observe::metrics::Metrics;
use crate::schedule::{Now, State};

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

/// What the core says of its state; where it says nothing, that.
async fn ask<R: Send + 'static>(
    core: &Handle,
    look: impl FnOnce(&State, Now) -> R + Send + 'static,
) -> Result<Result<R, Unserved>, Response> {
    let answered = tokio::time::timeout(PATIENCE, core.read(look)).await;
    answered.map_err(|_| unavailable("the state's thread doesn't answer"))
}

fn unavailable(reason: impl Display) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
}

/// Whether the process does its work, and needs no restart.
async fn healthy(core: Handle) -> Result<Response, Response> {
    Ok(match ask(&core, |_, _| ()).await? {
        Ok(()) => "ok\n".into_response(),
        // Read-only and unreadable: it mends itself once the disk does, and a restart would not help.
        Err(unserved) => format!("{unserved}\n").into_response(),
    })
}

/// Whether changes are taken in.
async fn ready(core: Handle) -> Result<Response, Response> {
    Ok(match ask(&core, |state, _| state.read_only().map(str::to_owned)).await? {
        Ok(None) => "ready\n".into_response(),
        Ok(Some(reason)) => unavailable(format_args!("read-only: {reason}")),
        Err(unserved) => unavailable(unserved),
    })
}

async fn measured(core: Handle, metrics: Metrics) -> Result<Response, Response> {
    let looked = ask(&core, |state, now| (state.totals(), state.census(now))).await?;
    let (totals, census) = looked.map_err(unavailable)?;
    Ok(match metrics.text(&totals, &census) {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    })
}
