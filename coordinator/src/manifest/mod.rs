//! What each step of a job came to, beside its objects: the job's record, and those of the step's tasks, which name every
//! object with its digest. A coordinator whose state is lost goes on from the last step that ended.
//!
//! A task is in one manifest, that of its step, so that all of a job's together have as many records as the job has.

mod read;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use read::{Found, find};
pub(crate) use write::{Error, write};
