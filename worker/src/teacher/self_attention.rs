//! Where a layer's input becomes its output.

use std::collections::BTreeSet;

use candle_core::Tensor;
use deltaconv_proto::teacher::Layer;

use super::Error;
use super::attention::OwnAttention;
use super::ops::{AttentionMap, Row, gated};

/// One layer's turn in a forward pass.
pub struct Call<'a> {
    /// The layer, its map size that of the latents that go through.
    pub layer: &'a Layer,
    /// What the layer attends over, after norm1: [B, H, W, C] f32, contiguous.
    pub input: &'a Tensor,
    /// The residual stream before the layer, to which its output will be added: [B, H, W, C] f32.
    pub residual: &'a Tensor,
    /// What the layer's output is multiplied by before it is added, where the model has such a gate.
    pub(super) gate: Option<Row<'a>>,
    /// The teacher's own attention; none in a model that was loaded without.
    pub(super) own: Option<&'a OwnAttention>,
}

impl Call<'_> {
    /// The output of the teacher's own attention: [B, H, W, C] f32.
    ///
    /// # Errors
    /// [`Error::NoAttention`] in a model that was loaded without.
    pub fn attention(&self) -> Result<Tensor, Error> {
        self.own()?.forward(self.input)
    }

    /// What the output is multiplied by, sample by sample, before it is added to the residual stream: [B, 1, 1, C] f32.
    /// `None` in models without such a gate.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn gate(&self) -> Result<Option<Tensor>, Error> {
        self.gate.map(|row| Ok(row.tensor()?.unsqueeze(1)?.unsqueeze(1)?)).transpose()
    }

    /// What the layer adds to the residual stream with this output, which may be tracked: both [B, H, W, C].
    ///
    /// # Errors
    /// A failure of the device.
    pub(crate) fn gated(&self, output: &Tensor) -> Result<Tensor, Error> {
        match self.gate {
            None => Ok(output.clone()),
            Some(row) => gated(row, output),
        }
    }

    /// What `each` makes of the teacher's own attention maps, by sample, then by head.
    ///
    /// # Errors
    /// As [`Self::attention`].
    pub(crate) fn attention_maps<T: Send>(
        &self,
        each: impl Fn(&AttentionMap<'_>) -> T + Sync,
    ) -> Result<Vec<T>, Error> {
        self.own()?.maps(self.input, each)
    }

    fn own(&self) -> Result<&OwnAttention, Error> {
        self.own.ok_or_else(|| Error::NoAttention { layer: self.layer.name.clone() })
    }
}

/// What computes the layers' outputs in a forward pass.
pub trait SelfAttention {
    /// The layer's output, [B, H, W, C] f32, the shape of its input.
    ///
    /// # Errors
    /// Whatever stops the forward pass; [`Error::Layer`] is for an implementation's own errors.
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, Error>;
}

/// The teacher as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Original;

impl SelfAttention for Original {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, Error> {
        call.attention()
    }
}

/// The teacher with the output of some layers set to zero: the floor that a student is measured from.
#[derive(Debug, Clone, Default)]
pub struct Removed {
    /// Layers that stay as they are.
    pub kept: BTreeSet<String>,
}

impl SelfAttention for Removed {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, Error> {
        match self.kept.contains(&call.layer.name) {
            true => call.attention(),
            false => Ok(call.input.zeros_like()?),
        }
    }
}
