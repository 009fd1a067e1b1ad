//! The trained blocks: read one at a time, checked, and written alone.

use std::collections::BTreeMap;

use bytes::Bytes;
use deltaconv_proto::block;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::v1::{JobPlan, LayerPlan, ObjectRef};

use super::Error;
use super::stream::Upload;
use super::tensors::Tensors;
use super::verify::block as expectation;

/// A layer and the object that holds its block.
pub type LayerBlock = (LayerPlan, ObjectRef);

/// The blocks in forward order, one for each layer of the plan.
pub(super) fn in_forward_order(plan: &JobPlan, blocks: &[LayerBlock]) -> Result<Vec<LayerBlock>, Error> {
    let mut blocks = blocks.to_vec();
    blocks.sort_by_key(|(layer, _)| layer.index);
    if blocks.iter().map(|(layer, _)| layer).eq(&plan.layers) {
        return Ok(blocks);
    }
    let expected = plan.layers.iter().map(|layer| layer.name.clone()).collect();
    Err(Error::Blocks { expected, found: blocks.into_iter().map(|(layer, _)| layer.name).collect() })
}

/// Name and shape of every tensor of these blocks in a converted model, in the order in which they are written. All F32.
pub(super) fn published(blocks: &[LayerBlock]) -> Vec<(String, Vec<usize>)> {
    let of_layer = |(layer, _): &LayerBlock| {
        let prefix = block::prefix(&layer.name);
        block::tensors(layer).into_iter().map(move |(name, shape)| (format!("{prefix}{name}"), shape))
    };
    blocks.iter().flat_map(of_layer).collect()
}

/// Writes the blocks' tensors in the order of [`published`]; one block is in memory at a time.
pub(super) async fn write_tensors(
    objects: &Objects,
    blocks: &[LayerBlock],
    upload: &mut Upload<'_>,
) -> Result<(), Error> {
    for (layer, object) in blocks {
        let bytes = read(objects, layer, object).await?;
        let at = |source| Error::Block { key: object.key.clone(), source };
        let tensors = Tensors::parse(&bytes).map_err(at)?;
        for (name, _) in block::tensors(layer) {
            upload.write(tensors.bytes(&name)).await?;
        }
    }
    Ok(())
}

async fn read(objects: &Objects, layer: &LayerPlan, object: &ObjectRef) -> Result<Bytes, Error> {
    let limit = expectation::max_bytes(layer);
    if object.size > limit {
        let (url, key) = (objects.url().to_owned(), object.key.clone());
        return Err(deltaconv_proto::objects::Error::TooLarge { url, key, size: object.size, limit }.into());
    }
    let bytes = objects.get_verified(object).await?;
    let (whole, planned) = (bytes.clone(), layer.clone());
    // Looking at every number takes longer than an async thread may be held.
    let checked = tokio::task::spawn_blocking(move || expectation::check(&whole, &planned)).await;
    let key = || object.key.clone();
    checked
        .map_err(|e| Error::Interrupted { key: key(), reason: e.to_string() })?
        .map_err(|source| Error::Block { key: key(), source })?;
    Ok(bytes)
}

/// Writes the blocks alone. The bytes depend on the blocks' weights and on nothing else.
pub(super) async fn write_alone(objects: &Objects, blocks: &[LayerBlock], key: &str) -> Result<ObjectRef, Error> {
    let names = published(blocks);
    let entries = names.iter().map(|(name, shape)| (name.as_str(), Dtype::F32, shape.as_slice()));
    // What other readers of the format look for before they take a file for PyTorch's.
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let header =
        serialize_header(entries, &metadata).map_err(|source| Error::WriteHeader { key: key.to_owned(), source })?;
    let mut upload = Upload::begin(objects, key).await?;
    let written = async {
        upload.write(&header).await?;
        write_tensors(objects, blocks, &mut upload).await
    }
    .await;
    Ok(upload.end(written).await?.1)
}
