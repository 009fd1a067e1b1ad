//! The trained block as an object.

use std::collections::BTreeMap;

use deltaconv_kernels::Parameters;
use deltaconv_proto::{keys, v1};

use super::health::{CurvePoint, Setback};
use super::training::{Solved, Training};
use crate::blocks;
use crate::task::{Context, Error};

/// Writes the block with its published tensor names, and with its held-out error, its curve and its setbacks as metadata. The same
/// training gives the same bytes.
pub(super) fn write(
    context: &Context,
    round: u32,
    layer: &v1::LayerPlan,
    training: &Training,
) -> Result<v1::ObjectRef, Error> {
    let point = |point: &CurvePoint| format!("[{},{:e},{:e}]", point.step, point.training_error, point.held_out_error);
    let setback = |setback: &Setback| {
        let error = if setback.error.is_finite() { format!("{:e}", setback.error) } else { "null".to_owned() };
        format!("[{},{error},{:e}]", setback.step, setback.rate)
    };
    let list = |items: Vec<String>| format!("[{}]", items.join(","));
    let mut metadata = BTreeMap::from([
        ("relative_error".to_owned(), format!("{:e}", training.held_out_error())),
        ("curve".to_owned(), list(training.curve().iter().map(point).collect())),
        ("setbacks".to_owned(), list(training.setbacks().iter().map(setback).collect())),
    ]);
    if let Some(Solved { before, after }) = training.solved() {
        metadata.insert("solved".to_owned(), format!("[{before:e},{after:e}]"));
    }
    let key = keys::block(round, &layer.name, &context.attempt);
    context.wait(blocks::write(&context.objects, &key, training.block(), &metadata))
}

/// Writes the block that training started from, with its published tensor names.
pub(super) fn write_start(
    context: &Context,
    layer: &v1::LayerPlan,
    start: &Parameters,
) -> Result<v1::ObjectRef, Error> {
    let key = keys::start(&layer.name, &context.attempt);
    context.wait(blocks::write(&context.objects, &key, start, &BTreeMap::new()))
}
