//! What follows from a worker's report.

use crate::v1::{AttemptReport, attempt_report};

impl AttemptReport {
    /// Whether the attempt came to its end, with an output.
    pub fn is_done(&self) -> bool {
        matches!(self.state, Some(attempt_report::State::Done(_)))
    }
}
