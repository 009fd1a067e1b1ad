//! What a job's report has to show, read from where the job writes.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use deltaconv_proto::ids::JobId;
use deltaconv_proto::keys;
use deltaconv_proto::objects::Objects;
use tokio::sync::Semaphore;

use super::headers;
use crate::core::Handle;
use crate::observe::report;

/// Results that are read at a time, so that pages can't fill the memory.
const AT_ONCE: usize = 4;

/// One of a report's files.
#[derive(Clone, Copy)]
struct File {
    route: &'static str,
    name: &'static str,
    kind: &'static str,
    max_bytes: u64,
}

const FILES: [File; 2] = [
    File { route: "/api/job/{id}/samples.png", name: report::SAMPLES, kind: "image/png", max_bytes: 8 << 20 },
    File { route: "/api/job/{id}/report.json", name: report::JSON, kind: "application/json", max_bytes: 3 << 20 },
];

/// The files of jobs' reports.
pub(super) fn router(core: &Handle) -> Router {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    FILES.into_iter().fold(Router::new(), |router, file| {
        let (core, turns) = (core.clone(), turns.clone());
        let answer = move |Path(id): Path<String>| async move {
            match read(&core, &turns, id, file).await {
                Ok(answer) => answer,
                Err((status, reason)) => {
                    (status, headers("text/plain; charset=utf-8"), format!("{reason}\n")).into_response()
                }
            }
        };
        router.route(file.route, get(answer))
    })
}

async fn read(core: &Handle, turns: &Semaphore, id: String, file: File) -> Result<Response, (StatusCode, String)> {
    let File { name, kind, max_bytes, .. } = file;
    let id = JobId::new(id).map_err(|error| (StatusCode::BAD_REQUEST, error.code().before(error)))?;
    let named = id.clone();
    let found = core.read(move |state, _| state.result_of(&named)).await;
    let found = found.map_err(|unserved| (StatusCode::SERVICE_UNAVAILABLE, unserved.code().before(unserved)))?;
    let url = found.map_err(|error| (StatusCode::NOT_FOUND, error.code().before(error)))?;
    let url = url.ok_or_else(|| (StatusCode::NOT_FOUND, format!("job {id} isn't done, and has no {name} yet")))?;
    // Never closed.
    let _turn = turns.acquire().await.map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    let read = async { Objects::open(&url)?.get(&format!("{}/{name}", keys::REPORT), max_bytes).await }.await;
    match read {
        Ok(bytes) => Ok((headers(kind), bytes).into_response()),
        Err(error) if error.is_missing() => {
            Err((StatusCode::NOT_FOUND, format!("there is no {name} under the output of job {id}")))
        }
        Err(error) => Err((
            StatusCode::BAD_GATEWAY,
            error.code().before(format_args!("{name} of job {id} can't be read: {error}")),
        )),
    }
}
