//! What a monitoring system reads, in the text format of OpenMetrics. docs/metrics.md has all of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tonic::Status;

use crate::schedule::{Census, Stage, Totals};

/// What the process measures of itself as it goes. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    sync: Histogram,
    commit: Histogram,
    writes: Counter,
    denied: Family<Labels, Counter>,
    certificates: Family<Labels, Gauge>,
}

/// Labels of one name.
type Labels = Vec<(&'static str, &'static str)>;

/// What calls are denied for.
const DENIED: [&str; 3] = ["unauthenticated", "rate", "forbidden"];

impl Metrics {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        // From a tenth of a millisecond to three seconds.
        let seconds = || Histogram::new(exponential_buckets(1e-4, 2.0, 16));
        let (sync, commit, writes) = (seconds(), seconds(), Counter::default());
        let mut registry = Registry::default();
        let help = "Time from a worker's report to its answer, without the time that it is kept for want of news";
        registry.register_with_unit("deltaconv_sync_duration", help, Unit::Seconds, sync.clone());
        let help = "Time to make one group of changes durable";
        registry.register_with_unit("deltaconv_commit_duration", help, Unit::Seconds, commit.clone());
        registry.register("deltaconv_state_writes", "Records that were made durable", writes.clone());
        let (denied, certificates) = (Family::<Labels, Counter>::default(), Family::<Labels, Gauge>::default());
        for reason in DENIED {
            drop(denied.get_or_create(&vec![("reason", reason)]));
        }
        registry.register("deltaconv_denied_requests", "Calls that were denied, by what is said of it", denied.clone());
        let help = "When each of the coordinator's certificates ends, in seconds since 1970";
        registry.register("deltaconv_certificate_expiry_timestamp_seconds", help, certificates.clone());
        Self { registry: Arc::new(registry), sync, commit, writes, denied, certificates }
    }

    /// A call was denied.
    pub(crate) fn denied(&self, why: &Status) {
        let [unauthenticated, rate, forbidden] = DENIED;
        let reason = match why.code() {
            tonic::Code::Unauthenticated => unauthenticated,
            tonic::Code::ResourceExhausted => rate,
            _ => forbidden,
        };
        self.denied.get_or_create(&vec![("reason", reason)]).inc();
    }

    /// When the certificates end.
    pub(crate) fn certificates(&self, ends: &[(&'static str, i64)]) {
        for (name, end) in ends {
            self.certificates.get_or_create(&vec![("certificate", *name)]).set(*end);
        }
    }

    /// A report was answered.
    pub(crate) fn answered(&self, took: Duration) {
        self.sync.observe(took.as_secs_f64());
    }

    /// So many records became durable together.
    pub(crate) fn committed(&self, writes: usize, took: Duration) {
        self.commit.observe(took.as_secs_f64());
        self.writes.inc_by(writes as u64);
    }

    /// All of it, with what the state says.
    pub(crate) fn text(&self, totals: &Totals, census: &Census) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &of_totals(totals))?;
        encode_registry(&mut text, &of_census(census))?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

fn of_totals(totals: &Totals) -> Registry {
    let mut registry = Registry::default();
    let mut count = |name: &str, help: &str, value: u64| registry.register(name, help, ConstCounter::new(value));
    count("deltaconv_leases", "Leases that were given", totals.leases);
    count("deltaconv_spare_attempts", "Second attempts beside one that takes too long", totals.spares);
    count("deltaconv_attempts_handed_back", "Attempts that their workers handed back", totals.handed_back);
    count("deltaconv_broken_shards", "Shards and latents that were found broken", totals.broken);
    let committed = Family::<Labels, Counter>::default();
    for (stage, count) in Stage::ALL.into_iter().zip(totals.committed).filter(|(stage, _)| *stage != Stage::Assemble) {
        committed.get_or_create(&vec![("stage", stage.name())]).inc_by(count);
    }
    registry.register("deltaconv_tasks_committed", "Outputs that were accepted", committed);
    let failed = Family::<Labels, Counter>::default();
    for (blame, count) in [("task", totals.failed), ("device", totals.device_failed), ("worker_lost", totals.lost)] {
        failed.get_or_create(&vec![("blame", blame)]).inc_by(count);
    }
    registry.register(
        "deltaconv_attempts_failed",
        "Attempts that ended without an output, by what is to blame",
        failed,
    );
    registry
}

fn of_census(census: &Census) -> Registry {
    let mut registry = Registry::default();
    let by_state = |states: &[(&'static str, u64)]| {
        let family = Family::<Labels, Gauge>::default();
        for (state, count) in states {
            family.get_or_create(&vec![("state", *state)]).set(*count as i64);
        }
        family
    };
    registry.register("deltaconv_jobs", "Jobs by state", by_state(&census.jobs));
    registry.register("deltaconv_workers", "Workers by state", by_state(&census.workers));
    let tasks = Family::<Labels, Gauge>::default();
    for (stage, states) in &census.tasks {
        for (state, count) in states {
            tasks.get_or_create(&vec![("stage", stage.name()), ("state", *state)]).set(*count as i64);
        }
    }
    registry.register("deltaconv_tasks", "Tasks of running jobs by stage and state", tasks);
    let ready = Gauge::<i64>::default();
    ready.set(census.ready as i64);
    registry.register("deltaconv_tasks_ready", "Tasks that could be begun now if there were a worker for each", ready);
    let read_only = Gauge::<i64>::default();
    read_only.set(census.read_only.into());
    registry.register("deltaconv_read_only", "1 while nothing can be made durable", read_only);
    let version = Family::<Labels, Gauge>::default();
    version.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION"))]).set(1);
    registry.register("deltaconv_build_info", "The version that runs", version);
    registry
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::schedule::{Now, Settings, State};
    use crate::store::Records;

    fn text() -> String {
        let metrics = Metrics::new();
        metrics.answered(Duration::from_millis(3));
        metrics.committed(7, Duration::from_millis(2));
        metrics.certificates(&[("coordinator", 1_800_000_000)]);
        let mut totals = Totals { leases: 5, lost: 2, ..Totals::default() };
        totals.committed[1] = 4;
        let settings = Settings::new("test", Duration::from_secs(10));
        let (state, _) = State::restore(settings, Records::default(), Now::default()).expect("an empty one");
        let mut census = state.census(Now::default());
        census.workers[0].1 = 3;
        census.ready = 6;
        metrics.text(&totals, &census).expect("text")
    }

    #[test]
    fn what_was_measured_is_told() {
        let text = text();
        for line in [
            "deltaconv_sync_duration_seconds_count 1",
            "deltaconv_commit_duration_seconds_sum 0.002",
            "deltaconv_state_writes_total 7",
            "deltaconv_leases_total 5",
            "deltaconv_tasks_committed_total{stage=\"capture\"} 4",
            "deltaconv_attempts_failed_total{blame=\"worker_lost\"} 2",
            "deltaconv_workers{state=\"busy\"} 3",
            "deltaconv_tasks_ready 6",
            "deltaconv_read_only 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    /// The dashboard and the alerts are of no use with metrics that don't exist.
    #[test]
    fn the_dashboard_and_the_alerts_use_metrics_that_exist() {
        let exposed = text();
        let named: BTreeSet<&str> = exposed.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
        let deployed = [
            include_str!("../../../deploy/monitoring/dashboard.json"),
            include_str!("../../../deploy/monitoring/alerts.yaml"),
            include_str!("../../../deploy/kubernetes/components/autoscaled/scaler.yaml"),
            include_str!("../../../docs/metrics.md"),
        ];
        for file in deployed {
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
            // A worker's own are looked at by its test.
            let is_ours = |word: &&str| word.starts_with("deltaconv_") && !word.starts_with("deltaconv_worker_");
            let used = file.split(|c| !is_part(c)).filter(is_ours);
            let unknown: Vec<&str> = used.filter(|word| !named.contains(word)).collect();
            assert!(unknown.is_empty(), "{unknown:?} are no metrics");
        }
    }
}
