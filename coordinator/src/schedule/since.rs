//! Since when workers know what a task asks of them.
//!
//! Workers one minor version of the protocol behind work beside the others. What they don't know of a task they would pass over,
//! and what they then made would not be what the job asks for; so such a task is for the others alone.

use deltaconv_proto::protocol::{UNSAID, Version};

use super::{Kind, Worker};

/// The earliest protocol whose workers do all that the task asks.
///
/// A new kind of task has the protocol that brings it. So has a setting of jobs that changes what tasks compute: it is looked up in
/// the job's spec here.
pub(super) fn since(kind: &Kind) -> Version {
    match kind {
        Kind::Synthesise { .. } | Kind::Capture { .. } | Kind::Distill { .. } | Kind::Finetune | Kind::Evaluate(_) => {
            UNSAID
        }
    }
}

impl Worker {
    /// Whether it knows all that the task asks.
    pub(super) fn knows(&self, kind: &Kind) -> bool {
        self.protocol >= since(kind)
    }
}
