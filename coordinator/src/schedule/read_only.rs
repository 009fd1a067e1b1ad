//! What is told while nothing can be made durable.

use std::sync::Arc;

use deltaconv_proto::ids::WorkerId;
use deltaconv_proto::v1;

use super::explain::Explanation;
use super::{Command, Effects, Now, State};

impl State {
    /// Nothing can be made durable from now on, for this reason. Only [`State::restore`] ends that.
    pub fn turn_read_only(&mut self, reason: Arc<str>) {
        self.read_only = Some(reason);
    }

    /// Hears of a worker and changes nothing: it is given nothing, and what it reports is not taken in. It goes on with what
    /// it does and says the same again, and so keeps results that nobody accepted yet. Leases last meanwhile: nothing ends
    /// them but [`State::tick`], and whoever restores the state gives each its whole time.
    pub fn hear(&mut self, request: &v1::SyncRequest, now: Now) -> v1::SyncResponse {
        let worker = WorkerId::new(request.worker_id.as_str()).ok().and_then(|id| self.workers.get_mut(&id));
        if let Some(worker) = worker {
            worker.last_seen = now.monotonic;
        }
        let cache_version = request.cache.as_ref().map_or(0, |cache| cache.version);
        let read_only = self.read_only.as_deref().unwrap_or_default().to_owned();
        v1::SyncResponse { cache_version, read_only, ..v1::SyncResponse::default() }
    }

    /// Has every worker call again: what they were told to wait for is over.
    pub fn wake_all(&self, effects: &mut Effects) {
        effects.commands.extend(self.workers.keys().cloned().map(Command::Wake));
    }

    /// That nothing moves because nothing can be made durable.
    pub(super) fn explain_read_only(&self) -> Option<Explanation> {
        let reason = format!("the coordinator is read-only: {}", self.read_only.as_ref()?);
        Some(Explanation::new("read-only", reason, "make room or mend the disk; it tries again by itself"))
    }
}
