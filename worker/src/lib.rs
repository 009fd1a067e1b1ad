//! deltaconv's worker: joins a coordinator, captures activations, trains blocks and evaluates students.

pub mod teacher;

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

/// How a worker runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// URL of the coordinator, `http://host:port`.
    pub coordinator: String,
    /// File with the token to join with; waited for if it isn't there yet.
    pub token_file: PathBuf,
    /// What people call this worker.
    pub name: String,
    /// Threads to compute with.
    pub threads: usize,
}

/// What keeps a worker from running.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

/// Joins and works until `shutdown`; waits for a coordinator that isn't there (yet).
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let _ = (options, shutdown);
    Ok(())
}
