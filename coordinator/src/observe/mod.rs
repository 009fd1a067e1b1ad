//! What a job is doing and what came of it, for people and for scripts.

pub mod attention_distance;
mod escape;
pub(crate) mod history;
mod layer_name;
pub(crate) mod metrics;
pub mod report;
