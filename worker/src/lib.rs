//! deltaconv's worker: joins a coordinator, captures activations, trains blocks and evaluates students.
//!
//! `agent` talks to the coordinator and runs attempts; `capture`, `distill` and `evaluate` are the tasks; `teacher` is
//! the model that they work on, and `profile` looks at its attention.

mod accelerator;
pub mod agent;
pub mod bench;
mod blocks;
mod capture;
mod checkpoints;
mod codes;
mod container;
mod data;
mod distill;
mod evaluate;
mod finetune;
mod load;
mod logs;
mod metrics;
mod models;
mod optimiser;
pub mod probe;
pub mod profile;
pub mod sample;
mod shards;
mod stoppable;
mod student;
mod synthesise;
mod task;
pub mod teacher;

pub use accelerator::Choice as DeviceChoice;
pub use agent::{Admission, Error, Options, run};
pub use logs::AttemptLogs;
pub use shards::cache::Options as CacheOptions;
