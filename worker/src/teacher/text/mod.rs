//! A pipeline's text encoders with their tokenizers: prompts in, what the denoiser is conditioned on out.

mod clip;
mod t5;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use deltaconv_proto::code::Code;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::pipeline::{Part, Text};
use deltaconv_proto::teacher::ClipConfig;

use self::clip::Clip;
use self::t5::T5;
use self::tokenizer::{ClipTokenizer, Files, T5Tokenizer};
use super::{Conditions, Error};
use crate::models::open_weights;
use crate::task;

impl From<tokenizer::Error> for task::Error {
    fn from(error: tokenizer::Error) -> Self {
        match error {
            tokenizer::Error::Objects(error) => Self::Objects(error),
            tokenizer::Error::Unexpected { what, reason } => {
                Self::Unexpected { what, reason, code: Code::UnexpectedFile }
            }
        }
    }
}

/// Texts that go through an encoder at a time.
const BATCH: usize = 16;

/// Prompts as a denoiser takes them, a row each.
#[derive(Debug, Clone)]
pub(crate) struct Embeddings {
    /// [p, T, D] f32.
    pub(crate) states: Tensor,
    /// [p, T] of 0 and 1, where padding is told from text.
    pub(crate) mask: Option<Tensor>,
    /// [p, P] f32, where the denoiser takes an embedding of the whole text.
    pub(crate) pooled: Option<Tensor>,
}

impl Embeddings {
    /// Some of the rows.
    pub(crate) fn rows(&self, rows: &[usize]) -> candle_core::Result<Self> {
        let rows = Tensor::from_iter(rows.iter().map(|row| *row as u32), &Device::Cpu)?;
        let select = |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| tensor.index_select(&rows, 0)).transpose();
        let states = self.states.index_select(&rows, 0)?;
        Ok(Self { states, mask: select(&self.mask)?, pooled: select(&self.pooled)? })
    }

    /// The rows of all `parts`, which are of one encoder; texts are padded to the longest.
    pub(crate) fn join(parts: &[Self]) -> candle_core::Result<Self> {
        let lengths = parts.iter().map(|part| part.states.dim(1)).collect::<candle_core::Result<Vec<_>>>()?;
        let longest = lengths.into_iter().max().unwrap_or(0);
        let padded = |tensor: &Tensor| tensor.pad_with_zeros(1, 0, longest - tensor.dim(1)?);
        let join = |of: &dyn Fn(&Self) -> candle_core::Result<Option<Tensor>>| -> candle_core::Result<Option<Tensor>> {
            let tensors = parts.iter().map(of).collect::<candle_core::Result<Option<Vec<Tensor>>>>()?;
            tensors.filter(|tensors| !tensors.is_empty()).map(|tensors| Tensor::cat(&tensors, 0)).transpose()
        };
        let Some(states) = join(&|part| padded(&part.states).map(Some))? else {
            candle_core::bail!("there are no embeddings to join");
        };
        let mask = join(&|part| part.mask.as_ref().map(padded).transpose())?;
        Ok(Self { states, mask, pooled: join(&|part| Ok(part.pooled.clone()))? })
    }

    /// What a denoiser is told of pictures of `height` × `width` pixels with these prompts, a sample a row.
    pub(crate) fn conditions(self, (height, width): (usize, usize)) -> Result<Conditions, task::Error> {
        let time_ids = match &self.pooled {
            // SDXL: original size, no crop, target size.
            Some(pooled) => {
                let ids = [height, width, 0, 0, height, width].map(|number| number as f32);
                Some(Tensor::new(&ids, &Device::Cpu)?.unsqueeze(0)?.repeat((pooled.dim(0)?, 1))?)
            }
            None => None,
        };
        Ok(Conditions {
            encoder_attention_mask: self.mask,
            text_embeds: self.pooled,
            time_ids,
            ..Conditions::from(self.states)
        })
    }
}

/// The text encoders of a pipeline.
pub(crate) struct TextEncoder(Encoders);

enum Encoders {
    Clip(Box<(ClipTokenizer, Clip)>),
    ClipPair { tokenizers: Box<[ClipTokenizer; 2]>, encoders: Box<[Clip; 2]>, zero_negative: bool },
    T5(Box<(T5Tokenizer, Mutex<T5>)>),
}

