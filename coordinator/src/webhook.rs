//! Tells a web server how jobs ended. At least once, also across restarts: what was told last is kept beside the state.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use deltaconv_proto::ids::JobId;
use deltaconv_proto::v1;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::core::{Handle, Unserved};

/// The version of what is sent.
const VERSION: u32 = 1;
/// The events that are told.
const TOLD: [&str; 3] = ["job-done", "job-failed", "job-cancelled"];
/// How often it is looked whether there are any.
const LOOK: Duration = Duration::from_secs(1);
/// Looked at together.
const AT_A_TIME: usize = 500;
/// A server that takes longer isn't there.
const PATIENCE: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const SLOWEST_RETRY: Duration = Duration::from_secs(60);
/// About an hour; then the next is told.
const RETRIES: usize = 60;
/// In the state's folder.
const FILE: &str = "webhook.sequence";

/// What a server is sent, as JSON.
#[derive(Clone, Debug, Serialize)]
struct Told {
    version: u32,
    /// For people; chat services show this field.
    text: String,
    event: v1::Event,
    /// Left out where the job is forgotten by now.
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<v1::JobSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    figures: Option<v1::Figures>,
}

/// What tells a server.
pub(crate) struct Webhook {
    url: reqwest::Url,
    client: reqwest::Client,
    core: Handle,
    file: PathBuf,
}

impl Webhook {
    /// Tells `url` what happens to the jobs of `core`, whose state lies in `state`.
    ///
    /// # Errors
    /// What the system said of its certificates.
    pub(crate) fn new(url: reqwest::Url, core: Handle, state: &Path) -> Result<Self, reqwest::Error> {
        let client =
            reqwest::Client::builder().timeout(PATIENCE).user_agent(concat!("deltaconv/", env!("CARGO_PKG_VERSION")));
        // Nor does it follow whoever sends it elsewhere without encryption.
        let client = client.https_only(url.scheme() == "https");
        Ok(Self { url, client: client.build()?, core, file: state.join(FILE) })
    }

