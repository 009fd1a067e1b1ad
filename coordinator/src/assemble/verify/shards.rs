//! The shards of a capture task, by their sizes and headers. They may be gigabytes, and every reader checks the digest.

use deltaconv_proto::keys;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::safetensors::Dtype;
use deltaconv_proto::v1::{CaptureOutput, CaptureTask, LayerPlan, ObjectRef, SampleRange};
use futures::{StreamExt, TryStreamExt};

use super::super::tensors::{self, Expected};
use super::{Error, Expectation, check_ref};
use crate::plan::header;

const MAX_HEADER_BYTES: u64 = 64 << 10;
/// Shards that are looked at at a time.
const IN_FLIGHT: usize = 8;

pub(super) async fn check(
    objects: &Objects,
    output: &CaptureOutput,
    task: &CaptureTask,
    expectation: &Expectation<'_>,
) -> Result<(), Error> {
    let range = task.range.as_ref().ok_or(Error::Task("range"))?;
    let shards = each_layer_once(output, &task.layers)?;
    let checks = shards.into_iter().map(|(layer, object)| {
        let planned = expectation.plan.layers.iter().find(|planned| planned.name == layer);
        async move {
            let planned = planned.ok_or(Error::Task("layer of that name in its plan"))?;
            check_shard(objects, object, planned, task.round, range).await
        }
    });
    futures::stream::iter(checks).buffer_unordered(IN_FLIGHT).try_collect::<()>().await
}

/// The reported shards by layer, when they are exactly those of the wanted layers.
fn each_layer_once<'a>(output: &'a CaptureOutput, wanted: &[String]) -> Result<Vec<(&'a str, &'a ObjectRef)>, Error> {
    let named = |shard: &'a deltaconv_proto::v1::ShardRef| Some((shard.layer.as_str(), shard.object.as_ref()?));
    let mut shards: Vec<(&str, &ObjectRef)> = output.shards.iter().filter_map(named).collect();
    shards.sort_by_key(|(layer, _)| *layer);
    let mut expected: Vec<&str> = wanted.iter().map(String::as_str).collect();
    expected.sort_unstable();
    if shards.len() == output.shards.len() && shards.iter().map(|(layer, _)| *layer).eq(expected.iter().copied()) {
        return Ok(shards);
    }
    let quoted = |layer: &str| layer.chars().take(300).collect::<String>();
    // A peer may name any number of layers; a few more than were wanted show the fault.
    let found = output.shards.iter().take(wanted.len() + 1).map(|shard| quoted(&shard.layer)).collect();
    Err(Error::Layers { expected: wanted.to_vec(), found })
}

async fn check_shard(
    objects: &Objects,
    object: &ObjectRef,
    layer: &LayerPlan,
    round: u32,
    range: &SampleRange,
) -> Result<(), Error> {
    let n = range.end.saturating_sub(range.start) as usize;
    let map = vec![n, layer.height as usize, layer.width as usize, layer.channels as usize];
    let expected = [
        Expected::new("input", Dtype::F16, map.clone()),
        Expected::new("output", Dtype::F16, map),
        Expected::new("timestep", Dtype::I64, [n]),
    ];
    let key = keys::shard(round, &layer.name, range);
    check_ref(object, &key, tensors::bytes(&expected), MAX_HEADER_BYTES)?;
    let file = header::read(objects, &key, MAX_HEADER_BYTES).await?;
    if file.file_len != object.size {
        return Err(Error::OtherSize { key, expected: object.size, found: file.file_len });
    }
    tensors::exactly(&file.header, &expected).map_err(|source| Error::Tensors { key, source })
}
