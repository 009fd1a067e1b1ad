//! Workers that do nothing but what a coordinator sees of workers: each with a connection of its own, they join, take leases,
//! renew them and report outputs that nobody made.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use deltaconv_proto::code::Code;
use deltaconv_proto::ids::{AttemptId, TaskId};
use deltaconv_proto::v1::{self, attempt_report, done, task_spec};
use deltaconv_proto::{keys, protocol};
use futures::future::try_join_all;
use tonic::Status;
use tonic::transport::Endpoint;

use crate::agent::connect::{self, Bearer, Calls};

/// Workers that connect at the same time.
const AT_ONCE: usize = 64;
/// A Sync that reports an output waits this long for its acceptance.
const HOLD: Duration = Duration::from_secs(10);

/// Why the load ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no connection.
    #[error("can't connect to the coordinator: {0}")]
    Connect(#[from] tonic::transport::Error),
    /// A call failed.
    #[error("the coordinator refused a call: {0}")]
    Call(#[from] Box<Status>),
    /// No header can carry the token.
    #[error("the token is none")]
    Token,
    /// A message lacks a part.
    #[error("the coordinator gave a task without its {0}")]
    Incomplete(&'static str),
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Connect(_) => Code::Unreachable,
            Self::Call(status) => Code::of_status(status).unwrap_or(Code::Refused),
            Self::Token => Code::TokenFile,
            Self::Incomplete(_) => Code::VersionsDiffer,
        }
    }
}

