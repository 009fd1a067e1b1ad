//! Where a job's objects lie, as keys under its prefix.

mod coordinators;
mod written;

pub use coordinators::{Manifest, term, term_of};
pub use written::{Kind, Written};

use crate::ids::{AttemptId, JobId, TaskId};
use crate::v1::SampleRange;

/// The job as it was submitted.
pub const SPEC: &str = "spec.json";
/// Everything that the operator asked for: the converted model.
pub const OUTPUT: &str = "output";
/// What conversion achieved, for people and for scripts.
pub const REPORT: &str = "report";
/// What each step came to, for a coordinator whose state was lost.
pub const MANIFESTS: &str = "manifests";
/// Which coordinators have written here, one after the other.
pub const TERMS: &str = "coordinator";
/// The blocks alone, within [`OUTPUT`].
pub const BLOCKS: &str = "blocks.safetensors";
/// The converted model's description, within [`OUTPUT`].
pub const DESCRIPTION: &str = "deltaconv.json";
/// In it, what loads the model in diffusers.
pub const LOADER: &str = "deltaconv_diffusers.py";

/// What blocks become when they are trained together; the task's name within its job, too.
pub const FINETUNE: &str = "finetune";

/// What was said while tasks were worked on.
pub const LOGS: &str = "logs";

/// What follows the attempt in the key of what its training started from.
const START: &str = "-start";
/// What follows the attempt in the key of its log.
const LOG: &str = ".jsonl";

/// Whether a part of a key has nothing in it that ids don't have.
fn is_plain(part: &str) -> bool {
    part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// A range of samples as it stands in keys and task ids: fixed width, so that keys sort by sample.
pub fn range(range: &SampleRange) -> String {
    format!("{:08}-{:08}", range.start, range.end)
}

/// Latents that one attempt's teacher sampled, with their prompts' embeddings. Attempts have keys of their own, since a GPU
/// and a processor don't round alike: a late attempt must not put its bytes where another's are listed with their digest.
pub fn latents(samples: &SampleRange, attempt: &AttemptId) -> String {
    format!("{}{attempt}.safetensors", latents_of(samples))
}

/// What the keys of one range's latents begin with, whatever the attempt.
pub fn latents_of(samples: &SampleRange) -> String {
    format!("rounds/0/latents/{}-", range(samples))
}

/// One attempt's recorded activations of one layer for one range of samples.
pub fn shard(round: u32, layer: &str, samples: &SampleRange, attempt: &AttemptId) -> String {
    format!("rounds/{round}/activations/{layer}/{}-{attempt}.safetensors", range(samples))
}

/// The trained block of one attempt.
pub fn block(round: u32, layer: &str, attempt: &AttemptId) -> String {
    format!("rounds/{round}/blocks/{layer}/{attempt}.safetensors")
}

/// The block of one layer after all were trained together, by one attempt.
pub fn finetuned(layer: &str, attempt: &AttemptId) -> String {
    format!("{FINETUNE}/blocks/{layer}/{attempt}.safetensors")
}

/// What one attempt's training started from, where a regression gave that.
pub fn start(layer: &str, attempt: &AttemptId) -> String {
    format!("rounds/0/blocks/{layer}/{attempt}{START}.safetensors")
}

/// A checkpoint of one attempt.
pub fn checkpoint(task: &TaskId, attempt: &AttemptId, step: u64) -> String {
    format!("checkpoints/{}/{attempt}-{step:08}.safetensors", task.local())
}

/// What happened to a job that is over.
pub fn events(job: &JobId) -> String {
    format!("{REPORT}/events-{job}.jsonl")
}

/// What one attempt said.
pub fn log(task: &TaskId, attempt: &AttemptId) -> String {
    format!("{}/{attempt}{LOG}", logs_of(task))
}

/// Where the logs of a task's attempts lie.
pub fn logs_of(task: &TaskId) -> String {
    format!("{LOGS}/{}", task.local())
}

/// What one attempt at a part of the evaluation found.
pub fn evaluation(task: &TaskId, attempt: &AttemptId) -> String {
    format!("{}/{attempt}.safetensors", task.local())
}
