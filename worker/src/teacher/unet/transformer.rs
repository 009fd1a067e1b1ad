use candle_core::Tensor;
use deltaconv_proto::teacher;

use super::super::Error;
use super::super::attention::{CrossAttention, OwnAttention};
use super::super::ops::{FeedForward, FeedForwardActivation, GroupNorm, LayerNorm, Linear, add};
use super::Pass;
use super::builder::Builder;

/// diffusers' `Transformer2DModel` over the pixels of a map (`models/transformers/transformer_2d.py`).
pub(super) struct Transformer {
    norm: GroupNorm,
    proj_in: Linear,
    blocks: Vec<Block>,
    proj_out: Linear,
}

impl Transformer {
    pub(super) fn load(builder: &mut Builder<'_>, transformer: &teacher::Transformer) -> Result<Self, Error> {
        /// diffusers' `Transformer2DModel`, whatever the model's `norm_eps`.
        const EPS: f64 = 1e-6;
        let teacher::Transformer { name, channels, .. } = transformer;
        let inner = transformer.inner();
        let conv = !builder.config.use_linear_projection;
        let blocks =
            transformer.blocks().map(|path| Block::load(builder, &path, transformer)).collect::<Result<_, _>>()?;
        Ok(Self {
            norm: builder.group_norm(&format!("{name}.norm"), *channels, EPS)?,
            proj_in: builder.pointwise(&format!("{name}.proj_in"), *channels, inner, conv)?,
            blocks,
            proj_out: builder.pointwise(&format!("{name}.proj_out"), inner, *channels, conv)?,
        })
    }

    /// x [B, H, W, C] → the same shape.
    pub(super) fn forward(&self, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, Error> {
        let mut h = self.proj_in.forward(&self.norm.forward(x, None)?)?;
        for block in &self.blocks {
            h = block.forward(&h, pass)?;
        }
        self.proj_out.forward_onto(x, &h)
    }
}

/// diffusers' `BasicTransformerBlock` with layer norms (`models/attention.py`).
struct Block {
    norm1: LayerNorm,
    attn1: Attn1,
    norm2: LayerNorm,
    attn2: CrossAttention,
    norm3: LayerNorm,
    feed_forward: FeedForward,
}

/// The first attention of a block.
enum Attn1 {
    /// A layer.
    Layer(Option<OwnAttention>),
    /// With `only_cross_attention` it attends to the text, and is no layer.
    Cross(CrossAttention),
}

impl Block {
    fn load(builder: &mut Builder<'_>, path: &str, transformer: &teacher::Transformer) -> Result<Self, Error> {
        let inner = transformer.inner();
        let attention = transformer.attention;
        let attn1_path = format!("{path}.attn1");
        let attn1 = match (attention.only_cross_attention, builder.options.replaced.contains(path)) {
            (true, _) => Attn1::Cross(CrossAttention::load(builder.weights, &attn1_path, attention, false)?),
            (false, true) => Attn1::Layer(None),
            (false, false) => Attn1::Layer(Some(OwnAttention::load(builder.weights, &attn1_path, attention, false)?)),
        };
        Ok(Self {
            norm1: builder.layer_norm(&format!("{path}.norm1"), inner)?,
            attn1,
            norm2: builder.layer_norm(&format!("{path}.norm2"), inner)?,
            attn2: CrossAttention::load(builder.weights, &format!("{path}.attn2"), attention, false)?,
            norm3: builder.layer_norm(&format!("{path}.norm3"), inner)?,
            feed_forward: FeedForward {
                activation: FeedForwardActivation::Geglu,
                up: builder.weights.linear(&format!("{path}.ff.net.0.proj"), inner, 8 * inner)?,
                down: builder.weights.linear(&format!("{path}.ff.net.2"), 4 * inner, inner)?,
            },
        })
    }

    fn forward(&self, h: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, Error> {
        let input = self.norm1.forward(h)?;
        let h = match &self.attn1 {
            Attn1::Layer(own) => add(h, &pass.layers.next(own.as_ref(), &input, h, None)?)?,
            Attn1::Cross(attn1) => attn1.forward_onto(h, &input, &pass.text)?,
        };
        let h = self.attn2.forward_onto(&h, &self.norm2.forward(&h)?, &pass.text)?;
        self.feed_forward.forward_onto(&h, &self.norm3.forward(&h)?)
    }
}
