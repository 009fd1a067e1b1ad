//! Held Sync calls, and what ends the wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use deltaconv_proto::ids::WorkerId;
use tokio::sync::Notify;

/// One bell for each worker that ever held a call.
#[derive(Clone, Default)]
pub(crate) struct Wakers {
    bells: Arc<Mutex<HashMap<WorkerId, Arc<Notify>>>>,
}

impl Wakers {
    /// The worker's bell. Rung before anybody waits, it rings for the next who does.
    pub(crate) fn bell(&self, worker: &WorkerId) -> Arc<Notify> {
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        bells.entry(worker.clone()).or_default().clone()
    }

    /// Ends the worker's wait.
    pub(crate) fn ring(&self, worker: &WorkerId) {
        self.bell(worker).notify_one();
    }
}
