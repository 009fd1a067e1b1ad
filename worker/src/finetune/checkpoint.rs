//! Checkpoints of the training of all blocks: all that it needs to go on, to the bit, where another attempt stopped.
//!
//! A safetensors object. Of each layer, [parameters] f32: `<layer>.weights`, `.first_moments`, `.second_moments`, `.best`, and
//! where there is one `.average`; `curve` [points, 3] f64 of step, training and held-out error; `setbacks` [n, 3] f64 of step,
//! error, and the learning rate from there on over the recipe's; `position` [4] f64 of steps taken, the sum and the number of
//! errors since the curve's last point, and the least error of a stretch.

use std::collections::BTreeMap;
use std::sync::Arc;

use deltaconv_kernels::{Parameters, adamw};
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::{keys, v1};

use super::student::Blocks;
use super::training::{Record, State, Training};
use crate::container::Container;
use crate::distill::health::{CurvePoint, Health, Setback, Stretch};
use crate::task::{Context, Error};

const WEIGHTS: &str = "weights";
const FIRST: &str = "first_moments";
const SECOND: &str = "second_moments";
const AVERAGE: &str = "average";
const BEST: &str = "best";

/// Writes a checkpoint and reports it.
pub(super) fn store(context: &Context, training: &Training) -> Result<(), Error> {
    let state = training.checkpoint()?;
    let step = state.record.step;
    let key = keys::checkpoint(&context.task, &context.attempt, step);
    let object = context.wait(context.objects.put(&key, encode(&state)?))?;
    context.report(|progress| progress.checkpoint = Some(v1::Checkpoint { object: Some(object), step }));
    Ok(())
}

/// The state in `checkpoint`. One that can't be read or isn't of these blocks is left, with a warning, and training begins
/// anew from `start`: that costs time, and the result is the same.
pub(super) fn resume(context: &Context, checkpoint: &v1::Checkpoint, start: State) -> Result<State, Error> {
    let object = checkpoint.object.as_ref().ok_or(Error::Incomplete("checkpoint"))?;
    let read = context.wait(context.objects.get_verified(object)).map_err(Error::from);
    match read.and_then(|bytes| decode(&object.key, &bytes, &start)) {
        Ok(state) => {
            tracing::info!(task = %context.task, step = state.record.step, "resumed from a checkpoint");
            context.report(|progress| progress.checkpoint = Some(checkpoint.clone()));
            Ok(state)
        }
        Err(error) => {
            tracing::warn!(task = %context.task, %error, "the checkpoint can't be used; beginning anew");
            Ok(start)
        }
    }
}

pub(super) fn encode(state: &State) -> Result<Vec<u8>, Error> {
    let record = &state.record;
    let curve = record.curve.iter().flat_map(CurvePoint::row);
    let setbacks = record.health.setbacks.iter().flat_map(Setback::row);
    let position = [record.step as f64, record.since.sum, record.since.steps as f64, record.health.least];

    let arenas = state.blocks.iter().flat_map(|(layer, block)| {
        let optimiser = state.optimisers.get(layer);
        let arenas: [(&str, Option<&Parameters>); 5] = [
            (WEIGHTS, Some(block)),
            (FIRST, optimiser.map(|of| &of.m)),
            (SECOND, optimiser.map(|of| &of.v)),
            (AVERAGE, optimiser.and_then(|of| of.ema.as_ref())),
            (BEST, record.best.get(layer).map(|best| &**best)),
        ];
        arenas.into_iter().filter_map(move |(of, arena)| Some((format!("{layer}.{of}"), arena?)))
    });
    let arenas: Vec<(String, &Parameters)> = arenas.collect();
    let lens: Vec<[usize; 1]> = arenas.iter().map(|(_, arena)| [arena.values().len()]).collect();
    let (points, of_setbacks) = ([record.curve.len(), 3], [record.health.setbacks.len(), 3]);
    let doubles: [(&str, Dtype, &[usize]); 3] =
        [("curve", Dtype::F64, &points), ("setbacks", Dtype::F64, &of_setbacks), ("position", Dtype::F64, &[4])];
    let floats = arenas.iter().zip(&lens).map(|((name, _), len)| (name.as_str(), Dtype::F32, &len[..]));
    let mut bytes = serialize_header(doubles.into_iter().chain(floats), &BTreeMap::new())?;
    bytes.extend(curve.chain(setbacks).chain(position).flat_map(f64::to_le_bytes));
    for (_, arena) in arenas {
        bytes.extend(arena.values().iter().flat_map(|value| value.to_le_bytes()));
    }
    Ok(bytes)
}

/// The checkpoint in `bytes`, if it is one of a training like `like`.
pub(super) fn decode(key: &str, bytes: &[u8], like: &State) -> Result<State, Error> {
    let container = Container::parse(key, bytes)?;
    let rows = |name: &str| container.f64(name, &[container.rows(name)?, 3]);
    let (curve, setbacks) = (rows("curve")?, rows("setbacks")?);
    let position = container.f64("position", &[4])?;
    let step = position[0] as u64;

    let (mut blocks, mut best, mut optimisers) = (Blocks::new(), Blocks::new(), BTreeMap::new());
    for (layer, block) in &like.blocks {
        let arena = |of: &str| -> Result<Parameters, Error> {
            let mut arena = block.zeros_like();
            arena.values_mut().copy_from_slice(&container.f32(&format!("{layer}.{of}"), &[block.values().len()])?);
            Ok(arena)
        };
        let averaged = like.optimisers.get(layer).is_some_and(|of| of.ema.is_some());
        let ema = averaged.then(|| arena(AVERAGE)).transpose()?;
        optimisers.insert(layer.clone(), adamw::State { m: arena(FIRST)?, v: arena(SECOND)?, ema, step });
        blocks.insert(layer.clone(), Arc::new(arena(WEIGHTS)?));
        best.insert(layer.clone(), Arc::new(arena(BEST)?));
    }
    let record = Record {
        step,
        curve: curve.chunks_exact(3).map(CurvePoint::of_row).collect(),
        since: Stretch { sum: position[1], steps: position[2] as u64 },
        health: Health { least: position[3], setbacks: setbacks.chunks_exact(3).map(Setback::of_row).collect() },
        best,
    };
    Ok(State { blocks, optimisers, record })
}
