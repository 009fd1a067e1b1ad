use super::Error;
use super::fields::Fields;
use crate::brief::Brief;

const MAX_CHANNELS: usize = 1 << 16;

/// transformers' `T5EncoderModel` (`models/t5/modeling_t5.py`), of version 1.1: gated GELU.
#[derive(Debug, Clone, PartialEq)]
pub struct T5Config {
    /// Tokens.
    pub vocabulary: usize,
    /// Channels.
    pub channels: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Channels between the linears of a feed-forward layer.
    pub intermediate: usize,
    /// Layers.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Relative positions that attention tells apart.
    pub buckets: usize,
    /// Distance from which on all positions are one.
    pub max_distance: usize,
    /// ε of the norms.
    pub norm_eps: f64,
}

impl T5Config {
    /// Reads an encoder's `config.json`. Of transformers' many settings that don't change the encoder none is looked at.
    ///
    /// # Errors
    /// A class, an activation or a number that is not supported.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let mut fields = Fields::parse(json)?;
        let unsupported = |field, value: Option<&str>, supported| {
            let value = Brief(value.unwrap_or("absent")).to_string();
            Err(Error::Unsupported { field, value, supported })
        };
        let model = fields.string("model_type", None)?;
        if model.as_deref() != Some("t5") {
            return unsupported("model_type", model.as_deref(), "t5");
        }
        let gated = fields.string("feed_forward_proj", Some("relu"))?;
        if gated.as_deref() != Some("gated-gelu") {
            return unsupported("feed_forward_proj", gated.as_deref(), "gated-gelu");
        }
        Ok(Self {
            vocabulary: fields.count("vocab_size", 32128, 1, 1 << 24)?,
            channels: fields.count("d_model", 512, 1, MAX_CHANNELS)?,
            head_dim: fields.count("d_kv", 64, 1, MAX_CHANNELS)?,
            intermediate: fields.count("d_ff", 2048, 1, 1 << 20)?,
            depth: fields.count("num_layers", 6, 1, 1024)?,
            heads: fields.count("num_heads", 8, 1, 1024)?,
            buckets: fields.count("relative_attention_num_buckets", 32, 4, 1 << 16)?,
            max_distance: fields.count("relative_attention_max_distance", 128, 2, 1 << 16)?,
            norm_eps: fields.number("layer_norm_epsilon", 1e-6)?,
        })
    }

    /// Name and shape of every tensor of the weights.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (c, inner, wide) = (self.channels, self.heads.saturating_mul(self.head_dim), self.intermediate);
        let mut tensors = vec![("shared.weight".to_owned(), vec![self.vocabulary, c])];
        let mut push = |name: String, shape: Vec<usize>| tensors.push((format!("{name}.weight"), shape));
        for block in (0..self.depth).map(|i| format!("encoder.block.{i}.layer")) {
            for projection in ["q", "k", "v"] {
                push(format!("{block}.0.SelfAttention.{projection}"), vec![inner, c]);
            }
            push(format!("{block}.0.SelfAttention.o"), vec![c, inner]);
            push(format!("{block}.0.layer_norm"), vec![c]);
            push(format!("{block}.1.DenseReluDense.wi_0"), vec![wide, c]);
            push(format!("{block}.1.DenseReluDense.wi_1"), vec![wide, c]);
            push(format!("{block}.1.DenseReluDense.wo"), vec![c, wide]);
            push(format!("{block}.1.layer_norm"), vec![c]);
        }
        // All blocks take the first one's.
        let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias".to_owned();
        push(bias, vec![self.buckets, self.heads]);
        push("encoder.final_layer_norm".to_owned(), vec![c]);
        tensors
    }
}
