use candle_core::Tensor;
use deltaconv_proto::teacher;

use super::super::ops::{FeedForward, GroupNorm, Heads, LayerNorm, Linear, Projected, attention};
use super::super::{Call, Error};
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
        Ok(self.proj_out.forward_onto(x, &h)?)
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
        let attn1 = match (attention.only_cross_attention, builder.options.without_self_attention) {
            (true, _) => Attn1::Cross(CrossAttention::load(builder, &attn1_path, attention)?),
            (false, true) => Attn1::Layer(None),
            (false, false) => Attn1::Layer(Some(OwnAttention::load(builder, &attn1_path, attention)?)),
        };
        Ok(Self {
            norm1: builder.layer_norm(&format!("{path}.norm1"), inner)?,
            attn1,
            norm2: builder.layer_norm(&format!("{path}.norm2"), inner)?,
            attn2: CrossAttention::load(builder, &format!("{path}.attn2"), attention)?,
            norm3: builder.layer_norm(&format!("{path}.norm3"), inner)?,
            feed_forward: FeedForward {
                up: builder.linear(&format!("{path}.ff.net.0.proj"), inner, 8 * inner)?,
                down: builder.linear(&format!("{path}.ff.net.2"), 4 * inner, inner)?,
            },
        })
    }

    fn forward(&self, h: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor, Error> {
        let input = self.norm1.forward(h)?;
        let h = match &self.attn1 {
            Attn1::Layer(own) => h.add(&replaceable(own.as_ref(), &input, h, pass)?)?,
            Attn1::Cross(attn1) => attn1.forward_onto(h, &input, pass.encoder_hidden_states)?,
        };
        let h = self.attn2.forward_onto(&h, &self.norm2.forward(&h)?, pass.encoder_hidden_states)?;
        Ok(self.feed_forward.forward_onto(&h, &self.norm3.forward(&h)?)?)
    }
}

/// The output of the pass's next layer.
fn replaceable(
    own: Option<&OwnAttention>,
    input: &Tensor,
    residual: &Tensor,
    pass: &mut Pass<'_>,
) -> Result<Tensor, Error> {
    // The layers were listed by the walk that built the modules, so there is one for each.
    let Some(layer) = pass.layers.next() else {
        let problem = "more layers in the model than in its configuration".to_owned();
        return Err(Error::Argument { argument: "sample", problem });
    };
    debug_assert_eq!(input.dims()[1..], [layer.height, layer.width, layer.channels]);
    let original = || match own {
        Some(own) => own.forward(input),
        None => Err(Error::NoAttention { layer: layer.name.clone() }),
    };
    let output = pass.attention.apply(&Call { layer, input, residual, attention: &original })?;
    if output.dims() != input.dims() {
        let source = format!("its output has shape {:?}, its input {:?}", output.dims(), input.dims()).into();
        return Err(Error::Layer { layer: layer.name.clone(), source });
    }
    Ok(output.contiguous()?)
}

/// `attn1`: a layer's own attention.
struct OwnAttention {
    heads: Heads,
    /// C → 3C: queries, keys, values.
    projections: Linear,
    to_out: Linear,
}

impl OwnAttention {
    fn load(builder: &mut Builder<'_>, path: &str, attention: teacher::Attention) -> Result<Self, Error> {
        let inner = attention.heads * attention.head_dim;
        let paths = ["to_q", "to_k", "to_v"].map(|projection| format!("{path}.{projection}"));
        Ok(Self {
            heads: Heads { count: attention.heads, dim: attention.head_dim },
            projections: builder.linears(&paths, inner, inner)?,
            to_out: builder.linear(&format!("{path}.to_out.0"), inner, inner)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        let inner = self.heads.count * self.heads.dim;
        let projected = self.projections.forward(x)?;
        let [query, key, value] = [0, 1, 2].map(|i| Projected { tensor: &projected, offset: i * inner });
        Ok(self.to_out.forward(&attention(query, key, value, self.heads)?)?)
    }
}

/// `attn2`: attention to the text.
struct CrossAttention {
    heads: Heads,
    to_q: Linear,
    /// D → 2C: keys, values.
    projections: Linear,
    to_out: Linear,
}

impl CrossAttention {
    fn load(builder: &mut Builder<'_>, path: &str, attention: teacher::Attention) -> Result<Self, Error> {
        let inner = attention.heads * attention.head_dim;
        let paths = ["to_k", "to_v"].map(|projection| format!("{path}.{projection}"));
        Ok(Self {
            heads: Heads { count: attention.heads, dim: attention.head_dim },
            to_q: builder.linears(&[format!("{path}.to_q")], inner, inner)?,
            projections: builder.linears(&paths, attention.context, inner)?,
            to_out: builder.linear(&format!("{path}.to_out.0"), inner, inner)?,
        })
    }

    fn forward_onto(&self, residual: &Tensor, x: &Tensor, text: &Tensor) -> Result<Tensor, Error> {
        let inner = self.heads.count * self.heads.dim;
        let queries = self.to_q.forward(x)?;
        let projected = self.projections.forward(text)?;
        let query = Projected { tensor: &queries, offset: 0 };
        let [key, value] = [0, 1].map(|i| Projected { tensor: &projected, offset: i * inner });
        Ok(self.to_out.forward_onto(residual, &attention(query, key, value, self.heads)?)?)
    }
}
