//! What workers compute on.

use crate::v1::Device;

impl Device {
    /// The kind of one with a GPU.
    pub const CUDA: &str = "cuda";
}
