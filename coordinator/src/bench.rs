//! A coordinator under load: the real core, store and service, with jobs that nobody planned and outputs that are taken as
//! reported. What [`run`](crate::run) adds to it is the work of others: planning, checking, assembling.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use deltaconv_proto::v1;
use deltaconv_proto::v1::worker_service_server::WorkerServiceServer;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::access::{Access, Audit, Rates, Token, connections};
use crate::api::{LogDesk, Wakers, WorkerApi, WorkerDoor, http, with_handshake};
use crate::core::{Clock, Core, Handle, Unserved};
use crate::observe::metrics::Metrics;
use crate::schedule::{Command, Settings};
use crate::server::{Error, guarded};
use crate::store::LocalStore;

/// A job's shards of each layer, one of them held out.
const SHARDS: u32 = 16;
/// Samples in a shard.
const SHARD_SAMPLES: u32 = 256;
/// Two tasks of noise, and two of pictures.
const EVALUATION: v1::Evaluation = v1::Evaluation { samples: 64, prompts: 4, ddim_steps: 25, guidance: 2.0 };
/// Tasks of a job that aren't of one layer.
const OTHER_TASKS: u32 = SHARDS + 4;
/// Jobs that are submitted in one transition.
const AT_ONCE: u32 = 100;

/// What is put under load.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of the durable state.
    pub state: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Tasks that an empty state is filled with at least, in jobs of 20 and one for each layer.
    pub tasks: u32,
    /// Of a job.
    pub layers: u32,
    /// A lease that no Sync renews ends after this time.
    pub lease_ttl: Duration,
}

/// What there is once it listens.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// Where.
    pub address: SocketAddr,
    /// From the start of opening the state to listening, in seconds.
    pub opened_seconds: f64,
    /// Jobs, tasks, and how many of them are committed.
    pub jobs: usize,
    /// All tasks.
    pub tasks: usize,
    /// Those whose output is accepted.
    pub committed: usize,
}

/// Serves until `shutdown`; `ready` is told once it does. The token that workers join with is `worker.token` in the state's
/// folder.
///
/// # Errors
/// As [`crate::run`].
pub async fn serve(options: Options, ready: impl FnOnce(Ready), shutdown: CancellationToken) -> Result<(), Error> {
    let began = Instant::now();
    let listen = |source| Error::Listen { address: options.listen, source };
    let store = LocalStore::open(&options.state, 0)?;
    let token = Some(Token::read_or_make(&options.state.join("worker.token"))?);
    let audit = Audit::open(&options.state).map_err(|source| Error::Audit { folder: options.state.clone(), source })?;
    let settings = Settings::new(store.identity(), options.lease_ttl);
    let (commands, given) = mpsc::unbounded_channel();
    let metrics = Metrics::new();
    let (core, handle, first) = Core::open(settings, store, Clock::start(SystemTime::now), commands, metrics.clone())?;
    let running = core.spawn(first).map_err(listen)?;
    let wakers = Wakers::default();
    let carrier = tokio::spawn(take_as_reported(given, handle.clone(), wakers.clone()));
    let listener = TcpListener::bind(options.listen).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let opened_seconds = began.elapsed().as_secs_f64();

    let count = |handle: Handle| async move { handle.read(|state, _| state.counts()).await.map_err(|_| Error::Fault) };
    if count(handle.clone()).await?.1 == 0 {
        fill(&handle, options.tasks, options.layers).await.map_err(|_| Error::Fault)?;
    }
    let (jobs, tasks, committed) = count(handle.clone()).await?;
    ready(Ready { address, opened_seconds, jobs, tasks, committed });

    let web = http::router(&handle, &metrics);
    let (register, rates, audit) = (Arc::default(), Arc::new(Rates::new()), Arc::new(audit));
    let access = Access { tls: None, workers: None, token, register, rates, audit, metrics: metrics.clone() };
    let (logs, interval) = (LogDesk::default(), Duration::from_secs(10));
    let api = WorkerApi::new(handle.clone(), wakers, logs, metrics, options.lease_ttl, interval);
    let api = WorkerDoor::new(api, access.clone());
    let routes = Routes::from(web).add_service(WorkerServiceServer::new(api));
    let serve = guarded(access)
        // The page, under the same load.
        .accept_http1(true)
        .add_routes(with_handshake(routes))
        .serve_with_incoming(connections(listener, None));
    let served = tokio::select! {
        served = serve => served.map_err(Error::from),
        () = shutdown.cancelled() => Ok(()),
    };
    handle.stop();
    let ended = running.ended.await.map_err(|_| Error::Fault)?;
    let joined = running.thread.join().map_err(|_| Error::Fault);
    carrier.abort();
    served.and(ended).and(joined)
}

