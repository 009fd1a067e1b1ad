//! How long something will still take, from how fast it went since it was first seen.

use std::time::{Duration, Instant};

/// Less says too little about the pace.
const SHORTEST_BASE: Duration = Duration::from_secs(2);

/// Watches one quantity grow.
#[derive(Debug, Default)]
pub(crate) struct Remaining {
    first: Option<(Instant, f64)>,
    last: f64,
}

impl Remaining {
    /// `done` of `total` at `now`; answers with the seconds left, once that can be said.
    pub(crate) fn update(&mut self, now: Instant, done: f64, total: f64) -> Option<f64> {
        // Work that was lost with its worker is done again: the pace since then counts.
        let went_back = done < self.last;
        self.last = done;
        let (since, from) = match self.first {
            Some(first) if !went_back => first,
            _ => *self.first.insert((now, done)),
        };
        let elapsed = now.saturating_duration_since(since);
        let gained = done - from;
        if elapsed < SHORTEST_BASE || gained <= 0.0 {
            return None;
        }
        Some((total - done).max(0.0) * elapsed.as_secs_f64() / gained)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_since_the_start_or_the_last_setback_counts() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut remaining = Remaining::default();
        assert_eq!(remaining.update(at(0), 100.0, 600.0), None);
        assert_eq!(remaining.update(at(1), 120.0, 600.0), None);
        assert_eq!(remaining.update(at(10), 300.0, 600.0), Some(15.0));
        assert_eq!(remaining.update(at(11), 200.0, 600.0), None);
        assert_eq!(remaining.update(at(15), 400.0, 600.0), Some(4.0));
    }
}
