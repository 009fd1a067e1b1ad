//! transformers' CLIP text encoder (`models/clip/modeling_clip.py`).
//!
//! candle-transformers has one for some models by name; here it is of any size, with the GELU of the error function that
//! SD 2 and SDXL's second encoder have, and with the hidden states and the pooled embedding that SDXL takes.

use candle_core::{D, DType, Device, Tensor};
use deltaconv_proto::teacher::{ClipActivation, ClipConfig, ClipPooling};

use super::super::ops::{LayerNorm, Linear};
use super::super::{Error, Weights};

/// A text encoder in host memory, f32.
#[derive(Debug)]
pub(super) struct Clip {
    config: ClipConfig,
    /// [vocabulary, C].
    tokens: Tensor,
    /// [positions, C].
    positions: Tensor,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    projection: Option<Linear>,
}

#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    /// C → 3C: queries, keys, values.
    projections: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// What comes out of an encoder.
pub(super) struct Encoded {
    /// After the last layer and its norm: [B, T, C].
    pub(super) last: Tensor,
    /// After the layer before the last, without a norm: [B, T, C].
    pub(super) penultimate: Tensor,
    /// Of the whole text, projected where the encoder has a projection: [B, P].
    pub(super) pooled: Tensor,
}

impl Clip {
    pub(super) fn load(config: &ClipConfig, weights: &mut Weights) -> Result<Self, Error> {
        let c = config.channels;
        let mut table = |name: &str, rows: usize| -> Result<Tensor, Error> {
            let values = weights.read(&format!("text_model.embeddings.{name}.weight"), &[rows, c])?;
            Ok(Tensor::from_vec(values, (rows, c), &Device::Cpu)?)
        };
        let (tokens, positions) =
            (table("token_embedding", config.vocabulary)?, table("position_embedding", config.positions)?);
        let norm = |weights: &mut Weights, path: &str| -> Result<LayerNorm, Error> {
            weights.layer_norm(path, c, config.norm_eps as f32)
        };
        let mut layers = Vec::with_capacity(config.depth);
        for path in (0..config.depth).map(|i| format!("text_model.encoder.layers.{i}")) {
            let projections = ["q_proj", "k_proj", "v_proj"].map(|name| format!("{path}.self_attn.{name}"));
            layers.push(Layer {
                norm1: norm(weights, &format!("{path}.layer_norm1"))?,
                projections: weights.linears(&projections, c, c, true)?,
                out: weights.linear(&format!("{path}.self_attn.out_proj"), c, c)?,
                norm2: norm(weights, &format!("{path}.layer_norm2"))?,
                fc1: weights.linear(&format!("{path}.mlp.fc1"), c, config.intermediate)?,
                fc2: weights.linear(&format!("{path}.mlp.fc2"), config.intermediate, c)?,
            });
        }
        Ok(Self {
            tokens,
            positions,
            layers,
            final_norm: norm(weights, "text_model.final_layer_norm")?,
            projection: match config.projection {
                Some(width) => Some(weights.linears(&["text_projection".to_owned()], c, width, false)?),
                None => None,
            },
            config: config.clone(),
        })
    }

    /// `ids`: B texts of T tokens each, the padding included.
    pub(super) fn forward(&self, ids: &[Vec<u32>]) -> Result<Encoded, Error> {
        let (batch, tokens, c) = (ids.len(), ids.first().map_or(0, Vec::len), self.config.channels);
        if tokens > self.config.positions || ids.iter().flatten().any(|id| *id as usize >= self.config.vocabulary) {
            let (longest, vocabulary) = (self.config.positions, self.config.vocabulary);
            let problem =
                format!("the tokenizer's ids do not fit an encoder of {vocabulary} tokens, {longest} at a time");
            return Err(Error::Argument { argument: "prompts", problem });
        }
        let flat = Tensor::new(ids.concat(), &Device::Cpu)?;
        let embedded = self.tokens.index_select(&flat, 0)?.reshape((batch, tokens, c))?;
        let mut x = embedded.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?;
        let causal = causal(tokens)?;
        let mut penultimate = x.clone();
        for layer in &self.layers {
            penultimate = x;
            x = self.layer(layer, &penultimate, &causal)?;
        }
        let last = self.final_norm.forward(&x)?;
        let ends = ids.iter().map(|ids| self.end_of_text(ids));
        let rows: Vec<u32> = ends.enumerate().map(|(sample, end)| (sample * tokens + end) as u32).collect();
        let pooled = last.reshape((batch * tokens, c))?.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?;
        let pooled = match &self.projection {
            Some(projection) => projection.forward(&pooled)?,
            None => pooled,
        };
        Ok(Encoded { last, penultimate, pooled })
    }

    fn layer(&self, layer: &Layer, x: &Tensor, causal: &Tensor) -> Result<Tensor, Error> {
        let (batch, tokens, c) = x.dims3()?;
        let (heads, dim) = (self.config.heads, c / self.config.heads);
        let projected = layer.projections.forward(&layer.norm1.forward(x)?)?;
        let heads_of = |i: usize| -> Result<Tensor, Error> {
            let part = projected.narrow(2, i * c, c)?.reshape((batch, tokens, heads, dim))?;
            Ok(part.transpose(1, 2)?.contiguous()?)
        };
        let scores = heads_of(0)?.matmul(&heads_of(1)?.transpose(2, 3)?)?.affine((dim as f64).powf(-0.5), 0.0)?;
        let probabilities = candle_nn::ops::softmax(&scores.broadcast_add(causal)?, D::Minus1)?;
        let attended = probabilities.matmul(&heads_of(2)?)?.transpose(1, 2)?.reshape((batch, tokens, c))?;
        let x = layer.out.forward_onto(x, &attended)?;
        let raised = layer.fc1.forward(&layer.norm2.forward(&x)?)?;
        let raised = match self.config.activation {
            ClipActivation::QuickGelu => raised.mul(&candle_nn::ops::sigmoid(&raised.affine(1.702, 0.0)?)?)?,
            ClipActivation::Gelu => raised.gelu_erf()?,
        };
        layer.fc2.forward_onto(&x, &raised)
    }

    /// Where the pooled embedding is taken.
    fn end_of_text(&self, ids: &[u32]) -> usize {
        let end = match self.config.pooling {
            ClipPooling::EndOfText(end) => end,
            ClipPooling::LargestId => ids.iter().copied().max().unwrap_or(0),
        };
        // As torch's argmax of a comparison: the first, or 0 where there is none.
        ids.iter().position(|id| *id == end).unwrap_or(0)
    }
}

/// What is added to the scores: each token sees itself and those before it. [T, T] f32.
fn causal(tokens: usize) -> Result<Tensor, Error> {
    let hidden = |query: usize, key: usize| if key > query { f32::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f32> = (0..tokens * tokens).map(|i| hidden(i / tokens, i % tokens)).collect();
    Ok(Tensor::from_vec(mask, (tokens, tokens), &Device::Cpu)?.to_dtype(DType::F32)?)
}
