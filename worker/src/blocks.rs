//! Trained blocks as objects: read from what tasks wrote, and written.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::Tensor;
use deltaconv_kernels::{BlockOp, Parameters};
use deltaconv_proto::objects::Objects;
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::{block, v1};
use futures::{StreamExt, TryStreamExt};

use crate::container::Container;
use crate::distill::block_shape;
use crate::task::Error;
use crate::teacher::{self, Call, SelfAttention};

/// Objects that are read at a time.
const READS: usize = 8;

/// Blocks by layer.
pub(crate) type Blocks = HashMap<String, BlockOp>;

/// Reads the blocks, which are verified. Each is of a layer of the plan.
pub(crate) async fn read(objects: &Objects, plan: &v1::JobPlan, blocks: &[v1::BlockRef]) -> Result<Blocks, Error> {
    let of_layer = |block: &v1::BlockRef| {
        let planned = plan.layers.iter().find(|layer| layer.name == block.layer).cloned();
        let (object, inter_ratio) = (block.object.clone(), block.inter_ratio);
        async move {
            let layer = of_width(planned.ok_or(Error::Incomplete("layer"))?, inter_ratio);
            let object = object.ok_or(Error::Incomplete("block"))?;
            let parameters = read_one(objects, &layer, &object).await?;
            Ok::<_, Error>((layer.name, BlockOp::new(Arc::new(parameters))))
        }
    };
    futures::stream::iter(blocks.iter().map(of_layer)).buffered(READS).try_collect().await
}

/// The layer as planned, but for its block's inner width over C; 0 leaves that, too.
pub(crate) fn of_width(layer: v1::LayerPlan, inter_ratio: f64) -> v1::LayerPlan {
    if inter_ratio > 0.0 { v1::LayerPlan { inter_ratio, ..layer } } else { layer }
}

/// Reads the block of one layer, which is verified.
pub(crate) async fn read_one(
    objects: &Objects,
    layer: &v1::LayerPlan,
    object: &v1::ObjectRef,
) -> Result<Parameters, Error> {
    let bytes = objects.get_verified(object).await?;
    let container = Container::parse(&object.key, &bytes)?;
    let mut parameters = Parameters::zeros(&block_shape(layer)?);
    for (name, dims) in block::tensors(layer) {
        parameters.set(&name, &container.f32(&name, &dims)?)?;
    }
    Ok(parameters)
}

/// Writes a block with its published tensor names.
pub(crate) async fn write(
    objects: &Objects,
    key: &str,
    block: &Parameters,
    metadata: &BTreeMap<String, String>,
) -> Result<v1::ObjectRef, Error> {
    let tensors: Vec<_> = block.iter().collect();
    let header = tensors.iter().map(|(tensor, _)| (tensor.name.as_str(), Dtype::F32, tensor.dims.as_slice()));
    let mut bytes = serialize_header(header, metadata)?;
    for (_, values) in tensors {
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    Ok(objects.put(key, bytes).await?)
}

/// The blocks in place of attention.
pub(crate) struct InPlace<'a>(pub(crate) &'a Blocks);

impl SelfAttention for InPlace<'_> {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, teacher::Error> {
        match self.0.get(&call.layer.name) {
            Some(block) => Ok(call.input.apply_op1_no_bwd(block)?),
            // A layer that was kept.
            None => call.attention(),
        }
    }
}
