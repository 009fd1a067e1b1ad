//! `deltaconv demo`: a whole conversion on this machine, with real processes.

use std::ffi::OsString;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;
use deltaconv_proto::v1;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::args::Connection;
use crate::args::Output;
use crate::client::Client;
use crate::commands::{interrupted, status, watch};
use crate::ending::Signals;
use crate::error::Error;
use crate::job_file::{self, DataTable, EvaluationTable};
use crate::preset::Preset;
use crate::progress::{Beside, Progress};
use crate::shipped::Teacher;
use crate::watching::{self, Watcher as _};
use crate::{output, table};

mod folder;
mod outcome;
mod processes;

use folder::Folder;
use outcome::Outcome;
use processes::{Processes, Program};

/// Opening the state takes longest after a crash, when it is copied first.
const LISTENS_WITHIN: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The model to convert
    #[arg(long, value_enum, value_name = "NAME", default_value = "tiny-unet")]
    teacher: Teacher,
    /// Folder for everything that the demo writes
    #[arg(long, value_name = "DIR", default_value = "deltaconv-demo")]
    out: PathBuf,
    /// Worker processes
    #[arg(long, value_name = "N", default_value = "2")]
    workers: NonZero<usize>,
    /// Keys data order, noise and initial weights
    #[arg(long, value_name = "N", default_value_t = DataTable::default().seed)]
    seed: u64,
    /// Keep recorded activations and checkpoints, which take more than a gigabyte
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    scale: Scale,
}

/// Makes the demo smaller than it is, for tests.
#[derive(Debug, Args)]
struct Scale {
    #[arg(long, hide = true)]
    samples: Option<u32>,
    #[arg(long, hide = true)]
    held_out_samples: Option<u32>,
    #[arg(long, hide = true)]
    shard_samples: Option<u32>,
    #[arg(long, hide = true)]
    steps: Option<u32>,
    #[arg(long, hide = true)]
    warmup_steps: Option<u32>,
    #[arg(long, hide = true)]
    evaluate_samples: Option<u32>,
    #[arg(long, hide = true)]
    evaluate_prompts: Option<u32>,
    #[arg(long, hide = true)]
    ddim_steps: Option<u32>,
    #[arg(long, hide = true)]
    lease_ttl: Option<String>,
    #[arg(long, hide = true)]
    checkpoint_interval: Option<String>,
}

/// How a demo that was not stopped by an error ended.
enum Ended {
    Done(Outcome),
    /// The job failed or was cancelled.
    Undone(Box<v1::JobStatus>),
    Interrupted,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let mut folder = Folder::open(&arguments.out)?;
    let spec = spec(&arguments, &folder)?;
    if let Some(outcome) = folder.bind(&spec)? {
        let out = arguments.out.display();
        output::say(&format!(
            "this demo is finished; to convert again, remove {out} or name another folder with --out"
        ));
        tell(&outcome, &arguments);
        return Ok(ExitCode::SUCCESS);
    }
    arguments.teacher.extract(&folder.path(".teacher").join(arguments.teacher.name()))?;

    match convert(&arguments, &folder, &spec).await? {
        Ended::Done(outcome) => {
            folder.finish(&outcome)?;
            if !arguments.keep {
                let freed = table::bytes(folder.reclaim()?);
                output::say(&format!("removed recorded activations and checkpoints, {freed}; --keep keeps them"));
            }
            tell(&outcome, &arguments);
            Ok(ExitCode::SUCCESS)
        }
        Ended::Undone(last) => {
            output::print(&status::describe(&last));
            let logs = folder.path("logs");
            output::say(&format!("{} may say why; the same command tries again", logs.display()));
            Ok(watch::exit_code(&last))
        }
        Ended::Interrupted => {
            output::say("stopped; the same command again goes on from here");
            Ok(interrupted())
        }
    }
}

fn tell(outcome: &Outcome, arguments: &Arguments) {
    match arguments.output.data() {
        None => output::print(&outcome.describe(arguments.teacher.name(), &arguments.out)),
        Some(data) => data.print(&outcome.told(&arguments.out)),
    }
}

fn spec(arguments: &Arguments, folder: &Folder) -> Result<v1::JobSpec, Error> {
    let scale = &arguments.scale;
    let mut recipe = Preset::Fast.recipe();
    let mut evaluation = EvaluationTable::default();
    for (field, asked) in [
        (&mut recipe.samples, scale.samples),
        (&mut recipe.held_out_samples, scale.held_out_samples),
        (&mut recipe.shard_samples, scale.shard_samples),
        (&mut recipe.steps, scale.steps),
        (&mut recipe.warmup_steps, scale.warmup_steps),
        (&mut evaluation.samples, scale.evaluate_samples),
        (&mut evaluation.prompts, scale.evaluate_prompts),
        (&mut evaluation.ddim_steps, scale.ddim_steps),
    ] {
        *field = asked.unwrap_or(*field);
    }
    let teacher_url = folder.url(&format!(".teacher/{}", arguments.teacher.name()))?;
    let held_out_latents = DataTable::default().held_out_latents;
    let data =
        v1::Data { url: teacher_url.clone(), seed: arguments.seed, held_out_latents, synthesis: None, images: None };
    Ok(job_file::spec(arguments.teacher.name().into(), teacher_url, folder.url("")?, data, recipe, evaluation))
}

