//! diffusers' `Attention` (`models/attention_processor.py`), as `attn1` and `attn2` of a transformer block.

use candle_core::Tensor;
use deltaconv_proto::teacher::{self, Layer};

use super::conditions::Text;
use super::ops::{AttentionMap, Heads, Linear, Projected, Row, attention, attention_maps};
use super::{Call, Error, SelfAttention, Weights};

/// `attn1`: a layer's own attention.
pub(crate) struct OwnAttention {
    heads: Heads,
    /// C → 3C: queries, keys, values.
    projections: Linear,
    to_out: Linear,
}

impl OwnAttention {
    /// `bias`: whether the projections to queries, keys and values have one.
    pub(super) fn load(
        weights: &mut Weights,
        path: &str,
        attention: teacher::Attention,
        bias: bool,
    ) -> Result<Self, Error> {
        Self::of_heads(weights, path, (attention.heads, attention.head_dim), bias)
    }

    /// As [`Self::load`], with so many heads of so many channels.
    pub(crate) fn of_heads(
        weights: &mut Weights,
        path: &str,
        (heads, head_dim): (usize, usize),
        bias: bool,
    ) -> Result<Self, Error> {
        let inner = heads * head_dim;
        let paths = ["to_q", "to_k", "to_v"].map(|projection| format!("{path}.{projection}"));
        Ok(Self {
            heads: Heads { count: heads, dim: head_dim },
            projections: weights.linears(&paths, inner, inner, bias)?,
            to_out: weights.linear(&format!("{path}.to_out.0"), inner, inner)?,
        })
    }

    /// x [B, H, W, C] → the same shape.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        let inner = self.heads.count * self.heads.dim;
        let projected = self.projections.forward(x)?;
        let [query, key, value] = [0, 1, 2].map(|i| Projected { tensor: &projected, offset: i * inner });
        self.to_out.forward(&attention(query, key, value, self.heads, None)?)
    }

    /// What `each` makes of the attention maps over x, by sample, then by head.
    pub(crate) fn maps<T: Send>(
        &self,
        x: &Tensor,
        each: impl Fn(&AttentionMap<'_>) -> T + Sync,
    ) -> Result<Vec<T>, Error> {
        let inner = self.heads.count * self.heads.dim;
        let projected = self.projections.forward(x)?;
        let [query, key] = [0, 1].map(|i| Projected { tensor: &projected, offset: i * inner });
        Ok(attention_maps(query, key, self.heads, each)?)
    }
}

/// `attn2`: attention to the text.
pub(super) struct CrossAttention {
    heads: Heads,
    to_q: Linear,
    /// D → 2C: keys, values.
    projections: Linear,
    to_out: Linear,
}

impl CrossAttention {
    /// `bias`: whether the projections to queries, keys and values have one.
    pub(super) fn load(
        weights: &mut Weights,
        path: &str,
        attention: teacher::Attention,
        bias: bool,
    ) -> Result<Self, Error> {
        let inner = attention.heads * attention.head_dim;
        let paths = ["to_k", "to_v"].map(|projection| format!("{path}.{projection}"));
        Ok(Self {
            heads: Heads { count: attention.heads, dim: attention.head_dim },
            to_q: weights.linears(&[format!("{path}.to_q")], inner, inner, bias)?,
            projections: weights.linears(&paths, attention.context, inner, bias)?,
            to_out: weights.linear(&format!("{path}.to_out.0"), inner, inner)?,
        })
    }

    /// residual + the attention of x, both [B, H, W, C].
    pub(super) fn forward_onto(&self, residual: &Tensor, x: &Tensor, text: &Text) -> Result<Tensor, Error> {
        let inner = self.heads.count * self.heads.dim;
        let queries = self.to_q.forward(x)?;
        let projected = self.projections.forward(&text.states)?;
        let query = Projected { tensor: &queries, offset: 0 };
        let [key, value] = [0, 1].map(|i| Projected { tensor: &projected, offset: i * inner });
        let attended = attention(query, key, value, self.heads, text.bias.as_ref())?;
        self.to_out.forward_onto(residual, &attended)
    }
}

/// The layers of a pass that are still to come, and what computes their outputs.
pub(super) struct Layers<'a> {
    pub(super) rest: std::slice::Iter<'a, Layer>,
    pub(super) attention: &'a mut dyn SelfAttention,
}

impl Layers<'_> {
    /// The output of the pass's next layer, [B, H, W, C], contiguous. It will be multiplied by `gate`, where there is one,
    /// and added to `residual`.
    pub(super) fn next(
        &mut self,
        own: Option<&OwnAttention>,
        input: &Tensor,
        residual: &Tensor,
        gate: Option<Row<'_>>,
    ) -> Result<Tensor, Error> {
        // The layers were listed by the walk that built the modules, so there is one for each.
        let Some(layer) = self.rest.next() else {
            let problem = "more layers in the model than in its configuration".to_owned();
            return Err(Error::Argument { argument: "sample", problem });
        };
        debug_assert_eq!(input.dims()[1..], [layer.height, layer.width, layer.channels]);
        let output = self.attention.apply(&Call { layer, input, residual, gate, own })?;
        if output.dims() != input.dims() {
            let source = format!("its output has shape {:?}, its input {:?}", output.dims(), input.dims()).into();
            return Err(Error::Layer { layer: layer.name.clone(), source });
        }
        Ok(output.contiguous()?)
    }
}
