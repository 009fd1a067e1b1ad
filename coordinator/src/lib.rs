//! deltaconv's coordinator: plans jobs, leases their tasks to workers, records what they did, and assembles the result.
//!
//! `schedule` decides, without IO; `core` is the thread that makes its decisions durable; `api` and `carry_out` are the
//! ways in and out. `simulation` runs all but `carry_out` without network and disk.

mod access;
mod api;
mod archive;
pub mod assemble;
pub mod backup;
pub mod bench;
mod carry_out;
mod core;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod manifest;
pub mod notify;
pub mod observe;
pub mod plan;
mod planted;
mod reclaim;
pub mod restore;
#[cfg(test)]
mod running;
pub mod schedule;
mod server;
pub mod simulation;
mod snapshot;
pub mod store;
mod term;
#[cfg(feature = "webhook")]
mod webhook;

pub use access::{Authority, AuthorityError, Issued, TlsFiles, TokenError};
pub use server::{Error, Options, run};
pub use snapshot::Options as Snapshots;
