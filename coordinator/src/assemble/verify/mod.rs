//! Whether what a worker says it wrote is what its task asked for. Only then is it committed.
//!
//! The worker is not trusted: sizes are checked against what the shapes imply before anything is read, and every message
//! says what was expected and what was found.

pub(crate) mod block;
mod evaluation;
mod finetuned;
mod latents;
mod shards;
#[cfg(test)]
mod tests;

use deltaconv_proto::code::Code;
use deltaconv_proto::ids::{AttemptId, TaskId};
use deltaconv_proto::shard::Contents;
use deltaconv_proto::v1::{JobPlan, ObjectRef, done::Output, task_spec::Kind};
use deltaconv_proto::{digest, header, keys, objects, objects::Objects, shard};

use super::tensors;
use crate::observe::report::PartError;

/// What an output must be.
#[derive(Clone, Copy, Debug)]
pub struct Expectation<'a> {
    /// The job's plan.
    pub plan: &'a JobPlan,
    /// What its shards hold.
    pub contents: Contents,
    /// The task that was leased.
    pub task: &'a TaskId,
    /// The attempt that reports.
    pub attempt: &'a AttemptId,
    /// What the task asked for.
    pub kind: &'a Kind,
}

/// Why an output is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The object is missing or broken, or the store failed.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// The header can't be trusted.
    #[error(transparent)]
    Header(#[from] header::Error),
    /// The output of another kind of task.
    #[error("the output is that of a {found} task; expected that of a {expected} task")]
    Kind {
        /// The task's kind.
        expected: &'static str,
        /// The output's.
        found: &'static str,
    },
    /// The attempt names no object.
    #[error("the output names no object; expected {expected}")]
    NoObject {
        /// The key it should have.
        expected: String,
    },
    /// An object that this attempt doesn't write.
    #[error("the output lies at {found:?}; expected {expected}")]
    Key {
        /// The attempt's key.
        expected: String,
        /// The reported one.
        found: String,
    },
    /// A digest that is none.
    #[error("{key}: {found:?} is no BLAKE3 digest; expected 64 hexadecimal digits")]
    Digest {
        /// The object.
        key: String,
        /// The reported digest.
        found: String,
    },
    /// An object that can't hold what it should.
    #[error("{key} has {found} bytes; expected {least} to {most}")]
    Size {
        /// The object.
        key: String,
        /// Bytes that the tensors take.
        least: u64,
        /// Those and the largest header.
        most: u64,
        /// Its size.
        found: u64,
    },
    /// An object of another size than reported.
    #[error("{key} has {found} bytes; {expected} were reported")]
    OtherSize {
        /// The object.
        key: String,
        /// What was reported.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// Not one object for each of the layers that were asked for.
    #[error("an object of each of {found:?}; expected one of each of {expected:?}")]
    Layers {
        /// The layers that were asked for.
        expected: Vec<String>,
        /// Those that were reported.
        found: Vec<String>,
    },
    /// A shard of another form than its layer and range have.
    #[error("{key}: {source}")]
    Shard {
        /// The object.
        key: String,
        /// What is wrong.
        source: shard::Error,
    },
    /// The tensors are not the expected ones.
    #[error("{key}: {source}")]
    Tensors {
        /// The object.
        key: String,
        /// What is wrong.
        source: tensors::Error,
    },
    /// A part of the evaluation can't be read.
    #[error("{key}: {source}")]
    Part {
        /// The object.
        key: String,
        /// What is wrong.
        source: PartError,
    },
    /// A value that no such output has.
    #[error("{what} is {found}; expected {expected}")]
    Value {
        /// What it is of.
        what: String,
        /// The value.
        found: String,
        /// What it could be.
        expected: String,
    },
    /// The process is ending.
    #[error("checking {key} was interrupted: {reason}")]
    Interrupted {
        /// The object.
        key: String,
        /// What the runtime says.
        reason: String,
    },
    /// The task itself lacks a part; the worker is not to blame.
    #[error("the task has no {0}")]
    Task(&'static str),
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Objects(error) | Self::Header(header::Error::Objects(error)) => error.code(),
            Self::Header(header::Error::Format { .. } | header::Error::TooLong { .. })
            | Self::Kind { .. }
            | Self::NoObject { .. }
            | Self::Key { .. }
            | Self::Digest { .. }
            | Self::Size { .. }
            | Self::OtherSize { .. }
            | Self::Layers { .. }
            | Self::Shard { .. }
            | Self::Tensors { .. }
            | Self::Part { .. }
            | Self::Value { .. } => Code::NotAccepted,
            Self::Interrupted { .. } => Code::Interrupted,
            Self::Task(_) => Code::VersionsDiffer,
        }
    }

    /// Whether the output is at fault, rather than the store or the task: then the attempt failed. Otherwise the check
    /// can be repeated.
    pub fn is_of_output(&self) -> bool {
        let of_store =
            |error: &objects::Error| matches!(error, objects::Error::Store { .. } | objects::Error::Unsupported { .. });
        match self {
            Self::Objects(error) | Self::Header(header::Error::Objects(error)) => !of_store(error),
            Self::Task(_) | Self::Interrupted { .. } => false,
            _ => true,
        }
    }
}

