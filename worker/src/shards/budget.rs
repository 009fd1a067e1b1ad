//! How much of a kind of memory may be taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that are left of a limit. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    left: Arc<AtomicU64>,
}

/// Bytes that were taken, and are given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Budget,
    bytes: u64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Self {
        Self { left: Arc::new(AtomicU64::new(limit)) }
    }

    /// Takes so many bytes, if they are left.
    pub(super) fn take(&self, bytes: u64) -> Option<Share> {
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        taken.ok().map(|_| Share { budget: self.clone(), bytes })
    }

    /// Takes so many bytes, left or not: for what can't be done without.
    pub(super) fn force(&self, bytes: u64) -> Share {
        let mut taken = 0;
        let take = |left: u64| {
            taken = left.min(bytes);
            Some(left - taken)
        };
        // Always changed, so there is no error.
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        Share { budget: self.clone(), bytes: taken }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.left.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is_and_what_is_dropped_comes_back() {
        let budget = Budget::new(10);
        let share = budget.take(7).expect("there is as much");
        assert!(budget.take(4).is_none());
        let forced = budget.force(5);
        assert!(budget.take(1).is_none());
        drop(forced);
        assert!(budget.take(4).is_none() && budget.take(3).is_some());
        drop(share);
        assert!(budget.take(10).is_some());
    }
}
