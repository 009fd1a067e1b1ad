//! The trained block as an object.

use std::collections::BTreeMap;

use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::{keys, v1};

use super::training::Training;
use crate::task::{Context, Error};

/// Writes the block with its published tensor names, and with its held-out error and its curve as metadata. The same
/// training gives the same bytes.
pub(super) fn write(
    context: &Context,
    round: u32,
    layer: &v1::LayerPlan,
    training: &Training,
) -> Result<v1::ObjectRef, Error> {
    let curve: Vec<String> = training
        .trained
        .curve
        .iter()
        .map(|point| format!("[{},{:e},{:e}]", point.step, point.training_error, point.held_out_error))
        .collect();
    let metadata = BTreeMap::from([
        ("relative_error".to_owned(), format!("{:e}", training.held_out_error())),
        ("curve".to_owned(), format!("[{}]", curve.join(","))),
    ]);
    let block = training.block();
    let tensors: Vec<_> = block.iter().collect();
    let header = tensors.iter().map(|(tensor, _)| (tensor.name.as_str(), Dtype::F32, tensor.dims.as_slice()));
    let mut bytes = serialize_header(header, &metadata)?;
    for (_, values) in tensors {
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    let key = keys::block(round, &layer.name, &context.attempt);
    Ok(context.wait(context.objects.put(&key, bytes))?)
}