    /// Until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        // Without an answer it ends with what it tells.
        let _ = stop.run_until_cancelled(self.tell_all()).await;
    }

    async fn tell_all(&self) -> Result<(), Unserved> {
        let mut last = match self.told() {
            Some(told) => told,
            // What was before it came is old.
            None => self.core.read(|state, _| state.last_event()).await?,
        };
        self.keep(last);
        loop {
            let (events, end) = {
                let after = last;
                self.core.read(move |state, _| (state.events_after(after, None, AT_A_TIME), state.last_event())).await?
            };
            let (told, seen) = (events.len(), events.last().map_or(end, |event| event.sequence));
            for event in events.into_iter().filter(|event| TOLD.contains(&event.kind.as_str())) {
                let sequence = event.sequence;
                self.tell(self.whole(event).await?).await;
                self.keep(sequence);
            }
            last = seen;
            if told < AT_A_TIME {
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// With what is known of its job.
    async fn whole(&self, event: v1::Event) -> Result<Told, Unserved> {
        let id = JobId::new(event.job_id.as_str()).ok();
        let status = match id {
            Some(id) => self.core.read(move |state, now| state.status(&id, now).ok()).await?,
            None => None,
        };
        let (job, figures) = status.map_or((None, None), |status| (status.summary, status.figures));
        Ok(Told { version: VERSION, text: text(&event, figures.as_ref()), event, job, figures })
    }

    async fn tell(&self, told: Told) {
        let body = serde_json::to_vec(&told).unwrap_or_default();
        let waits = ExponentialBuilder::default().with_min_delay(FIRST_RETRY).with_max_delay(SLOWEST_RETRY);
        let mut waits = waits.with_jitter().with_max_times(RETRIES).build();
        loop {
            let sent = self.client.post(self.url.clone()).header("content-type", "application/json").body(body.clone());
            let reason = match sent.send().await {
                Ok(answer) if answer.status().is_success() => {
                    return tracing::info!(job = told.event.job_id, kind = told.event.kind, "webhook told");
                }
                Ok(answer) => format!("it answered {}", answer.status()),
                // The URL may have a secret.
                Err(error) => error.without_url().to_string(),
            };
            let Some(wait) = waits.next() else {
                return tracing::error!(job = told.event.job_id, kind = told.event.kind, reason, "webhook not told");
            };
            tracing::warn!(job = told.event.job_id, kind = told.event.kind, reason, ?wait, "webhook not told yet");
            tokio::time::sleep(wait).await;
        }
    }

    /// The sequence of the last event that was told.
    fn told(&self) -> Option<u64> {
        std::fs::read_to_string(&self.file).ok()?.trim().parse().ok()
    }

    fn keep(&self, sequence: u64) {
        if let Err(error) = crate::server::write_whole(&self.file, &sequence.to_string()) {
            let path = self.file.display();
            tracing::warn!(%path, %error, "what the webhook was told can't be kept; after a restart it may be told again");
        }
    }
}

fn text(event: &v1::Event, figures: Option<&v1::Figures>) -> String {
    let found = figures.filter(|_| event.kind == "job-done").map(|figures| {
        format!(": error of the predicted noise {:.5}, {:.2} dB", figures.epsilon_relative_mse, figures.psnr_db)
    });
    format!("{} is {}{}", event.job_id, event.message, found.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::sync::mpsc;

    use super::*;
    use crate::running::Running;

    /// A server that answers with these statuses, one after the other, and says what it was sent.
    fn server(statuses: &'static [u16]) -> (reqwest::Url, mpsc::Receiver<serde_json::Value>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
        let (sender, received) = mpsc::channel();
        std::thread::spawn(move || {
            for status in statuses {
                let (stream, _) = listener.accept().expect("a call");
                let mut reader = BufReader::new(stream);
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).expect("a line");
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().expect("a length");
                    }
                    if line.trim().is_empty() {
                        break;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).expect("a body");
                let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                reader.into_inner().write_all(answer.as_bytes()).expect("answered");
                sender.send(serde_json::from_slice(&body).expect("JSON")).expect("heard");
            }
        });
        (url.parse().expect("a URL"), received)
    }

    async fn next(
        received: mpsc::Receiver<serde_json::Value>,
    ) -> (serde_json::Value, mpsc::Receiver<serde_json::Value>) {
        let heard = tokio::task::spawn_blocking(move || (received.recv_timeout(Duration::from_secs(60)), received));
        let (told, received) = heard.await.expect("no panic");
        (told.expect("told"), received)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_end_of_a_job_is_told_again_until_it_is_heard_and_then_no_more() {
        let running = Running::new().await;
        let folder = tempfile::tempdir().expect("a folder");
        let (url, received) = server(&[503, 200, 200]);
        let hook = || Webhook::new(url.clone(), running.core.clone(), folder.path()).expect("a webhook");
        let stop = CancellationToken::new();
        let telling = tokio::spawn(hook().run(stop.clone()));
        while std::fs::read_to_string(folder.path().join(FILE)).is_err() {
            tokio::task::yield_now().await;
        }
        let job = running.job.clone();
        running
            .core
            .call(move |state, now, effects| state.cancel(&job, now, effects))
            .await
            .expect("served")
            .expect("done");
        let (first, received) = next(received).await;
        let (second, received) = next(received).await;
        assert_eq!(first, second, "it was not heard the first time");
        let id = running.job.to_string();
        assert_eq!(
            (&second["event"]["kind"], &second["job"]["job_id"]),
            (&"job-cancelled".into(), &id.as_str().into())
        );
        assert!(second["text"].as_str().is_some_and(|text| text.contains(&id)), "{second}");
        let sequence = second["event"]["sequence"].to_string();
        while std::fs::read_to_string(folder.path().join(FILE)).expect("kept") != sequence {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        telling.await.expect("no panic");

        // The next one is told of what comes, and not of what was told.
        let telling = tokio::spawn(hook().run(CancellationToken::new()));
        let again = tokio::task::spawn_blocking(move || received.recv_timeout(3 * LOOK)).await.expect("no panic");
        assert!(again.is_err(), "{again:?}");
        telling.abort();
    }
}