/// Runs the job to its end with processes of its own, of which none is left afterwards.
async fn convert(arguments: &Arguments, folder: &Folder, spec: &v1::JobSpec) -> Result<Ended, Error> {
    let mut signals = Signals::new()?;
    let mut progress = Progress::new(Beside::default());
    let hurry = CancellationToken::new();
    let mut coordinators = Processes::new(progress.voice(), hurry.clone());
    let mut workers = Processes::new(progress.voice(), hurry.clone());

    let ended = tokio::select! {
        ended = drive(arguments, folder, spec, &mut progress, &mut coordinators, &mut workers) => ended,
        () = signals.next() => Ok(Ended::Interrupted),
    };
    progress.finish();

    // Workers hand their tasks back while there is somebody to take them.
    let stopping = async {
        workers.stop().await;
        coordinators.stop().await;
    };
    let mut stopping = std::pin::pin!(stopping);
    tokio::select! {
        () = &mut stopping => {}
        () = signals.next() => {
            hurry.cancel();
            stopping.await;
        }
    }
    ended
}

async fn drive(
    arguments: &Arguments,
    folder: &Folder,
    spec: &v1::JobSpec,
    progress: &mut Progress,
    coordinators: &mut Processes,
    workers: &mut Processes,
) -> Result<Ended, Error> {
    let address_file = folder.address_file();
    // One from an earlier run would be taken for this run's.
    if address_file.exists() {
        std::fs::remove_file(&address_file).map_err(Error::file("remove", &address_file))?;
    }
    coordinators.start(coordinator(arguments, folder));
    let url = tokio::select! {
        url = listening(&address_file, folder) => url?,
        error = coordinators.failure() => return Err(error),
    };
    for number in 1..=arguments.workers.get() {
        workers.start(worker(number, &url, arguments, folder));
    }
    tokio::select! {
        last = follow(&url, spec, progress) => last.map(ended),
        error = coordinators.failure() => Err(error),
        error = workers.failure() => Err(error),
    }
}

async fn follow(url: &str, spec: &v1::JobSpec, progress: &mut Progress) -> Result<v1::JobStatus, Error> {
    // The coordinator was there a moment ago; if it isn't now, it is being started again.
    // The folder is the demo's alone, and its state may be gone.
    let to = &Connection::to(url);
    let submit = || async { Client::connect(to).await?.submit(spec.clone(), true).await };
    let submitted = watching::patiently(submit).await?;
    if submitted.existed {
        progress.say(&format!("going on with {}", submitted.job_id));
    }
    watching::follow(to, &submitted.job_id, progress).await
}

fn ended(last: v1::JobStatus) -> Ended {
    match Outcome::of(&last) {
        Some(outcome) if watching::state(&last) == "done" => Ended::Done(outcome),
        _ => Ended::Undone(Box::new(last)),
    }
}

fn coordinator(arguments: &Arguments, folder: &Folder) -> Program {
    let address_file = folder.address_file();
    let mut fixed: Vec<OsString> = vec!["coordinator".into(), "--exit-with-parent".into()];
    fixed.extend(["--state".into(), folder.path("state").into()]);
    fixed.extend(["--address-file".into(), address_file.clone().into()]);
    for (flag, value) in
        [("--lease-ttl", &arguments.scale.lease_ttl), ("--checkpoint-interval", &arguments.scale.checkpoint_interval)]
    {
        fixed.extend(value.iter().flat_map(|value| [flag.into(), value.into()]));
    }
    let arguments = move || {
        // Started again, it listens where the workers look for it.
        let port = port(&address_file).unwrap_or(0);
        let listen = ["--listen".into(), format!("127.0.0.1:{port}").into()];
        fixed.iter().cloned().chain(listen).collect()
    };
    Program { name: "coordinator".into(), arguments: Box::new(arguments), log: folder.log("coordinator") }
}

fn worker(number: usize, url: &str, arguments: &Arguments, folder: &Folder) -> Program {
    let name = format!("worker-{number}");
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = (cores / arguments.workers.get()).max(1);
    let token_file = folder.path("state").join("worker.token");
    let mut fixed: Vec<OsString> = vec!["worker".into(), "--exit-with-parent".into()];
    fixed.extend(["--coordinator".into(), url.into(), "--token-file".into(), token_file.into()]);
    fixed.extend(["--name".into(), name.clone().into(), "--threads".into(), threads.to_string().into()]);
    Program { log: folder.log(&name), name, arguments: Box::new(move || fixed.clone()) }
}

/// The coordinator's URL, once it listens.
async fn listening(address_file: &Path, folder: &Folder) -> Result<String, Error> {
    let appears = async {
        loop {
            if let Some(url) = read_address(address_file) {
                return url;
            }
            time::sleep(LOOK_AGAIN).await;
        }
    };
    let late = |_| Error::NotListening { seconds: LISTENS_WITHIN.as_secs(), log: folder.log("coordinator") };
    time::timeout(LISTENS_WITHIN, appears).await.map_err(late)
}

fn read_address(address_file: &Path) -> Option<String> {
    let url = std::fs::read_to_string(address_file).ok()?;
    let url = url.trim();
    (!url.is_empty()).then(|| url.to_owned())
}

fn port(address_file: &Path) -> Option<u16> {
    url::Url::parse(&read_address(address_file)?).ok()?.port()
}
