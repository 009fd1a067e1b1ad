//! What a job is doing and what came of it, for people and for scripts.

pub mod report;
