//! One sample's way through the block and back, on one thread.

pub(super) mod backward;
pub(super) mod forward;