/// Submits jobs until there are as many tasks.
async fn fill(core: &Handle, tasks: u32, layers: u32) -> Result<(), Unserved> {
    let jobs = tasks.div_ceil(OTHER_TASKS + layers);
    for from in (0..jobs).step_by(AT_ONCE as usize) {
        let submitted = core.call(move |state, now, effects| {
            let submit = |job| state.submit(spec(job), plan(layers), now, effects).map(drop);
            (from..jobs.min(from + AT_ONCE)).try_for_each(submit)
        });
        if let Err(error) = submitted.await? {
            tracing::error!(%error, "a job is refused");
        }
    }
    Ok(())
}

fn spec(job: u32) -> v1::JobSpec {
    v1::JobSpec {
        name: "load".into(),
        teacher_url: "s3://models/stable-diffusion-v1-5".into(),
        output_url: format!("s3://conversions/load/{job:08}"),
        data: Some(v1::Data { url: "s3://data/laion-latents".into(), held_out_latents: 64, ..v1::Data::default() }),
        recipe: Some(v1::Recipe {
            samples: (SHARDS - 1) * SHARD_SAMPLES,
            held_out_samples: SHARD_SAMPLES,
            shard_samples: SHARD_SAMPLES,
            steps: 3000,
            batch: 64,
            learning_rate: 1e-3,
            inter_ratio: 0.5,
            scales: vec![1.0, 0.5],
            ..v1::Recipe::default()
        }),
        evaluation: Some(EVALUATION),
        owner: format!("owner-{}", job % 7),
        ..v1::JobSpec::default()
    }
}

/// Of layers as SD1.5 has them.
fn plan(layers: u32) -> v1::JobPlan {
    let layer = |index: u32| {
        let (side, channels) = [(64, 320), (32, 640), (16, 1280), (8, 1280)][index as usize % 4];
        v1::LayerPlan {
            name: format!("down_blocks.{}.attentions.{}.transformer_blocks.0", index / 4, index % 4),
            index,
            channels,
            height: side,
            width: side,
            kernel_size: 7,
            scales: vec![1.0, 0.5],
            gate: "scaled".into(),
            inter_ratio: 0.5,
            parameters: 1_000_000,
            ..v1::LayerPlan::default()
        }
    };
    v1::JobPlan {
        teacher_class: "UNet2DConditionModel".into(),
        denoiser_folder: "unet".into(),
        latent_channels: 4,
        latent_height: 64,
        latent_width: 64,
        latents: SHARDS * SHARD_SAMPLES,
        layers: (0..layers).map(layer).collect(),
        ..v1::JobPlan::default()
    }
}

/// In the place of what checks, assembles and reports.
async fn take_as_reported(mut commands: mpsc::UnboundedReceiver<Command>, core: Handle, wakers: Wakers) {
    let mut running = JoinSet::new();
    loop {
        let command = tokio::select! {
            Some(_) = running.join_next(), if !running.is_empty() => continue,
            command = commands.recv() => command,
        };
        match command {
            None => return,
            Some(Command::Wake(worker)) => wakers.ring(&worker),
            Some(command) => _ = running.spawn(take(core.clone(), command)),
        }
    }
}

async fn take(core: Handle, command: Command) {
    // A core that stops has its worker report again to the next one.
    let _ = match command {
        Command::Verify { task, lease, done, .. } => {
            core.call(move |state, now, effects| state.verified(&task, &lease, *done, Ok(()), now, effects)).await
        }
        Command::Assemble(turn) => {
            let key = "output/unet/diffusion_pytorch_model.safetensors".to_owned();
            let output = vec![v1::ObjectRef { key, size: 1 << 30, digest: "0".repeat(64) }];
            let result = Ok(("0".repeat(64), output));
            core.call(move |state, now, effects| state.assembled(&turn, result, now, effects)).await
        }
        Command::Report(turn) => {
            core.call(move |state, now, effects| state.reported(&turn, Ok(v1::Figures::default()), now, effects)).await
        }
        Command::Wake(_) | Command::Say { .. } => Ok(()),
        Command::Discard { .. } | Command::Reclaim(_) | Command::Manifest(_) => Ok(()),
    };
}
