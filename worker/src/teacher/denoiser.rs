//! A model of any class that can be converted.

use candle_core::Tensor;
use deltaconv_proto::teacher::Teacher;

use super::conditions::Conditions;
use super::ops::Place;
use super::pixart::PixArt;
use super::unet::{LoadOptions, UNet};
use super::{Error, SelfAttention, Weights};

/// A denoiser, where its weights were read to.
pub enum Denoiser {
    /// Stable Diffusion's.
    UNet(Box<UNet>),
    /// PixArt's.
    PixArt(Box<PixArt>),
}

impl Denoiser {
    /// Loads a model.
    ///
    /// # Errors
    /// A class that this worker doesn't compute, weights that cannot be read, or that are not those of the configuration.
    pub fn load(config: &Teacher, weights: &mut Weights, options: &LoadOptions) -> Result<Self, Error> {
        match config {
            Teacher::UNet(config) => Ok(Self::UNet(Box::new(UNet::load(config, weights, options)?))),
            Teacher::PixArt(config) => Ok(Self::PixArt(Box::new(PixArt::load(config, weights, options)?))),
            other => {
                let problem = format!("this worker does not compute {}", other.class());
                Err(Error::Argument { argument: "config", problem })
            }
        }
    }

    /// Where it is computed.
    pub fn place(&self) -> &Place {
        match self {
            Self::UNet(unet) => unet.place(),
            Self::PixArt(pixart) => pixart.place(),
        }
    }

    /// All that the model predicts: [B, out_channels, H, W] f32, on the model's device. See [`UNet::forward`] and [`PixArt::forward`].
    ///
    /// # Errors
    /// Arguments of other shapes, and whatever `attention` returns.
    pub fn forward(
        &self,
        sample: &Tensor,
        timestep: &Tensor,
        conditions: &Conditions,
        attention: &mut dyn SelfAttention,
    ) -> Result<Tensor, Error> {
        match self {
            Self::UNet(unet) => unet.forward(sample, timestep, conditions, attention),
            Self::PixArt(pixart) => pixart.forward(sample, timestep, conditions, attention),
        }
    }

    /// What the noise schedule's step takes, f32, of the sample's shape and on its device: without the variance that some
    /// models predict behind it.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn predict(
        &self,
        sample: &Tensor,
        timestep: &Tensor,
        conditions: &Conditions,
        attention: &mut dyn SelfAttention,
    ) -> Result<Tensor, Error> {
        let prediction = self.forward(sample, timestep, conditions, attention)?;
        let channels = sample.dim(1)?;
        let prediction = match prediction.dim(1)? > channels {
            true => prediction.narrow(1, 0, channels)?.contiguous()?,
            false => prediction,
        };
        Ok(prediction.to_device(sample.device())?)
    }
}
