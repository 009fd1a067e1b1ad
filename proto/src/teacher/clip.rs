use super::Error;
use super::fields::Fields;
use crate::brief::Brief;

const MAX_CHANNELS: usize = 1 << 16;

/// The activation of a CLIP encoder's feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipActivation {
    /// x σ(1.702 x).
    QuickGelu,
    /// x Φ(x).
    Gelu,
}

/// Where a CLIP encoder takes the embedding of the whole text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipPooling {
    /// At the first of the largest ids, as files from before transformers 4.30 mean it (their `eos_token_id` is 2).
    LargestId,
    /// At the first token of this id.
    EndOfText(u32),
}

/// transformers' `CLIPTextModel` and `CLIPTextModelWithProjection` (`models/clip/modeling_clip.py`).
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// Tokens.
    pub vocabulary: usize,
    /// Channels.
    pub channels: usize,
    /// Channels between the two linears of a feed-forward layer.
    pub intermediate: usize,
    /// Layers.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Longest text, in tokens.
    pub positions: usize,
    /// Of the feed-forward layers.
    pub activation: ClipActivation,
    /// ε of the layer norms.
    pub norm_eps: f64,
    /// Where the embedding of the whole text is taken.
    pub pooling: ClipPooling,
    /// Channels that the embedding of the whole text is projected to; none without projection.
    pub projection: Option<usize>,
}

impl ClipConfig {
    /// Reads an encoder's `config.json`. Of transformers' many settings that don't change the encoder none is looked at.
    ///
    /// # Errors
    /// A class, an activation or a number that is not supported.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let mut fields = Fields::parse(json)?;
        let architecture = fields.take("architectures").and_then(|value| value[0].as_str().map(str::to_owned));
        let with_projection = match architecture.as_deref() {
            Some("CLIPTextModel") => false,
            Some("CLIPTextModelWithProjection") => true,
            other => {
                let value = Brief(other.unwrap_or("absent")).to_string();
                let supported = "CLIPTextModel, CLIPTextModelWithProjection";
                return Err(Error::Unsupported { field: "architectures", value, supported });
            }
        };
        let activation = match fields.string("hidden_act", Some("quick_gelu"))?.as_deref() {
            Some("quick_gelu") => ClipActivation::QuickGelu,
            Some("gelu") => ClipActivation::Gelu,
            other => {
                let value = Brief(other.unwrap_or("null")).to_string();
                return Err(Error::Unsupported { field: "hidden_act", value, supported: "quick_gelu, gelu" });
            }
        };
        let vocabulary = fields.count("vocab_size", 49408, 1, 1 << 24)?;
        let channels = fields.count("hidden_size", 512, 1, MAX_CHANNELS)?;
        let heads = fields.count("num_attention_heads", 8, 1, MAX_CHANNELS)?;
        if !channels.is_multiple_of(heads) {
            let expected = format!("a divisor of the {channels} channels");
            return Err(Error::Invalid { field: "num_attention_heads", value: heads.to_string(), expected });
        }
        let pooling = match fields.count("eos_token_id", 49407, 0, vocabulary)? {
            2 => ClipPooling::LargestId,
            id => ClipPooling::EndOfText(id as u32),
        };
        let projection = fields.count("projection_dim", 512, 1, MAX_CHANNELS)?;
        Ok(Self {
            vocabulary,
            channels,
            intermediate: fields.count("intermediate_size", 2048, 1, MAX_CHANNELS)?,
            depth: fields.count("num_hidden_layers", 12, 1, 1024)?,
            heads,
            positions: fields.count("max_position_embeddings", 77, 3, 4096)?,
            activation,
            norm_eps: fields.number("layer_norm_eps", 1e-5)?,
            pooling,
            projection: with_projection.then_some(projection),
        })
    }

    /// Name and shape of every tensor of the weights.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (c, wide) = (self.channels, self.intermediate);
        let mut tensors = vec![
            ("text_model.embeddings.token_embedding.weight".to_owned(), vec![self.vocabulary, c]),
            ("text_model.embeddings.position_embedding.weight".to_owned(), vec![self.positions, c]),
        ];
        let mut pair = |name: String, shape: &[usize]| {
            tensors.push((format!("{name}.weight"), shape.to_vec()));
            tensors.push((format!("{name}.bias"), vec![shape[0]]));
        };
        for layer in (0..self.depth).map(|i| format!("text_model.encoder.layers.{i}")) {
            for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                pair(format!("{layer}.self_attn.{projection}"), &[c, c]);
            }
            pair(format!("{layer}.mlp.fc1"), &[wide, c]);
            pair(format!("{layer}.mlp.fc2"), &[c, wide]);
            pair(format!("{layer}.layer_norm1"), &[c]);
            pair(format!("{layer}.layer_norm2"), &[c]);
        }
        pair("text_model.final_layer_norm".to_owned(), &[c]);
        if let Some(projection) = self.projection {
            tensors.push(("text_projection.weight".to_owned(), vec![projection, c]));
        }
        tensors
    }
}
