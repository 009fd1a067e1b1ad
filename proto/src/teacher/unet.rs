//! diffusers' `UNet2DConditionModel`: its configuration, and the walk through its modules that follows from it.
//!
//! Source: diffusers `models/unets/unet_2d_condition.py` and `unet_2d_blocks.py`.

mod config;
mod layers;
mod plan;
mod tensors;
#[cfg(test)]
mod tests;

pub use config::{Activation, AddedEmbedding, MidBlock, TimeEmbedding, TimeScaleShift, UNetConfig};
pub use plan::{Attention, Plan, Resnet, Stage, Transformer};
