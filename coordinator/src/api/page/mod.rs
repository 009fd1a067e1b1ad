//! The page: embedded files, what they show as streams of server-sent events, and what a job's report has to show.

mod live;
mod results;
mod settled;

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, HeaderValue};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::core::Handle;

/// Nothing from elsewhere, and nothing that isn't in the embedded files but pictures of this coordinator's jobs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const SCRIPT: &str = "text/javascript; charset=utf-8";
/// Path, kind and text.
const FILES: [(&str, &str, &str); 11] = [
    ("/", "text/html; charset=utf-8", include_str!("index.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("page.css")),
    ("/page.js", SCRIPT, include_str!("page.js")),
    ("/elements.js", SCRIPT, include_str!("elements.js")),
    ("/words.js", SCRIPT, include_str!("words.js")),
    ("/notices.js", SCRIPT, include_str!("notices.js")),
    ("/views.js", SCRIPT, include_str!("views.js")),
    ("/job.js", SCRIPT, include_str!("job.js")),
    ("/curves.js", SCRIPT, include_str!("curves.js")),
    ("/map.js", SCRIPT, include_str!("map.js")),
    ("/chart.js", SCRIPT, include_str!("chart.js")),
];

/// The page, its streams, and the results of jobs.
pub(super) fn router(core: &Handle) -> Router {
    let router = FILES.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        router.route(path, get(move || async move { (headers(kind), text).into_response() }))
    });
    router.merge(live::router(core)).merge(results::router(core))
}

/// What an answer of this kind comes with.
fn headers(kind: &'static str) -> [(HeaderName, HeaderValue); 4] {
    [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ]
}
