//! What a denoiser is given beside the noised sample and the timestep.

use candle_core::{DType, Device, Tensor};

use super::Error;
use super::ops::Place;

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
    /// What is added to the scores of each token, [B, T] f32.
    pub(super) bias: Option<Tensor>,
}

impl Conditions {
    /// The same for each of `batch` samples where these are one sample's; themselves where they are those of `batch`
    /// samples.
    ///
    /// # Errors
    /// Conditions of another number of samples.
    pub fn repeat(&self, batch: usize) -> Result<Self, Error> {
        let repeated = |argument: &'static str, tensor: &Tensor| match *tensor.dims() {
            [found, ..] if found == batch => Ok(tensor.clone()),
            [1, ref of_one @ ..] => Ok(tensor.broadcast_as([&[batch], of_one].concat())?.contiguous()?),
            ref found => {
                let problem = format!("expected {batch} samples or 1, found {found:?}");
                Err(Error::Argument { argument, problem })
            }
        };
        let optional = |argument, tensor: &Option<Tensor>| -> Result<Option<Tensor>, Error> {
            tensor.as_ref().map(|tensor| repeated(argument, tensor)).transpose()
        };
        Ok(Self {
            encoder_hidden_states: repeated("encoder_hidden_states", &self.encoder_hidden_states)?,
            encoder_attention_mask: optional("encoder_attention_mask", &self.encoder_attention_mask)?,
            text_embeds: optional("text_embeds", &self.text_embeds)?,
            time_ids: optional("time_ids", &self.time_ids)?,
            resolution: optional("resolution", &self.resolution)?,
            aspect_ratio: optional("aspect_ratio", &self.aspect_ratio)?,
        })
    }

    /// Those of these samples, then those of `others`, for one pass of the model.
    ///
    /// # Errors
    /// Tensors that only one side has, or whose samples differ in shape: prompts of other numbers of tokens, most of all.
    pub fn stack(&self, others: &Self) -> Result<Self, Error> {
        let optional = |argument: &'static str, first: &Option<Tensor>, second: &Option<Tensor>| match (first, second) {
            (None, None) => Ok(None),
            (Some(first), Some(second)) => stacked(argument, first, second).map(Some),
            (first, _) => {
                let (with, without) = if first.is_some() { ("first", "second") } else { ("second", "first") };
                let problem = format!("the {with} conditions have it and the {without} lack it; give it to both");
                Err(Error::Argument { argument, problem })
            }
        };
        let (first, second) = (&self.encoder_hidden_states, &others.encoder_hidden_states);
        if let ([_, tokens, _], [_, others, _]) = (first.dims(), second.dims())
            && tokens != others
        {
            let problem = format!(
                "the first have {tokens} tokens and the second {others}; pad both to one length, and mask the padding"
            );
            return Err(Error::Argument { argument: "encoder_hidden_states", problem });
        }
        Ok(Self {
            encoder_hidden_states: stacked("encoder_hidden_states", first, second)?,
            encoder_attention_mask: optional(
                "encoder_attention_mask",
                &self.encoder_attention_mask,
                &others.encoder_attention_mask,
            )?,
            text_embeds: optional("text_embeds", &self.text_embeds, &others.text_embeds)?,
            time_ids: optional("time_ids", &self.time_ids, &others.time_ids)?,
            resolution: optional("resolution", &self.resolution, &others.resolution)?,
            aspect_ratio: optional("aspect_ratio", &self.aspect_ratio, &others.aspect_ratio)?,
        })
    }

    /// The text for `batch` samples, in a model's place.
    pub(super) fn text(&self, batch: usize, place: &Place) -> Result<Text, Error> {
        /// diffusers' bias of tokens that are not attended to.
        const MASKED: f32 = -10_000.0;
        let states = place.take(&self.encoder_hidden_states)?;
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
        let bias = kept.into_iter().map(|kept| (1.0 - kept) * MASKED).collect();
        Ok(Text { states, bias: Some(place.f32(bias, &[batch, tokens])?) })
    }
}

/// [A, …] and [B, …] to [A + B, …]; in f32 where their dtypes differ.
fn stacked(argument: &'static str, first: &Tensor, second: &Tensor) -> Result<Tensor, Error> {
    let (shape, other) = (first.dims(), second.dims());
    if shape.is_empty() || shape.len() != other.len() || shape[1..] != other[1..] {
        let problem = format!("{shape:?} and {other:?} differ in more than the number of samples");
        return Err(Error::Argument { argument, problem });
    }
    Ok(match first.dtype() == second.dtype() {
        true => Tensor::cat(&[first, second], 0)?,
        false => Tensor::cat(&[first.to_dtype(DType::F32)?, second.to_dtype(DType::F32)?], 0)?,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(value: f32, shape: &[usize]) -> Tensor {
        Tensor::full(value, shape, &Device::Cpu).unwrap()
    }

    /// Everything there can be.
    fn conditions(value: f32, batch: usize, tokens: usize) -> Conditions {
        Conditions {
            encoder_hidden_states: filled(value, &[batch, tokens, 3]),
            encoder_attention_mask: Some(filled(1.0, &[batch, tokens])),
            text_embeds: Some(filled(value, &[batch, 5])),
            time_ids: Some(filled(value, &[batch, 6])),
            resolution: Some(filled(value, &[batch, 2])),
            aspect_ratio: Some(filled(value, &[batch, 1])),
        }
    }

    #[test]
    fn one_sample_is_repeated_and_stacked_before_others() {
        let both = conditions(0.0, 1, 4).repeat(2).unwrap().stack(&conditions(1.0, 2, 4)).unwrap();
        let fields = [both.text_embeds, both.time_ids, both.resolution, both.aspect_ratio].map(Option::unwrap);
        for (tensor, numbers) in fields.iter().chain([&both.encoder_hidden_states]).zip([5, 6, 2, 1, 12]) {
            let rows = tensor.flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
            let expected = [0.0, 0.0, 1.0, 1.0].map(|value| vec![value; numbers]);
            assert_eq!(rows, expected);
        }
        assert_eq!(both.encoder_attention_mask.unwrap().dims(), [4, 4]);
    }

    #[test]
    fn conditions_that_do_not_fit_are_named() {
        let error = |result: Result<Conditions, Error>| result.unwrap_err().to_string();
        let two = conditions(0.0, 2, 4);
        assert_eq!(error(two.repeat(3)), "`encoder_hidden_states`: expected 3 samples or 1, found [2, 4, 3]");
        assert!(error(two.stack(&conditions(0.0, 2, 5))).contains("the first have 4 tokens and the second 5; pad"));
        let without = Conditions { time_ids: None, ..conditions(0.0, 2, 4) };
        assert!(error(two.stack(&without)).contains("`time_ids`: the first conditions have it and the second lack it"));
        assert!(error(without.stack(&two)).contains("`time_ids`: the second conditions have it"));
        let wide = Conditions { text_embeds: Some(filled(0.0, &[2, 7])), ..conditions(0.0, 2, 4) };
        assert!(error(two.stack(&wide)).contains("`text_embeds`: [2, 5] and [2, 7] differ"));
    }
}
