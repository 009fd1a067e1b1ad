//! What workers are told while nothing can be made durable.

use deltaconv_proto::ids::WorkerId;
use deltaconv_proto::v1;

use super::{Now, State};

impl State {
    /// Hears of a worker and changes nothing: it is given nothing, and what it reports is not taken in. It goes on with what
    /// it does and says the same again, and so keeps results that nobody accepted yet. Leases last meanwhile: nothing ends
    /// them but [`State::tick`], and whoever restores the state gives each its whole time.
    pub fn hear(&mut self, request: &v1::SyncRequest, reason: &str, now: Now) -> v1::SyncResponse {
        let worker = WorkerId::new(request.worker_id.as_str()).ok().and_then(|id| self.workers.get_mut(&id));
        if let Some(worker) = worker {
            worker.last_seen = now.monotonic;
        }
        let cache_version = request.cache.as_ref().map_or(0, |cache| cache.version);
        v1::SyncResponse { cache_version, read_only: reason.to_owned(), ..v1::SyncResponse::default() }
    }
}
