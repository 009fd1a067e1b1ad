//! What this worker measures of itself, in the text format of OpenMetrics. docs/metrics.md has all of it.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deltaconv_proto::objects::traffic::{self, Direction, Transfer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

struct Metrics {
    registry: Registry,
    step: Histogram,
    read: Histogram,
    write: Histogram,
    read_bytes: Counter<u64, AtomicU64>,
    written_bytes: Counter<u64, AtomicU64>,
}

impl Metrics {
    fn new() -> Self {
        // From a tenth of a millisecond to a minute and a half.
        let seconds = || Histogram::new(exponential_buckets(1e-4, 2.5, 16));
        let (step, read, write) = (seconds(), seconds(), seconds());
        let (read_bytes, written_bytes) = (Counter::default(), Counter::default());
        let mut registry = Registry::default();
        let help = "Time of one step of a block's training";
        registry.register_with_unit("deltaconv_worker_step_duration", help, Unit::Seconds, step.clone());
        let help = "Time to read an object, or a part of one, from a store";
        registry.register_with_unit("deltaconv_worker_store_read_duration", help, Unit::Seconds, read.clone());
        let help = "Time to write an object, or a part of one, to a store";
        registry.register_with_unit("deltaconv_worker_store_write_duration", help, Unit::Seconds, write.clone());
        let help = "What was read from stores";
        registry.register_with_unit("deltaconv_worker_store_read", help, Unit::Bytes, read_bytes.clone());
        let help = "What was written to stores";
        registry.register_with_unit("deltaconv_worker_store_written", help, Unit::Bytes, written_bytes.clone());
        Self { registry, step, read, write, read_bytes, written_bytes }
    }
}

/// Counts what goes to and from stores from now on.
pub(crate) fn start() {
    traffic::observe(|Transfer { direction, bytes, took }| {
        let (duration, count) = match direction {
            Direction::Read => (&METRICS.read, &METRICS.read_bytes),
            Direction::Write => (&METRICS.write, &METRICS.written_bytes),
        };
        duration.observe(took.as_secs_f64());
        count.inc_by(bytes);
    });
}

/// A step was taken.
pub(crate) fn stepped(took: Duration) {
    METRICS.step.observe(took.as_secs_f64());
}

/// Bytes read from and written to stores so far.
pub(crate) fn transferred() -> [u64; 2] {
    [&METRICS.read_bytes, &METRICS.written_bytes].map(|count| count.inner().load(Ordering::Relaxed))
}

/// All of it.
pub(crate) fn text() -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = encode(&mut text, &METRICS.registry);
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_was_measured_is_told() {
        stepped(Duration::from_millis(3));
        let text = text();
        let count = text.lines().find_map(|line| line.strip_prefix("deltaconv_worker_step_duration_seconds_count "));
        assert!(count.and_then(|count| count.parse::<u64>().ok()).is_some_and(|count| count > 0), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    /// The coordinator's test has the rest of the names.
    #[test]
    fn the_dashboard_and_the_docs_use_metrics_that_exist() {
        let exposed = text();
        let named: BTreeSet<&str> = exposed.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
        let files = [
            include_str!("../../deploy/monitoring/dashboard.json"),
            include_str!("../../deploy/monitoring/alerts.yaml"),
            include_str!("../../docs/metrics.md"),
        ];
        for file in files {
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let used = file.split(|c| !is_part(c)).filter(|word| word.starts_with("deltaconv_worker_"));
            let unknown: Vec<&str> = used.filter(|word| !named.contains(word)).collect();
            assert!(unknown.is_empty(), "{unknown:?} are no metrics");
        }
    }
}
