//! What a denoiser is given beside the noised sample and the timestep.

use candle_core::{DType, Device, Tensor};

use super::Error;

/// What a prediction depends on beside sample and timestep, under the names of diffusers' arguments.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// The prompts' embeddings, [B, T, D]; any float dtype.
    pub encoder_hidden_states: Tensor,
    /// [B, T]: 1 for tokens that are attended to, 0 for padding. All are attended to where there is none.
    pub encoder_attention_mask: Option<Tensor>,
    /// The prompts' pooled embeddings, [B, P]; for models that take them.
    pub text_embeds: Option<Tensor>,
    /// Numbers about the picture, [B, n]; for models that take them.
    pub time_ids: Option<Tensor>,
    /// Height and width of the picture in pixels, [B, 2]; for models that take it. 8 times the latents' where there is
    /// none, as the models' VAE makes them.
    pub resolution: Option<Tensor>,
    /// The picture's height over its width, [B, 1]; for models that take it. The latents' where there is none.
    pub aspect_ratio: Option<Tensor>,
}

impl From<Tensor> for Conditions {
    fn from(encoder_hidden_states: Tensor) -> Self {
        Self {
            encoder_hidden_states,
            encoder_attention_mask: None,
            text_embeds: None,
            time_ids: None,
            resolution: None,
            aspect_ratio: None,
        }
    }
}

/// The text that a pass attends to.
pub(super) struct Text {
    /// [B, T, D].
    pub(super) states: Tensor,
    /// What is added to the scores of each token, [B, T].
    pub(super) bias: Option<Vec<f32>>,
}

impl Conditions {
    /// The text for `batch` samples.
    pub(super) fn text(&self, batch: usize) -> Result<Text, Error> {
        /// diffusers' bias of tokens that are not attended to.
        const MASKED: f32 = -10_000.0;
        let states = host_f32(&self.encoder_hidden_states)?;
        let tokens = match states.dims() {
            [b, tokens, _] if *b == batch && *tokens > 0 => *tokens,
            found => {
                let problem = format!("expected [{batch}, T, D], found {found:?}");
                return Err(Error::Argument { argument: "encoder_hidden_states", problem });
            }
        };
        let Some(mask) = &self.encoder_attention_mask else { return Ok(Text { states, bias: None }) };
        if mask.dims() != [batch, tokens] {
            let problem = format!("expected [{batch}, {tokens}], found {:?}", mask.dims());
            return Err(Error::Argument { argument: "encoder_attention_mask", problem });
        }
        let kept = host_f32(mask)?.flatten_all()?.to_vec1::<f32>()?;
        if let Some(other) = kept.iter().find(|kept| ![0.0, 1.0].contains(*kept)) {
            let problem = format!("expected 0 and 1, found {other}");
            return Err(Error::Argument { argument: "encoder_attention_mask", problem });
        }
        Ok(Text { states, bias: Some(kept.into_iter().map(|kept| (1.0 - kept) * MASKED).collect()) })
    }
}

/// B, H and W of a sample [B, `channels`, H, W].
pub(super) fn size_of_sample(sample: &Tensor, channels: usize) -> Result<(usize, usize, usize), Error> {
    match *sample.dims() {
        [batch, found, height, width] if found == channels && batch > 0 => Ok((batch, height, width)),
        ref found => {
            let problem = format!("expected [B, {channels}, H, W], found {found:?}");
            Err(Error::Argument { argument: "sample", problem })
        }
    }
}

/// A number for each of `batch` samples from a tensor of so many, or of one.
pub(super) fn of_each_sample(tensor: &Tensor, batch: usize, argument: &'static str) -> Result<Vec<f32>, Error> {
    let mut numbers = host_f32(&tensor.flatten_all()?)?.to_vec1::<f32>()?;
    if let [one] = numbers[..] {
        numbers.resize(batch, one);
    }
    if numbers.len() != batch {
        let problem = format!("expected {batch} elements or 1, found {}", numbers.len());
        return Err(Error::Argument { argument, problem });
    }
    Ok(numbers)
}

/// f32, contiguous, in host memory.
pub(super) fn host_f32(tensor: &Tensor) -> Result<Tensor, Error> {
    Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?)
}
