//! deltaconv's coordinator: plans jobs, leases their tasks to workers, records what they did, and assembles the result.
//!
//! `schedule` decides, without IO; `core` is the thread that makes its decisions durable; `api` and `carry_out` are the
//! ways in and out. `simulation` runs all but `carry_out` without network and disk.

mod api;
pub mod assemble;
pub mod bench;
mod carry_out;
mod core;
pub mod observe;
pub mod plan;
mod planted;
mod reclaim;
pub mod schedule;
mod server;
pub mod simulation;
pub mod store;

pub use api::TokenError;
pub use server::{Error, Options, run};
