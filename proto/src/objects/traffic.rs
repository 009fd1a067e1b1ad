//! What goes to and from stores, for whoever watches this process.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Which way bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a store.
    Read,
    /// To a store.
    Write,
}

/// Bytes that arrived: an object, or a part of one.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Which way.
    pub direction: Direction,
    /// How many.
    pub bytes: u64,
    /// From the request to the last of them.
    pub took: Duration,
}

static OBSERVER: OnceLock<fn(Transfer)> = OnceLock::new();

/// Has `observer` told of every transfer of this process from now on. Whoever comes second is not told.
pub fn observe(observer: fn(Transfer)) {
    // One process is one worker.
    let _ = OBSERVER.set(observer);
}

/// Tells of what has arrived.
pub(super) fn tell(direction: Direction, bytes: usize, began: Instant) {
    if let Some(observer) = OBSERVER.get() {
        observer(Transfer { direction, bytes: bytes as u64, took: began.elapsed() });
    }
}
