//! When checkpoints are written.

use std::time::{Duration, Instant};

/// When the next checkpoint is due.
pub(crate) struct Schedule {
    interval: Duration,
    last: Instant,
}

impl Schedule {
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval, last: Instant::now() }
    }

    pub(crate) fn is_due(&self) -> bool {
        self.last.elapsed() >= self.interval
    }

    pub(crate) fn stored(&mut self) {
        self.last = Instant::now();
    }
}
