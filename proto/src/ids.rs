//! Newtypes for every id, so that a task can't be passed where a worker is meant. Cheap to clone: a coordinator holds each many
//! times.

use std::fmt;
use std::sync::Arc;

use crate::code::Code;

/// An id that can't be used in keys, logs and terminals as it is.
#[derive(Debug, thiserror::Error)]
#[error(
    "{kind} {value:?} is not valid: 1 to {MAX_LENGTH} characters of a-z, A-Z, 0-9, '.', '_', '-', '/' are, without '..' or an empty part"
)]
pub struct InvalidId {
    kind: &'static str,
    value: String,
}

impl InvalidId {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        Code::Name
    }
}

const MAX_LENGTH: usize = 256;

fn validate(kind: &'static str, value: &str) -> Result<(), InvalidId> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    let parts_are_names = value.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if value.len() <= MAX_LENGTH && value.chars().all(allowed) && parts_are_names {
        return Ok(());
    }
    // A hostile peer chooses the value; the message quotes no more than is needed to recognise it.
    let value = value.chars().take(64).collect();
    Err(InvalidId { kind, value })
}

macro_rules! id {
    ($name:ident, $kind:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes an id from outside. Fails on characters that keys, logs or terminals can't carry.
            pub fn new(value: impl Into<String>) -> Result<Self, InvalidId> {
                let value = value.into();
                validate($kind, &value)?;
                Ok(Self(value.into()))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(JobId, "job id", "One conversion: the job's name and a number, `tiny-unet-1`.");
id!(TaskId, "task id", "One task: its job, then where it belongs, `tiny-unet-1/r0/distill/mid_block.attentions.0…`.");
id!(AttemptId, "attempt id", "One lease of a task, unique over all coordinators that ever served the job.");
id!(WorkerId, "worker id", "A worker process that joined.");

impl TaskId {
    /// The task `local` of `job`.
    pub fn of(job: &JobId, local: &str) -> Result<Self, InvalidId> {
        Self::new(format!("{job}/{local}"))
    }

    /// The job that it belongs to.
    pub fn job(&self) -> &str {
        self.0.split_once('/').map_or(self.as_str(), |(job, _)| job)
    }

    /// The task's name within its job: what stands in keys under the job's prefix.
    pub fn local(&self) -> &str {
        self.0.split_once('/').map_or(self.as_str(), |(_, local)| local)
    }
}

impl AttemptId {
    /// The epoch of its lease, which orders a task's attempts; 0 for a name that none of ours is.
    pub fn epoch(&self) -> u64 {
        self.0.split('-').nth(1).and_then(|epoch| epoch.parse().ok()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_would_leave_a_prefix_are_refused() {
        for bad in ["", "/a", "a/", "a//b", "a/../b", "..", "a b", "a\n", "ä", &"x".repeat(257)] {
            assert!(TaskId::new(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(TaskId::new("tiny-unet-1/r0/distill/up_blocks.1.attentions.0").is_ok());
    }

    #[test]
    fn a_task_knows_its_name_within_the_job() {
        let job = JobId::new("tiny-1").expect("valid");
        let task = TaskId::of(&job, "r0/capture/000000-000064").expect("valid");
        assert_eq!(task.local(), "r0/capture/000000-000064");
    }
}
