//! The shards of a capture task, by their sizes and headers. They may be gigabytes, and every reader checks the digest.

use deltaconv_proto::objects::Objects;
use deltaconv_proto::shard::{self, Contents};
use deltaconv_proto::v1::{CaptureOutput, CaptureTask, LayerPlan, ObjectRef, SampleRange};
use deltaconv_proto::{buckets, header, keys};
use futures::{StreamExt, TryStreamExt};

use super::{Error, Expectation, check_ref};

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
    let mut checks = Vec::with_capacity(shards.len());
    for (layer, object) in shards {
        let planned = expectation.plan.layers.iter().find(|planned| planned.name == layer);
        let planned = planned.ok_or(Error::Task("layer of that name in its plan"))?;
        let key = keys::shard(task.round, layer, range, expectation.attempt);
        checks.push(check_shard(objects, object, (planned, expectation.contents), key, range));
    }
    let found: Vec<Vec<usize>> = futures::stream::iter(checks).buffered(IN_FLIGHT).try_collect().await?;
    match found.iter().find(|samples| **samples != found[0]) {
        None => Ok(()),
        Some(other) => Err(Error::Value {
            what: format!("the number of samples {} to {} in each bucket", range.start, range.end),
            found: format!("{:?} in one layer and {other:?} in another", found[0]),
            expected: "the same in all layers".to_owned(),
        }),
    }
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

/// How many samples of each bucket the shard holds, if it is one of this layer and range.
async fn check_shard(
    objects: &Objects,
    object: &ObjectRef,
    (layer, contents): (&LayerPlan, Contents),
    key: String,
    range: &SampleRange,
) -> Result<Vec<usize>, Error> {
    let samples = range.end.saturating_sub(range.start) as usize;
    let at = |source| Error::Shard { key: key.clone(), source };
    // The size with all samples in one bucket; of several, the header says how many are in each.
    let buckets = buckets::maps(layer).len();
    let alone = |bucket: usize| -> Result<u64, Error> {
        let all: Vec<usize> = (0..buckets).map(|other| if other == bucket { samples } else { 0 }).collect();
        shard::object_len(&shard::shapes(layer, &all), contents).map_err(at)
    };
    let sizes = (0..buckets).map(alone).collect::<Result<Vec<u64>, Error>>()?;
    let (least, most) = (sizes.iter().min().copied().unwrap_or(0), sizes.iter().max().copied().unwrap_or(0));
    let further_headers = if buckets > 1 { MAX_HEADER_BYTES } else { 0 };
    check_ref(object, &key, least, most.saturating_add(further_headers) - least)?;
    let file = header::read(objects, &key, MAX_HEADER_BYTES).await?;
    if file.file_len != object.size {
        return Err(Error::OtherSize { key, expected: object.size, found: file.file_len });
    }
    let shapes = shard::check_header(&file.header, layer, contents, samples).map_err(at)?;
    Ok(shapes.iter().map(|shape| shape.samples).collect())
}
