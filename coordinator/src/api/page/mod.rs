//! The page: embedded files, and what they show as streams of server-sent events, each a whole view as JSON.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use deltaconv_proto::ids::JobId;
use deltaconv_proto::v1;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::core::Handle;
use crate::schedule::{Now, State};

/// How often a view is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// So often something is sent where nothing changes, so that either side notices that the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Pages that are open at a time.
const PAGES: usize = 100;
/// Jobs on the page, the latest.
const JOBS: usize = 500;
/// Events on the page, the latest.
const EVENTS: usize = 200;

/// Nothing from elsewhere, and nothing that isn't in the embedded files.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page and its streams.
pub(super) fn router(core: &Handle) -> Router {
    let pages = Arc::new(Semaphore::new(PAGES));
    let live = |view: fn(&State, Now) -> View| {
        let (core, pages) = (core.clone(), pages.clone());
        get(move || stream(core.clone(), pages.clone(), move |state, now, _| Ok(view(state, now))))
    };
    let (of_job, pages_of_job) = (core.clone(), pages.clone());
    Router::new()
        .route("/", get(|| async { file("text/html; charset=utf-8", include_str!("index.html")) }))
        .route("/page.css", get(|| async { file("text/css; charset=utf-8", include_str!("page.css")) }))
        .route("/page.js", get(|| async { file("text/javascript; charset=utf-8", include_str!("page.js")) }))
        .route("/api/live/jobs", live(View::jobs))
        .route("/api/live/workers", live(View::workers))
        .route("/api/live/events", live(View::events))
        .route(
            "/api/live/job/{id}",
            get(move |Path(id): Path<String>| {
                stream(of_job.clone(), pages_of_job.clone(), move |state, now, first| View::job(&id, state, now, first))
            }),
        )
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, text).into_response()
}

/// What a page shows. Parts that it doesn't are left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct View {
    /// The coordinator's time; no change by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    unix_ms: Option<u64>,
    /// Why nothing can be made durable; empty while it can.
    read_only: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    jobs: Option<Vec<v1::JobSummary>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<v1::JobStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workers: Option<Vec<v1::WorkerStatus>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<Vec<v1::Event>>,
}

impl View {
    fn of(state: &State) -> Self {
        let read_only = state.read_only().unwrap_or_default().to_owned();
        Self { unix_ms: None, read_only, jobs: None, job: None, workers: None, events: None }
    }

    fn jobs(state: &State, _: Now) -> Self {
        Self { jobs: Some(state.latest_summaries(JOBS)), ..Self::of(state) }
    }

    fn workers(state: &State, now: Now) -> Self {
        Self { workers: Some(state.worker_statuses(now)), ..Self::of(state) }
    }

    fn events(state: &State, _: Now) -> Self {
        Self { events: Some(state.latest_events(None, EVENTS)), ..Self::of(state) }
    }

    /// A job's, the first of a page with its layers' histories. The error is for people.
    fn job(id: &str, state: &State, now: Now, is_first: bool) -> Result<Self, String> {
        let id = JobId::new(id).map_err(|error| error.code().before(error))?;
        let job = if is_first { state.status_with_history(&id, now) } else { state.status(&id, now) };
        let job = job.map_err(|error| error.code().before(error))?;
        let events = state.latest_events(Some(&id), EVENTS);
        Ok(Self { unix_ms: Some(now.unix_ms), job: Some(job), events: Some(events), ..Self::of(state) })
    }

    /// The same without what changes by itself.
    fn settled(&self) -> Self {
        let mut settled = Self { unix_ms: None, ..self.clone() };
        settled.workers.iter_mut().flatten().for_each(|worker| worker.silent_ms = 0);
        settled.job.iter_mut().flat_map(|job| &mut job.layers).for_each(|layer| layer.history.clear());
        settled
    }
}

/// Sends a view now and whenever it changed. `look` is told whether it is the first.
async fn stream<L>(core: Handle, pages: Arc<Semaphore>, look: L) -> Response
where
    L: Fn(&State, Now, bool) -> Result<View, String> + Clone + Send + 'static,
{
    let Ok(permit) = pages.try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{PAGES} pages are open already\n")).into_response();
    };
    let page = Page { core, look, last: None, sent: Instant::now(), has_ended: false, _permit: permit };
    let sent = futures::stream::unfold(page, |mut page| async move {
        let next = page.next().await?;
        Some((Ok::<_, Infallible>(next), page))
    });
    ([(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")], Body::from_stream(sent)).into_response()
}

/// A page that is open.
struct Page<L> {
    core: Handle,
    look: L,
    /// What it shows, but for what changes by itself.
    last: Option<View>,
    sent: Instant,
    has_ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl<L: Fn(&State, Now, bool) -> Result<View, String> + Clone + Send + 'static> Page<L> {
    /// What is to be sent next; nothing where the page is to ask again.
    async fn next(&mut self) -> Option<Bytes> {
        if self.has_ended {
            return None;
        }
        loop {
            if self.last.is_some() {
                tokio::time::sleep(LOOK).await;
            }
            let (look, is_first) = (self.look.clone(), self.last.is_none());
            match self.core.read(move |state, now| look(state, now, is_first)).await.ok()? {
                Ok(view) => {
                    let settled = view.settled();
                    // NaN differs from itself, so a layer without a figure counts as a change; that is harmless.
                    if self.last.as_ref() != Some(&settled) {
                        self.last = Some(settled);
                        self.sent = Instant::now();
                        return message("message", &view);
                    }
                }
                Err(reason) => {
                    self.has_ended = true;
                    return message("refused", &Refused { message: reason });
                }
            }
            if self.sent.elapsed() >= HEARTBEAT {
                self.sent = Instant::now();
                return Some(Bytes::from_static(b": nothing new\n\n"));
            }
        }
    }
}

#[derive(Serialize)]
struct Refused {
    message: String,
}

/// JSON has no line ends of its own, so that it is one line of data.
fn message(kind: &str, content: &impl Serialize) -> Option<Bytes> {
    let json = serde_json::to_string(content).ok()?;
    Some(format!("event: {kind}\ndata: {json}\n\n").into())
}
