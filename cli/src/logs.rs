//! Logs of the long-running processes.

use std::io;

use clap::ValueEnum;
use deltaconv_worker::AttemptLogs;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// How a process writes its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// For programs: an object a line
    Json,
}

/// What a long-running process says of its work.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Logging {
    /// How the log is written to stderr; RUST_LOG says how much of it
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t, env = "DELTACONV_LOG_FORMAT")]
    log_format: LogFormat,
}

impl Logging {
    /// Sends `tracing` events to stderr: from `info` up, or what RUST_LOG says; in colour on a terminal only. What is said of
    /// attempts goes to their logs, too.
    pub(crate) fn start(&self) {
        start(self.log_format);
    }
}

/// As [`Logging::start`].
pub(crate) fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let written = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(crate::output::colours());
    let written = match format {
        LogFormat::Text => written.with_filter(filter).boxed(),
        LogFormat::Json => written.json().flatten_event(true).with_filter(filter).boxed(),
    };
    let ours = ["deltaconv_worker", "deltaconv_kernels", "deltaconv_proto"];
    let of_attempts = AttemptLogs.with_filter(Targets::new().with_targets(ours.map(|ours| (ours, LevelFilter::DEBUG))));
    tracing_subscriber::registry().with(written).with(of_attempts).init();
}