/// How long calls took, in no order.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// That of which so much of a hundred are shorter; nothing where there were none.
    pub fn percentile(&mut self, percent: usize) -> Option<Duration> {
        self.0.sort_unstable();
        let last = self.0.len().checked_sub(1)?;
        self.0.get(last * percent / 100).copied()
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// Workers that joined.
pub struct Cluster(Vec<Simulated>);

struct Simulated {
    calls: Calls,
    id: String,
    /// What it is at.
    held: Option<(v1::Lease, v1::TaskSpec)>,
    /// It takes nothing new.
    draining: bool,
    /// Calls so far, by which its figures differ from call to call.
    calls_made: u64,
}

impl Cluster {
    /// Connects and joins as many workers.
    ///
    /// # Errors
    /// The first that can't.
    pub async fn join(url: &str, token: &str, workers: usize) -> Result<Self, Error> {
        let bearer = Bearer::new(token).ok_or(Error::Token)?;
        let mut joined = Vec::with_capacity(workers);
        while joined.len() < workers {
            let some = (joined.len()..workers.min(joined.len() + AT_ONCE)).map(|n| Simulated::join(url, &bearer, n));
            joined.extend(try_join_all(some).await?);
        }
        Ok(Self(joined))
    }

    /// Has every worker call once in `every`, at moments that are spread evenly, for as long as `lasting`; those without a task
    /// ask for one, the others renew.
    ///
    /// # Errors
    /// A call that fails.
    pub async fn keep_time(&mut self, every: Duration, lasting: Duration) -> Result<Latencies, Error> {
        let count = self.0.len() as u32;
        let began = tokio::time::Instant::now();
        self.each(|mut worker, place| async move {
            let mut latencies = Vec::new();
            let mut next = began + every * place as u32 / count;
            while next < began + lasting {
                tokio::time::sleep_until(next).await;
                let asked = Instant::now();
                worker.renew(Duration::ZERO).await?;
                latencies.push(asked.elapsed());
                next += every;
            }
            Ok((worker, latencies))
        })
        .await
    }

    /// Has the first `workers` do one task after the other, each renewed so often, until as many outputs were accepted or nothing
    /// is left to do. Gives how many were, and how long calls took that the coordinator had no reason to hold.
    ///
    /// # Errors
    /// A call that fails.
    pub async fn work(&mut self, workers: usize, tasks: usize, renewals: usize) -> Result<(usize, Latencies), Error> {
        let mut rest = Self(self.0.split_off(workers.min(self.0.len())));
        rest.each(|mut worker, _| async move {
            worker.hand_back().await?;
            Ok((worker, Vec::new()))
        })
        .await?;
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = accepted.clone();
        let latencies = self
            .each(move |mut worker, _| {
                let accepted = counted.clone();
                async move {
                    let mut latencies = Vec::new();
                    while accepted.load(Ordering::Relaxed) < tasks {
                        // The answer that accepted the last task may have brought the next.
                        if worker.held.is_none() {
                            let asked = Instant::now();
                            worker.renew(Duration::ZERO).await?;
                            latencies.push(asked.elapsed());
                        }
                        if worker.held.is_none() {
                            // Others are at what is left; when they are done there is more, or nothing.
                            worker.renew(Duration::from_secs(2)).await?;
                        }
                        if worker.held.is_none() {
                            break;
                        }
                        for _ in 0..renewals {
                            let asked = Instant::now();
                            worker.renew(Duration::ZERO).await?;
                            latencies.push(asked.elapsed());
                        }
                        worker.finish().await?;
                        accepted.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok((worker, latencies))
                }
            })
            .await?;
        self.0.extend(rest.0);
        Ok((accepted.load(Ordering::Relaxed), latencies))
    }

    async fn each<F>(&mut self, run: impl Fn(Simulated, usize) -> F) -> Result<Latencies, Error>
    where
        F: Future<Output = Result<(Simulated, Vec<Duration>), Error>> + Send + 'static,
    {
        let mut running = tokio::task::JoinSet::new();
        for (place, worker) in self.0.drain(..).enumerate() {
            running.spawn(run(worker, place));
        }
        let mut all = Vec::new();
        while let Some(ended) = running.join_next().await {
            let Ok(ended) = ended else { continue };
            let (worker, latencies) = ended?;
            self.0.push(worker);
            all.extend(latencies);
        }
        Ok(Latencies(all))
    }
}

impl Simulated {
    async fn join(url: &str, bearer: &Bearer, number: usize) -> Result<Self, Error> {
        let channel = Endpoint::from_shared(url.to_owned())?.connect().await?;
        let mut client = connect::client(channel, bearer.clone());
        let device = v1::Device {
            kind: v1::Device::CUDA.into(),
            name: "NVIDIA H200".into(),
            memory_bytes: 141 << 30,
            threads: 16,
            compute_capability: "9.0".into(),
            precisions: vec!["f32".into(), "bf16".into()],
        };
        let request = v1::JoinRequest {
            name: format!("load-{number}"),
            device: Some(device),
            version: protocol::RELEASE.into(),
            node: format!("node-{}", number / 8),
            protocol: protocol::OURS.to_string(),
        };
        let joined = client.join(request).await.map_err(Box::new)?.into_inner();
        Ok(Self { calls: Calls::new(client), id: joined.worker_id, held: None, draining: false, calls_made: 0 })
    }

    async fn sync(&mut self, state: Option<attempt_report::State>, hold: Duration) -> Result<v1::SyncResponse, Error> {
        let report = |(lease, _): &(v1::Lease, v1::TaskSpec)| v1::AttemptReport { lease: Some(lease.clone()), state };
        let request = v1::SyncRequest {
            worker_id: self.id.clone(),
            attempts: self.held.as_ref().map(report).into_iter().collect(),
            hold_ms: hold.as_millis() as u64,
            draining: self.draining,
            load: Some(self.load()),
            ..v1::SyncRequest::default()
        };
        self.calls_made += 1;
        Ok(self.calls.sync(request).await.map_err(Box::new)?)
    }

    /// Says that it is at its task, or that it has none.
    async fn renew(&mut self, hold: Duration) -> Result<(), Error> {
        let step = (100 * self.calls_made).min(2900);
        let error = 0.9 * (-(step as f64) / 600.0).exp() + 0.004;
        let progress = v1::Progress {
            step,
            steps: 3000,
            samples_per_second: 5e3,
            held_out_error: error,
            training_error: 0.8 * error,
            ..v1::Progress::default()
        };
        let answer = self.sync(Some(attempt_report::State::Running(progress)), hold).await?;
        self.take(answer)
    }

    /// As of a machine that is busy, and never the same twice in a row.
    fn load(&self) -> v1::Load {
        let swing = (self.calls_made % 20) as f64 / 20.0;
        v1::Load {
            gpu_utilisation: Some(0.75 + 0.2 * swing),
            gpu_memory_used_bytes: Some(90 << 30),
            gpu_temperature: Some(60.0 + 10.0 * swing),
            gpu_power: Some(500.0 + 100.0 * swing),
            cpu_utilisation: Some(0.2 + 0.3 * swing),
            memory_used_bytes: Some(300 << 30),
            read_bytes_per_second: 1e9 * swing,
            written_bytes_per_second: 1e8 * swing,
        }
    }

    /// Gives its task back and takes nothing new, so that it keeps nobody waiting.
    async fn hand_back(&mut self) -> Result<(), Error> {
        self.draining = true;
        while self.held.is_some() {
            let answer =
                self.sync(Some(attempt_report::State::Released(v1::Progress::default())), Duration::ZERO).await?;
            self.take(answer)?;
        }
        Ok(())
    }

    /// Says that its task is done, until that is accepted.
    async fn finish(&mut self) -> Result<(), Error> {
        let Some((lease, spec)) = &self.held else { return Ok(()) };
        let done = attempt_report::State::Done(output(lease, spec)?);
        let held = lease.clone();
        while self.held.as_ref().is_some_and(|(lease, _)| *lease == held) {
            let answer = self.sync(Some(done.clone()), HOLD).await?;
            self.take(answer)?;
        }
        Ok(())
    }

    fn take(&mut self, answer: v1::SyncResponse) -> Result<(), Error> {
        let over = answer.cancel.into_iter().filter_map(|cancel| cancel.lease).chain(answer.acknowledged);
        for lease in over {
            self.held.take_if(|(held, _)| *held == lease);
        }
        for start in answer.start {
            let lease = start.lease.ok_or(Error::Incomplete("lease"))?;
            self.held = Some((lease, start.task.ok_or(Error::Incomplete("spec"))?));
        }
        Ok(())
    }
}

/// What a worker would have made of the task.
fn output(lease: &v1::Lease, spec: &v1::TaskSpec) -> Result<v1::Done, Error> {
    let task = TaskId::new(lease.task_id.clone()).map_err(|_| Error::Incomplete("id"))?;
    let attempt = AttemptId::new(lease.attempt_id.clone()).map_err(|_| Error::Incomplete("attempt"))?;
    let object = |key: String| {
        let digest = blake3::hash(format!("{}/{key}", lease.epoch).as_bytes()).to_hex().to_string();
        Some(v1::ObjectRef { key, size: 64 << 20, digest })
    };
    let output = match spec.kind.as_ref().ok_or(Error::Incomplete("kind"))? {
        task_spec::Kind::Capture(capture) => {
            let range = capture.range.unwrap_or_default();
            let shard = |layer: &String| v1::ShardRef {
                layer: layer.clone(),
                object: object(keys::shard(capture.round, layer, &range, &attempt)),
            };
            done::Output::Capture(v1::CaptureOutput { shards: capture.layers.iter().map(shard).collect() })
        }
        task_spec::Kind::Distill(distill) => {
            let layer = distill.layer.as_ref().ok_or(Error::Incomplete("layer"))?;
            let block = object(keys::block(distill.round, &layer.name, &attempt));
            done::Output::Distill(v1::DistillOutput { block, relative_error: 0.01, ..v1::DistillOutput::default() })
        }
        task_spec::Kind::Evaluate(_) => {
            done::Output::Evaluate(v1::EvaluateOutput { part: object(keys::evaluation(&task, &attempt)) })
        }
        task_spec::Kind::Synthesise(_) | task_spec::Kind::Finetune(_) => {
            return Err(Error::Incomplete("expected kind"));
        }
    };
    Ok(v1::Done { busy_seconds: 100.0, samples: 256, output: Some(output) })
}
