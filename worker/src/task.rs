//! What every task has to work with: its job, its objects, and whoever watches over it.

use std::future::Future;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deltaconv_proto::code::Code;
use deltaconv_proto::ids::{AttemptId, InvalidId, TaskId};
use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::{bounds, images, pipeline, prompts, safetensors, shard, v1, weights};
use tokio::sync::Notify;

use crate::accelerator::Accelerator;
use crate::codes::{of_kernels, of_tensors};
use crate::models::Models;
use crate::shards::Cache;
use crate::{data, teacher};

/// Bytes of a failure's message, whatever a file had in it.
const LONGEST: usize = 4000;
/// How often an attempt that rests looks whether it has to end.
const LOOK: Duration = Duration::from_millis(50);

/// Why an attempt has to end early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The worker leaves: store what was reached, so that another can go on from there.
    Release,
    /// The lease is gone: touch nothing any more.
    Fenced,
}

/// Why an attempt did not end with an output.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It was told to stop.
    #[error("stopped")]
    Stopped(Stop),
    /// The coordinator's message lacks a part.
    #[error("the task came without its {0}; coordinator and worker may be of different versions")]
    Incomplete(&'static str),
    /// Numbers that no job has.
    #[error(transparent)]
    Bounds(#[from] bounds::Error),
    /// A kind of task that a later version brought.
    #[error(
        "this worker does not know the kind of task that it was given: it is of an earlier version than the coordinator"
    )]
    UnknownKind,
    /// An id that isn't one.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// An object can't be read or written.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// A shard that isn't what its digest promised, or can't be learned from.
    #[error("shard {key} can't be used: {source}")]
    Shard {
        /// Its key.
        key: String,
        /// From the manifest.
        digest: String,
        /// What is wrong.
        source: Box<shard::Error>,
    },
    /// Activations that can't be recorded.
    #[error("layer {layer}, samples {start} to {end}: {source}")]
    Activations {
        /// The layer.
        layer: String,
        /// First sample.
        start: u32,
        /// One past the last.
        end: u32,
        /// What is wrong.
        source: Box<shard::Error>,
    },
    /// The teacher can't be loaded or computed.
    #[error(transparent)]
    Teacher(#[from] teacher::Error),
    /// The data set can't be used.
    #[error(transparent)]
    Data(#[from] data::Error),
    /// The block can't be computed.
    #[error(transparent)]
    Block(#[from] deltaconv_kernels::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The prompts can't be read.
    #[error(transparent)]
    Prompts(Box<prompts::Error>),
    /// The images can't be used.
    #[error(transparent)]
    Images(Box<images::Error>),
    /// The parts of the pipeline beside the denoiser can't be used.
    #[error(transparent)]
    Pipeline(Box<pipeline::Error>),
    /// The files of a model's weights can't be found, or not trusted.
    #[error(transparent)]
    Weights(Box<weights::Error>),
    /// A safetensors object can't be read or made.
    #[error(transparent)]
    Safetensors(#[from] safetensors::Error),
    /// What another process or an operator made isn't what it should be.
    #[error("{what} is not as expected: {reason}")]
    Unexpected {
        /// What it is: a file, by key.
        what: String,
        /// What is wrong.
        reason: String,
        /// Names the cause.
        code: Code,
    },
    /// Training went wrong again and again.
    #[error("training of {layer} diverged at step {step} for good: {story}; lower the recipe's learning_rate")]
    Diverged {
        /// The layer.
        layer: String,
        /// The step.
        step: u64,
        /// Each time.
        story: String,
    },
}

impl From<prompts::Error> for Error {
    fn from(error: prompts::Error) -> Self {
        Self::Prompts(Box::new(error))
    }
}

impl From<images::Error> for Error {
    fn from(error: images::Error) -> Self {
        Self::Images(Box::new(error))
    }
}

impl From<pipeline::Error> for Error {
    fn from(error: pipeline::Error) -> Self {
        Self::Pipeline(Box::new(error))
    }
}

impl From<weights::Error> for Error {
    fn from(error: weights::Error) -> Self {
        Self::Weights(Box::new(error))
    }
}

impl Error {
    /// Names the cause, and what helps.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Stopped(_) => Code::Interrupted,
            Self::Incomplete(_) | Self::UnknownKind => Code::VersionsDiffer,
            Self::Bounds(error) => error.code(),
            Self::Id(error) => error.code(),
            Self::Objects(error) => error.code(),
            Self::Shard { .. } => Code::ShardUnusable,
            Self::Activations { source, .. } => source.code(),
            Self::Teacher(error) => error.code(),
            Self::Data(error) => error.code(),
            Self::Block(error) => of_kernels(error),
            Self::Tensor(error) => of_tensors(error),
            Self::Prompts(error) => error.code(),
            Self::Images(error) => error.code(),
            Self::Pipeline(error) => error.code(),
            Self::Weights(error) => error.code(),
            Self::Safetensors(error) => error.code(),
            Self::Unexpected { code, .. } => *code,
            Self::Diverged { .. } => Code::Diverged,
        }
    }

    /// The error as the coordinator is told. A shard that can't be trusted is named, so that it is captured again.
    pub(crate) fn failure(&self) -> v1::Failure {
        let broken_shard = match self {
            Self::Objects(objects::Error::Broken { key, expected, found }) => Some((key, expected, found.clone())),
            Self::Shard { key, digest, source } => Some((key, digest, source.to_string())),
            _ => None,
        };
        let mut message = self.code().before(self);
        message.truncate(message.floor_char_boundary(LONGEST));
        v1::Failure {
            message,
            of_device: false,
            broken_shard: broken_shard.map(|(key, expected, found)| v1::BrokenShard {
                key: key.clone(),
                expected_digest: expected.clone(),
                found,
            }),
        }
    }
}

/// What passes between an attempt's thread and the agent.
#[derive(Debug, Default)]
pub(crate) struct Supervision {
    stop: AtomicU8,
    progress: Mutex<v1::Progress>,
    /// Notified of what the coordinator is to know at once.
    news: Arc<Notify>,
}

impl Supervision {
    /// Of an attempt that notifies `news` of each checkpoint.
    pub(crate) fn new(news: Arc<Notify>) -> Self {
        Self { news, ..Self::default() }
    }

    pub(crate) fn stop(&self, stop: Stop) {
        let code = match stop {
            Stop::Release => 1,
            Stop::Fenced => 2,
        };
        self.stop.fetch_max(code, Ordering::Relaxed);
    }

    pub(crate) fn progress(&self) -> v1::Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is reported next.
    fn report(&self, change: impl FnOnce(&mut v1::Progress)) {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Reports a checkpoint, unless a newer one is reported already.
    pub(crate) fn reached(&self, checkpoint: v1::Checkpoint) {
        self.report(|progress| {
            if progress.checkpoint.as_ref().is_none_or(|known| known.step < checkpoint.step) {
                progress.checkpoint = Some(checkpoint);
            }
        });
        self.news.notify_one();
    }

    /// Does nothing for so long, or until the attempt is told to stop.
    pub(crate) fn rest(&self, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time && self.stopped().is_none() {
            std::thread::sleep(LOOK);
        }
    }

    pub(crate) fn stopped(&self) -> Option<Stop> {
        match self.stop.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(Stop::Release),
            _ => Some(Stop::Fenced),
        }
    }
}

/// What an attempt works with. It runs on a thread of its own and may block.
pub(crate) struct Context {
    pub(crate) job: v1::JobSpec,
    pub(crate) plan: v1::JobPlan,
    /// The job's synthesised latents, where the task reads them.
    pub(crate) latents: Vec<v1::ShardOfRange>,
    pub(crate) task: TaskId,
    pub(crate) attempt: AttemptId,
    /// Under the job's prefix.
    pub(crate) objects: Objects,
    pub(crate) checkpoint_interval: Duration,
    pub(crate) models: Arc<Models>,
    pub(crate) accelerator: Accelerator,
    pub(crate) cache: Cache,
    pub(crate) supervision: Arc<Supervision>,
    pub(crate) runtime: tokio::runtime::Handle,
}

impl Context {
    /// Waits for IO.
    pub(crate) fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Whether the attempt has to end, and how.
    pub(crate) fn stopped(&self) -> Option<Stop> {
        self.supervision.stopped()
    }

    /// Ends the attempt if it has to.
    pub(crate) fn check_stop(&self) -> Result<(), Error> {
        self.stopped().map_or(Ok(()), |stop| Err(Error::Stopped(stop)))
    }

    /// Changes what is reported next.
    pub(crate) fn report(&self, change: impl FnOnce(&mut v1::Progress)) {
        self.supervision.report(change);
    }
}
