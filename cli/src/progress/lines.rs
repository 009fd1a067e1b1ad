//! Progress as plain lines: what starts and ends at once, what goes on every few seconds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use deltaconv_proto::v1;

use super::describe;
use super::remaining::Remaining;
use crate::stage;

/// Something that only goes on is said again after this.
const INTERVAL: Duration = Duration::from_secs(5);

/// What was said so far.
#[derive(Default)]
pub(super) struct Lines {
    subjects: BTreeMap<String, Subject>,
}

#[derive(Default)]
struct Subject {
    state: String,
    text: String,
    said: Option<Instant>,
    remaining: Remaining,
}

impl Lines {
    /// The lines that `status` is worth at `now`.
    pub(super) fn of(&mut self, status: &v1::JobStatus, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        for stage in &status.stages {
            let name = stage::name(&stage.stage, stage.round);
            let subject = self.subjects.entry(name.clone()).or_default();
            let left = subject.remaining.update(now, stage.done, f64::from(stage.tasks));
            let state = match stage {
                over if describe::is_over(over) => "over",
                running if describe::is_running(running) => "running",
                _ => "",
            };
            lines.extend(subject.line(&name, state, describe::stage(stage, left), now));
        }
        for (layer, name) in status.layers.iter().zip(describe::short_names(&status.layers)) {
            let subject = self.subjects.entry(format!("layer {} {}", layer.name, layer.round)).or_default();
            let left = subject.remaining.update(now, layer.step as f64, layer.steps as f64);
            let state = if layer.state == "waiting" { "" } else { layer.state.as_str() };
            lines.extend(subject.line(&name, state, describe::layer(layer, left), now));
        }
        let waiting = self.subjects.entry("waiting".into()).or_default();
        lines.extend(waiting.line("waiting", &status.waiting_for, status.waiting_for.clone(), now));
        lines
    }
}

impl Subject {
    /// The line to say, if the state changed or enough time passed. Nothing is said of an empty state.
    fn line(&mut self, name: &str, state: &str, text: String, now: Instant) -> Option<String> {
        let changed = self.state != state;
        let is_due = self.said.is_none_or(|said| now.saturating_duration_since(said) >= INTERVAL);
        self.state = state.into();
        if state.is_empty() || !(changed || (is_due && self.text != text)) {
            return None;
        }
        self.said = Some(now);
        self.text = text;
        Some(format!("{name}: {}", self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(done: f64, committed: u32, finished_unix_ms: u64) -> v1::JobStatus {
        let stage = v1::StageStatus {
            stage: "capture".into(),
            tasks: 4,
            committed,
            done,
            started_unix_ms: 1,
            finished_unix_ms,
            ..v1::StageStatus::default()
        };
        v1::JobStatus { stages: vec![stage], ..v1::JobStatus::default() }
    }

    #[test]
    fn changes_of_state_are_said_at_once_and_progress_every_few_seconds() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lines = Lines::default();
        assert_eq!(lines.of(&status(0.0, 0, 0), at(0)), ["capture: 0/4 tasks"]);
        assert_eq!(lines.of(&status(1.0, 1, 0), at(3)), Vec::<String>::new());
        assert_eq!(lines.of(&status(2.0, 2, 0), at(6)), ["capture: 2/4 tasks, 6.0 s left"]);
        assert_eq!(lines.of(&status(2.0, 2, 0), at(7)), Vec::<String>::new());
        assert_eq!(lines.of(&status(4.0, 4, 7001), at(8)), ["capture: done in 7.0 s"]);
        assert_eq!(lines.of(&status(4.0, 4, 7001), at(60)), Vec::<String>::new());
    }
}
