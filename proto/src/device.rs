//! What workers compute on.

use crate::v1::{Device, Requirements};

impl Device {
    /// The kind of one with a GPU.
    pub const CUDA: &str = "cuda";

    /// What it lacks of what a job requires: "memory", "precision" or "device". Nothing where it has all of it.
    pub fn lacks(&self, requires: Option<&Requirements>) -> Option<&'static str> {
        let requires = requires?;
        match () {
            () if self.memory_bytes < requires.memory_bytes => Some("memory"),
            () if !requires.precision.is_empty() && !self.precisions.contains(&requires.precision) => Some("precision"),
            () if !requires.device.is_empty() && self.kind != requires.device => Some("device"),
            () => None,
        }
    }
}
