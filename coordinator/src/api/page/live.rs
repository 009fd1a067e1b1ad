//! Streams of server-sent events: each message is what a page shows, as JSON, without the parts that it has already.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use deltaconv_proto::ids::JobId;
use deltaconv_proto::v1;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::settled;
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

pub(super) fn router(core: &Handle) -> Router {
    let pages = Arc::new(Semaphore::new(PAGES));
    let live = |view: fn(&State, Now) -> View| {
        let (core, pages) = (core.clone(), pages.clone());
        get(move || stream(core.clone(), pages.clone(), move |state, now, _| Ok(view(state, now))))
    };
    let (of_job, pages_of_job) = (core.clone(), pages.clone());
    Router::new()
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

/// What a page shows. Parts that it doesn't, or has already, are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct View {
    /// It goes by nothing that was sent before.
    is_first: bool,
    /// The coordinator's time; no change by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    unix_ms: Option<u64>,
    /// Why nothing can be made durable; empty while it can.
    read_only: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    jobs: Option<Vec<v1::JobSummary>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<v1::JobStatus>,
    /// All in the first message, then those that changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    workers: Option<Vec<v1::WorkerStatus>>,
    /// Workers that are remembered no more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gone: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<Vec<v1::Event>>,
}

impl View {
    fn of(state: &State) -> Self {
        Self { read_only: state.read_only().unwrap_or_default().to_owned(), ..Self::default() }
    }

    fn jobs(state: &State, _: Now) -> Self {
        Self { jobs: Some(state.latest_summaries(JOBS)), ..Self::of(state) }
    }

    fn workers(state: &State, now: Now) -> Self {
        let workers = state.worker_statuses(now).into_iter().map(settled::worker);
        Self { workers: Some(workers.collect()), ..Self::of(state) }
    }

    fn events(state: &State, _: Now) -> Self {
        Self { events: Some(state.latest_events(None, EVENTS)), ..Self::of(state) }
    }

    /// A job's, the first of a page with its layers' histories. The error is for people.
    fn job(id: &str, state: &State, now: Now, is_first: bool) -> Result<Self, String> {
        let id = JobId::new(id).map_err(|error| error.code().before(error))?;
        let job = if is_first { state.status_with_history(&id, now) } else { state.status(&id, now) };
        let job = settled::job(job.map_err(|error| error.code().before(error))?);
        let events = state.latest_events(Some(&id), EVENTS);
        Ok(Self { unix_ms: Some(now.unix_ms), job: Some(job), events: Some(events), ..Self::of(state) })
    }

    /// The same without what changes by itself.
    fn still(&self) -> Self {
        let mut still = Self { unix_ms: None, ..self.clone() };
        still.job.iter_mut().flat_map(|job| &mut job.layers).for_each(|layer| layer.history.clear());
        still
    }

    /// What a page that shows `last` has to be told.
    fn beside(mut self, last: Option<&Self>) -> Self {
        let Some(last) = last else { return Self { is_first: true, ..self } };
        if self.events == last.events {
            self.events = None;
        }
        if let (Some(workers), Some(former)) = (&mut self.workers, &last.workers) {
            // Both are in the order of their ids.
            let find = |all: &[v1::WorkerStatus], id: &str| all.binary_search_by(|one| one.worker_id.as_str().cmp(id));
            let gone = former.iter().filter(|one| find(workers, &one.worker_id).is_err());
            self.gone = gone.map(|one| one.worker_id.clone()).collect();
            workers.retain(|one| find(former, &one.worker_id).ok().and_then(|place| former.get(place)) != Some(one));
        }
        self
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
                    let still = view.still();
                    if self.last.as_ref() != Some(&still) {
                        let news = view.beside(self.last.as_ref());
                        self.last = Some(still);
                        self.sent = Instant::now();
                        return message("message", &news);
                    }
                }
                Err(reason) => {
                    self.has_ended = true;
                    return message("refused", &Refused { message: reason });
                }
            }
            if self.sent.elapsed() >= HEARTBEAT {
                self.sent = Instant::now();
                return message("alive", &());
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
    Some(format!("event: {kind}\ndata: {json}\nretry: 1000\n\n").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(workers: &[(&str, &str)]) -> View {
        let worker = |&(id, state): &(&str, &str)| v1::WorkerStatus {
            worker_id: id.into(),
            state: state.into(),
            ..v1::WorkerStatus::default()
        };
        View { workers: Some(workers.iter().map(worker).collect()), events: Some(Vec::new()), ..View::default() }
    }

    #[test]
    fn a_page_is_told_what_it_doesnt_have() {
        let last = view(&[("a", "idle"), ("b", "idle"), ("c", "busy")]);
        assert!(last.clone().beside(None).is_first);
        let news = view(&[("a", "idle"), ("c", "lost"), ("d", "idle")]).beside(Some(&last));
        assert_eq!(news, View { gone: vec!["b".into()], events: None, ..view(&[("c", "lost"), ("d", "idle")]) });
        let same = last.clone().beside(Some(&last));
        assert_eq!((same.workers, same.gone), (Some(Vec::new()), Vec::new()));
    }
}