impl TextEncoder {
    /// Loads what `text` describes from the model's folder.
    pub(crate) async fn load(model: &Objects, text: &Text) -> Result<Self, task::Error> {
        let clip = async |part: &Part<ClipConfig>, folder: &'static str| -> Result<_, task::Error> {
            let tokenizer = ClipTokenizer::load(&Files { model, folder }, part.config.positions).await?;
            Ok((tokenizer, Clip::load(&part.config, &mut open_weights(model, &part.weights).await?)?))
        };
        Ok(Self(match text {
            Text::Clip(part) => Encoders::Clip(Box::new(clip(part, "tokenizer").await?)),
            Text::ClipPair { first, second, zero_negative } => {
                let (first, second) = (clip(first, "tokenizer").await?, clip(second, "tokenizer_2").await?);
                let (tokenizers, encoders) = (Box::new([first.0, second.0]), Box::new([first.1, second.1]));
                Encoders::ClipPair { tokenizers, encoders, zero_negative: *zero_negative }
            }
            Text::T5 { part, tokens } => {
                let tokenizer = T5Tokenizer::load(&Files { model, folder: "tokenizer" }, *tokens).await?;
                let encoder = T5::load(&part.config, &mut open_weights(model, &part.weights).await?)?;
                Encoders::T5(Box::new((tokenizer, Mutex::new(encoder))))
            }
        }))
    }

    /// The prompts in their order, and behind them what guidance goes away from: the empty prompt as the pipeline has it.
    pub(crate) fn embed(&self, prompts: &[String]) -> Result<Embeddings, task::Error> {
        let texts: Vec<&str> = prompts.iter().map(String::as_str).chain([""]).collect();
        match &self.0 {
            Encoders::Clip(clip) => {
                let (tokenizer, encoder) = &**clip;
                let encoded = in_batches(&texts, |texts| Ok(vec![encoder.forward(&ids(tokenizer, texts)?)?.last]))?;
                let [states] = <[Tensor; 1]>::try_from(encoded).map_err(|_| nothing())?;
                Ok(Embeddings { states, mask: None, pooled: None })
            }
            Encoders::ClipPair { tokenizers, encoders, zero_negative } => {
                let encoded = in_batches(&texts, |texts| {
                    let first = encoders[0].forward(&ids(&tokenizers[0], texts)?)?;
                    let second = encoders[1].forward(&ids(&tokenizers[1], texts)?)?;
                    Ok(vec![Tensor::cat(&[first.penultimate, second.penultimate], 2)?, second.pooled])
                })?;
                let [mut states, mut pooled] = <[Tensor; 2]>::try_from(encoded).map_err(|_| nothing())?;
                if *zero_negative {
                    (states, pooled) = (last_row_zero(&states)?, last_row_zero(&pooled)?);
                }
                Ok(Embeddings { states, mask: None, pooled: Some(pooled) })
            }
            Encoders::T5(t5) => {
                let (tokenizer, encoder) = &**t5;
                let mut encoder = encoder.lock().unwrap_or_else(PoisonError::into_inner);
                let mut rows = Vec::with_capacity(texts.len());
                for text in &texts {
                    // PixArt's pipelines, without their clean_caption: `_text_preprocessing`.
                    let ids = tokenizer.encode(text.to_lowercase().trim())?;
                    rows.push(encoder.forward(&ids)?);
                }
                padded(&rows)
            }
        }
    }
}

fn ids(tokenizer: &ClipTokenizer, texts: &[&str]) -> Result<Vec<Vec<u32>>, task::Error> {
    texts.iter().map(|text| Ok(tokenizer.encode(text)?)).collect()
}

/// What `encode` makes of all texts, batch by batch, each of its tensors joined along the first dimension.
fn in_batches(
    texts: &[&str],
    mut encode: impl FnMut(&[&str]) -> Result<Vec<Tensor>, task::Error>,
) -> Result<Vec<Tensor>, task::Error> {
    let mut parts: Vec<Vec<Tensor>> = Vec::new();
    for texts in texts.chunks(BATCH) {
        parts.push(encode(texts)?);
    }
    let count = parts.first().map_or(0, Vec::len);
    let joined = (0..count).map(|i| Tensor::cat(&parts.iter().map(|part| &part[i]).collect::<Vec<_>>(), 0));
    Ok(joined.collect::<candle_core::Result<_>>()?)
}

/// There is always the empty prompt.
fn nothing() -> task::Error {
    Error::Argument { argument: "prompts", problem: "there are none".to_owned() }.into()
}

fn last_row_zero(tensor: &Tensor) -> candle_core::Result<Tensor> {
    let rows = tensor.dim(0)?;
    let last = tensor.narrow(0, rows - 1, 1)?.zeros_like()?;
    Tensor::cat(&[tensor.narrow(0, 0, rows - 1)?, last], 0)
}

/// Texts of different lengths, [tokens, D] each, with zeros behind the shorter ones and the mask that hides them.
fn padded(rows: &[Tensor]) -> Result<Embeddings, task::Error> {
    let longest = rows.iter().map(|row| row.dim(0)).collect::<candle_core::Result<Vec<_>>>()?;
    let longest = longest.into_iter().max().unwrap_or(0);
    let mut mask = Vec::with_capacity(rows.len() * longest);
    let mut states = Vec::with_capacity(rows.len());
    for row in rows {
        let tokens = row.dim(0)?;
        states.push(row.pad_with_zeros(0, 0, longest - tokens)?);
        mask.extend((0..longest).map(|token| f32::from(u8::from(token < tokens))));
    }
    let mask = Tensor::from_vec(mask, (rows.len(), longest), &Device::Cpu)?.to_dtype(DType::F32)?;
    Ok(Embeddings { states: Tensor::stack(&states, 0)?, mask: Some(mask), pooled: None })
}
