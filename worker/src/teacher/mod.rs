//! The teacher: a diffusers model in candle, its self-attention open to be watched and replaced.
//!
//! A [`Denoiser`] is built from a [`deltaconv_proto::teacher::Teacher`] by the same walk that named its layers. In the
//! forward pass every layer goes through a [`SelfAttention`]: capture records what goes in and out, a student computes
//! its block there, and [`Removed`] gives zeros.

mod attention;
mod conditions;
mod denoiser;
mod ops;
mod pixart;
mod sampler;
mod self_attention;
#[cfg(test)]
mod tests;
pub(crate) mod text;
mod unet;
mod vae;
mod weights;

pub(crate) use attention::OwnAttention;
pub use conditions::Conditions;
pub use denoiser::Denoiser;
pub use ops::Place;
pub(crate) use ops::{attach, mean_square, relative_error};
pub use pixart::PixArt;
pub use sampler::{Guidance, Sampler, Solver, Steps};
pub use self_attention::{Call, Original, Removed, SelfAttention};
pub use unet::{LoadOptions, UNet};
pub use vae::Vae;
pub use weights::Weights;

use deltaconv_proto::code::Code;
use deltaconv_proto::{safetensors, teacher};

use crate::codes::{of_kernels, of_tensors};

/// Why a teacher cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed: shapes that do not fit, most of all.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// An operation on a GPU failed.
    #[error(transparent)]
    Kernels(#[from] deltaconv_kernels::Error),
    /// The weights are no safetensors file.
    #[error("cannot read the weights: {0}")]
    Safetensors(#[from] safetensors::Error),
    /// The weights do not fit the configuration, or latents do not fit the model.
    #[error(transparent)]
    Teacher(#[from] teacher::Error),
    /// Reading the weights failed.
    #[error("cannot read the weights: {0}")]
    Io(#[from] std::io::Error),
    /// A layer's own attention was asked for in a model that was loaded without.
    #[error("layer `{layer}` has no attention: the model was loaded without `attn1` weights")]
    NoAttention {
        /// The layer.
        layer: String,
    },
    /// A [`SelfAttention`] failed.
    #[error("layer `{layer}`: {source}")]
    Layer {
        /// The layer.
        layer: String,
        /// What it says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An argument of the forward pass or of sampling is not what the model takes.
    #[error("`{argument}`: {problem}")]
    Argument {
        /// Which.
        argument: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Tensor(error) => of_tensors(error),
            Self::Kernels(error) => of_kernels(error),
            Self::Safetensors(error) => error.code(),
            Self::Teacher(error) => error.code(),
            Self::Io(_) => Code::File,
            Self::NoAttention { .. } => Code::WeightsUnlikeConfig,
            Self::Argument { .. } => Code::TensorOperation,
            // What takes the attention's place gave another shape than it was given.
            Self::Layer { .. } => Code::Fault,
        }
    }
}
