//! Who works on a job, and what happened to it last: asked for beside its status, which has neither.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaconv_proto::{utc, v1};

use crate::args::Connection;
use crate::client::Client;
use crate::commands::workers::busy;
use crate::error::Error;
use crate::table;

const EVERY: Duration = Duration::from_secs(2);
/// Workers that are shown.
const WORKERS: usize = 6;
/// Events that are shown, the last ones.
const EVENTS: usize = 3;

/// The lines that stand below a job's bars. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beside(Arc<Mutex<Vec<String>>>);

impl Beside {
    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks again and again, for as long as it is polled. A coordinator that is away is waited for.
    pub(crate) async fn keep(self, to: &Connection, job_id: &str) {
        let mut events: Vec<v1::Event> = Vec::new();
        loop {
            if let Ok(workers) = look(to, job_id, &mut events).await {
                let lines = workers.into_iter().chain(events.iter().map(event));
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = lines.collect();
            }
            tokio::time::sleep(EVERY).await;
        }
    }
}

/// The workers on the job, and into `events` what happened since.
async fn look(to: &Connection, job_id: &str, events: &mut Vec<v1::Event>) -> Result<Vec<String>, Error> {
    let mut client = Client::connect(to).await?;
    let after = events.last().map_or(0, |event| event.sequence);
    let request = v1::EventsRequest { after, job_id: job_id.to_owned(), follow: false };
    let mut happened = client.events(request).await?;
    while let Some(event) = happened.next_or_end().await? {
        events.push(event);
    }
    events.drain(..events.len().saturating_sub(EVENTS));
    let of_job = format!("{job_id}/");
    let mut workers = client.workers().await?.workers;
    workers.retain(|worker| worker.tasks.iter().any(|task| task.starts_with(&of_job)));
    let more = workers.len().saturating_sub(WORKERS);
    let mut lines: Vec<String> = workers.iter().take(WORKERS).map(|worker| describe(worker, &of_job)).collect();
    if more > 0 {
        lines.push(format!("and {more} more workers"));
    }
    Ok(lines)
}

fn describe(worker: &v1::WorkerStatus, of_job: &str) -> String {
    let device = worker.device.clone().unwrap_or_default();
    let load = worker.load.unwrap_or_default();
    let [share, used] = busy(&device, &load);
    let heat = load.gpu_temperature.map(|degrees| format!(", {degrees:.0} °C")).unwrap_or_default();
    let tasks: Vec<&str> = worker.tasks.iter().filter_map(|task| task.strip_prefix(of_job)).collect();
    let text = format!("{} ({}, {share}, {used}{heat}): {}", worker.name, device.name, tasks.join(", "));
    table::one_line(&text)
}

fn event(event: &v1::Event) -> String {
    table::one_line(&format!("{}  {}", utc(event.unix_ms), event.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_shown_with_what_its_gpu_does() {
        let worker = v1::WorkerStatus {
            name: "node-a\u{1b}[31m".into(),
            device: Some(v1::Device { kind: v1::Device::CUDA.into(), name: "H200".into(), ..v1::Device::default() }),
            load: Some(v1::Load {
                gpu_utilisation: Some(0.87),
                gpu_memory_used_bytes: Some(61_000_000_000),
                gpu_temperature: Some(62.4),
                ..v1::Load::default()
            }),
            tasks: vec!["tiny-1/r0/distill/mid".into(), "other-2/finetune".into()],
            ..v1::WorkerStatus::default()
        };
        assert_eq!(describe(&worker, "tiny-1/"), "node-a [31m (H200, 87 %, 61.0 GB, 62 °C): r0/distill/mid");
    }
}
