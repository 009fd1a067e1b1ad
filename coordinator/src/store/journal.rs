//! What is applied to a store, told to who listens: a snapshot or a backup that is taken piece by piece ends with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::Write;

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    groups: AtomicU64,
    listeners: Mutex<Vec<UnboundedSender<Vec<Write>>>>,
}

impl Journal {
    /// Tells what has become durable.
    pub(super) fn record(&self, writes: &[Write]) {
        self.0.groups.fetch_add(1, Ordering::Relaxed);
        let mut listeners = self.0.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        // Who went away is forgotten.
        listeners.retain(|listener| listener.send(writes.to_vec()).is_ok());
    }

    /// Every group of writes from now on, for as long as the receiver is there.
    pub(crate) fn listen(&self) -> UnboundedReceiver<Vec<Write>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.0.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    /// How many groups have become durable: another number than before says that there is something new.
    pub(crate) fn groups(&self) -> u64 {
        self.0.groups.load(Ordering::Relaxed)
    }
}