/// Checks a reported output of an attempt. A shard's numbers are not read: whoever reads it checks its digest.
///
/// # Errors
/// What was expected and what was found; see [`Error::is_of_output`] for whose fault it is.
pub async fn verify(objects: &Objects, output: &Output, expectation: &Expectation<'_>) -> Result<(), Error> {
    match (output, expectation.kind) {
        (Output::Synthesise(output), Kind::Synthesise(task)) => {
            latents::check(objects, output, task, expectation).await
        }
        (Output::Capture(output), Kind::Capture(task)) => shards::check(objects, output, task, expectation).await,
        (Output::Distill(output), Kind::Distill(task)) => block::verify(objects, output, task, expectation).await,
        (Output::Finetune(output), Kind::Finetune(task)) => finetuned::verify(objects, output, task, expectation).await,
        (Output::Evaluate(output), Kind::Evaluate(task)) => {
            evaluation::verify(objects, output, task, expectation).await
        }
        (output, kind) => Err(Error::Kind { expected: name_of_kind(kind), found: name_of_output(output) }),
    }
}

/// Looks at every number of an object, which takes longer than an async thread may be held.
async fn off_thread<T: Send + 'static>(key: &str, look: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let looked = tokio::task::spawn_blocking(look).await;
    looked.map_err(|e| Error::Interrupted { key: key.to_owned(), reason: e.to_string() })
}

fn name_of_kind(kind: &Kind) -> &'static str {
    match kind {
        Kind::Synthesise(_) => "synthesise",
        Kind::Capture(_) => "capture",
        Kind::Distill(_) => "distill",
        Kind::Finetune(_) => keys::FINETUNE,
        Kind::Evaluate(_) => "evaluate",
    }
}

fn name_of_output(output: &Output) -> &'static str {
    match output {
        Output::Synthesise(_) => "synthesise",
        Output::Capture(_) => "capture",
        Output::Distill(_) => "distill",
        Output::Finetune(_) => keys::FINETUNE,
        Output::Evaluate(_) => "evaluate",
    }
}

/// Checks what a report says of an object, before the object is asked for: its key, the form of its digest, and that its
/// size is that of `tensor_bytes` and a header of at most `header_bytes`.
fn check_ref(object: &ObjectRef, key: &str, tensor_bytes: u64, header_bytes: u64) -> Result<(), Error> {
    let quoted = |text: &str| text.chars().take(300).collect::<String>();
    if object.key != key {
        return Err(Error::Key { expected: key.to_owned(), found: quoted(&object.key) });
    }
    if !digest::is_valid(&object.digest) {
        return Err(Error::Digest { key: key.to_owned(), found: quoted(&object.digest) });
    }
    let (least, most) = (tensor_bytes, tensor_bytes.saturating_add(header_bytes));
    if !(least..=most).contains(&object.size) {
        return Err(Error::Size { key: key.to_owned(), least, most, found: object.size });
    }
    Ok(())
}
