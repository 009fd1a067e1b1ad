//! The converted model, from the folder that assembly wrote.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::Tensor;
use deltaconv_kernels::{BlockOp, Parameters};
use deltaconv_proto::description::{Description, FORMAT_VERSION};
use deltaconv_proto::objects::Objects;
use deltaconv_proto::{block, keys, v1};

use crate::distill::block_shape;
use crate::models::load_denoiser;
use crate::task::Error;
use crate::teacher::{self, Call, Denoiser, LoadOptions, SelfAttention};

const MAX_DESCRIPTION_BYTES: u64 = 16 << 20;

/// A model with blocks in place of attention.
pub(crate) struct Student {
    pub(crate) denoiser: Denoiser,
    blocks: HashMap<String, BlockOp>,
}

impl Student {
    /// Loads the output of the job whose prefix `objects` are; its denoiser lies in `folder`.
    pub(crate) async fn load(objects: &Objects, folder: &str) -> Result<Self, Error> {
        let output = objects.below(keys::OUTPUT)?;
        let json = output.get(keys::DESCRIPTION, MAX_DESCRIPTION_BYTES).await?;
        let unexpected =
            |reason: String| Error::Unexpected { what: format!("{}/{}", output.url(), keys::DESCRIPTION), reason };
        let description: Description = serde_json::from_slice(&json).map_err(|e| unexpected(e.to_string()))?;
        if description.format_version != FORMAT_VERSION {
            let found = description.format_version;
            return Err(unexpected(format!("format_version is {found}, this worker reads {FORMAT_VERSION}")));
        }
        let options = LoadOptions { without_self_attention: true };
        let (denoiser, mut weights) = load_denoiser(&output, folder, options).await?;
        let mut blocks = HashMap::new();
        for layer in description.layers {
            let plan = v1::LayerPlan {
                name: layer.name.clone(),
                channels: layer.width,
                kernel_size: layer.kernel_size,
                scales: layer.scales,
                gate: layer.gate,
                inter_ratio: layer.inter_ratio,
                ..v1::LayerPlan::default()
            };
            let shape = block_shape(&plan)?;
            let mut parameters = Parameters::zeros(&shape);
            for (name, dims) in block::tensors(&plan) {
                let values = weights.read(&format!("{}{name}", block::prefix(&layer.name)), &dims)?;
                parameters.set(&name, &values)?;
            }
            blocks.insert(layer.name, BlockOp::new(Arc::new(parameters)));
        }
        Ok(Self { denoiser, blocks })
    }

    /// What takes the place of attention in [`Self::denoiser`].
    pub(crate) fn attention(&self) -> Blocks<'_> {
        Blocks { blocks: &self.blocks }
    }
}

/// The student's blocks, by layer.
pub(crate) struct Blocks<'a> {
    blocks: &'a HashMap<String, BlockOp>,
}

impl SelfAttention for Blocks<'_> {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, teacher::Error> {
        let no_block = || teacher::Error::NoAttention { layer: call.layer.name.clone() };
        let block = self.blocks.get(&call.layer.name).ok_or_else(no_block)?;
        Ok(call.input.apply_op1_no_bwd(block)?)
    }
}
