//! Logs of the long-running processes.

use std::io;

use tracing_subscriber::EnvFilter;

/// Sends `tracing` events to stderr: from `info` up, or what RUST_LOG says; in colour on a terminal only.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(crate::output::colours())
        .init();
}
