//! A trained block: exactly the published tensors of its layer, f32, all finite, and how its training went.

use deltaconv_proto::objects::Objects;
use deltaconv_proto::safetensors::{Dtype, Header};
use deltaconv_proto::v1::{DistillOutput, DistillTask, LayerPlan, ObjectRef};
use deltaconv_proto::{block, keys};

use super::super::tensors::{self, Expected, Tensors};
use super::{Error, Expectation, check_ref, off_thread};
use crate::observe::report::Training;

/// Room for the curve of a long training.
const MAX_HEADER_BYTES: u64 = 4 << 20;

pub(super) async fn verify(
    objects: &Objects,
    output: &DistillOutput,
    task: &DistillTask,
    expectation: &Expectation<'_>,
) -> Result<(), Error> {
    let layer = task.layer.as_ref().ok_or(Error::Task("layer"))?;
    let key = keys::block(task.round, &layer.name, expectation.attempt);
    if !output.unlearned.is_empty() && output.block.is_none() && output.start.is_none() {
        return Ok(());
    }
    let object = output.block.as_ref().ok_or_else(|| Error::NoObject { expected: key.clone() })?;
    check_ref(object, &key, tensors::bytes(&expected(layer)), MAX_HEADER_BYTES)?;
    if !output.relative_error.is_finite() || output.relative_error < 0.0 {
        let (what, found) = (format!("{key}: relative error"), output.relative_error.to_string());
        return Err(Error::Value { what, found, expected: "a finite number from 0".to_owned() });
    }
    if task.alone && !output.alone_error.is_some_and(|error| error.is_finite() && error >= 0.0) {
        let found = output.alone_error.map_or("absent".to_owned(), |error| error.to_string());
        let what = format!("{key}: error of the noise with this layer alone replaced");
        return Err(Error::Value { what, found, expected: "a finite number from 0".to_owned() });
    }
    let header = read(objects, object, layer).await?;
    Training::parse(&header.metadata).map_err(|source| Error::Part { key: key.clone(), source })?;
    verify_start(objects, output.start.as_ref(), task, layer, expectation).await
}

/// What training started from: a block, too, where the task asks for it, and nothing where it doesn't.
async fn verify_start(
    objects: &Objects,
    start: Option<&ObjectRef>,
    task: &DistillTask,
    layer: &LayerPlan,
    expectation: &Expectation<'_>,
) -> Result<(), Error> {
    let key = keys::start(&layer.name, expectation.attempt);
    let object = match (task.start_by_ridge, start) {
        (false, None) => return Ok(()),
        (false, Some(object)) => {
            let found = object.key.chars().take(300).collect();
            let what = format!("what the training of {} started from", layer.name);
            return Err(Error::Value { what, found, expected: "nothing of its own".to_owned() });
        }
        (true, start) => start.ok_or_else(|| Error::NoObject { expected: key.clone() })?,
    };
    verify_tensors(objects, object, &key, layer).await
}

/// Reads and checks a block that lies where it should.
async fn read(objects: &Objects, object: &ObjectRef, layer: &LayerPlan) -> Result<Header, Error> {
    let bytes = objects.get_verified(object).await?;
    let planned = layer.clone();
    let header = off_thread(&object.key, move || check(&bytes, &planned)).await?;
    header.map_err(|source| Error::Tensors { key: object.key.clone(), source })
}

/// Checks a block at `key` of which nothing but its tensors is expected.
pub(super) async fn verify_tensors(
    objects: &Objects,
    object: &ObjectRef,
    key: &str,
    layer: &LayerPlan,
) -> Result<(), Error> {
    check_ref(object, key, tensors::bytes(&expected(layer)), MAX_HEADER_BYTES)?;
    read(objects, object, layer).await.map(drop)
}

/// The most bytes that the layer's block may have.
pub(in crate::assemble) fn max_bytes(layer: &LayerPlan) -> u64 {
    tensors::bytes(&expected(layer)).saturating_add(MAX_HEADER_BYTES)
}

/// Checks a whole block, and returns its header.
pub(crate) fn check(bytes: &[u8], layer: &LayerPlan) -> Result<Header, tensors::Error> {
    let expected = expected(layer);
    let tensors = Tensors::parse(bytes)?;
    tensors::exactly(&tensors.header, &expected)?;
    expected.iter().try_for_each(|tensor| tensors.check_finite_f32(&tensor.name))?;
    Ok(tensors.header)
}

fn expected(layer: &LayerPlan) -> Vec<Expected> {
    block::tensors(layer).into_iter().map(|(name, shape)| Expected::new(name, Dtype::F32, shape)).collect()
}
