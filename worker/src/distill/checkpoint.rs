//! Checkpoints: all that training needs to go on, to the bit, where another attempt stopped.
//!
//! A safetensors object: `weights`, `first_moments`, `second_moments`, and where there is one `average`, `best`, the block with
//! the least held-out error so far, and `start`, the one that a regression gave to begin with, [parameters] f32; `curve`
//! [points, 3] f64 of step, training and held-out error; `setbacks` [n, 3] f64 of step, error, and the learning rate from
//! there on over the recipe's; `position` [4] f64 of steps taken, the sum and the number of errors since the curve's last
//! point, and the least error of a stretch. The position in the data follows from the step.

use std::collections::BTreeMap;
use std::sync::Arc;

use deltaconv_kernels::{Parameters, adamw};
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::{keys, v1};

use super::health::{CurvePoint, Health, Setback, Stretch};
use super::training::{Record, Trained, Training};
use crate::container::Container;
use crate::task::{Context, Error};

/// Writes a checkpoint and reports it.
pub(super) fn store(context: &Context, training: &mut Training) -> Result<(), Error> {
    let trained = training.checkpoint()?;
    let step = trained.optimiser.step;
    let key = keys::checkpoint(&context.task, &context.attempt, step);
    let object = context.wait(context.objects.put(&key, encode(&trained)?))?;
    context.report(|progress| progress.checkpoint = Some(v1::Checkpoint { object: Some(object), step }));
    Ok(())
}

/// Takes up where `checkpoint` was written. One that can't be read or isn't of this block is left, with a warning, and
/// training begins anew: that costs time, and the result is the same.
pub(super) fn resume(context: &Context, checkpoint: &v1::Checkpoint, training: &mut Training) -> Result<(), Error> {
    let object = checkpoint.object.as_ref().ok_or(Error::Incomplete("checkpoint"))?;
    let read = context.wait(context.objects.get_verified(object)).map_err(Error::from);
    match read.and_then(|bytes| decode(&object.key, &bytes, training.start())) {
        Ok(trained) => {
            tracing::info!(task = %context.task, step = trained.optimiser.step, "resumed from a checkpoint");
            context.report(|progress| progress.checkpoint = Some(checkpoint.clone()));
            training.resume(trained);
        }
        Err(error) => tracing::warn!(task = %context.task, %error, "the checkpoint can't be used; beginning anew"),
    }
    Ok(())
}

fn encode(trained: &Trained) -> Result<Vec<u8>, Error> {
    let (state, record) = (&trained.optimiser, &trained.record);
    let curve = record.curve.iter().flat_map(CurvePoint::row);
    let setbacks = record.health.setbacks.iter().flat_map(Setback::row);
    let position = [state.step as f64, record.since.sum, record.since.steps as f64, record.health.least];
    let arenas = [
        Some(("weights", &trained.weights)),
        Some(("first_moments", &state.m)),
        Some(("second_moments", &state.v)),
        state.ema.as_ref().map(|ema| ("average", ema)),
        record.best.as_deref().map(|best| ("best", best)),
        record.start.as_deref().map(|start| ("start", start)),
    ];
    let arenas: Vec<(&str, &Parameters)> = arenas.into_iter().flatten().collect();
    let parameters = [trained.weights.values().len()];
    let (points, of_setbacks) = ([record.curve.len(), 3], [record.health.setbacks.len(), 3]);
    let doubles: [(&str, Dtype, &[usize]); 3] =
        [("curve", Dtype::F64, &points), ("setbacks", Dtype::F64, &of_setbacks), ("position", Dtype::F64, &[4])];
    let floats = arenas.iter().map(|(name, _)| (*name, Dtype::F32, &parameters[..]));
    let mut bytes = serialize_header(doubles.into_iter().chain(floats), &BTreeMap::new())?;
    bytes.extend(curve.chain(setbacks).chain(position).flat_map(f64::to_le_bytes));
    for (_, arena) in arenas {
        bytes.extend(arena.values().iter().flat_map(|value| value.to_le_bytes()));
    }
    Ok(bytes)
}

/// The checkpoint in `bytes`, if it is one of a training like `like`.
fn decode(key: &str, bytes: &[u8], like: &Trained) -> Result<Trained, Error> {
    let container = Container::parse(key, bytes)?;
    let parameters = [like.weights.values().len()];
    let arena = |name: &str| -> Result<Parameters, Error> {
        let mut arena = like.weights.zeros_like();
        arena.values_mut().copy_from_slice(&container.f32(name, &parameters)?);
        Ok(arena)
    };
    let optional = |name: &str| container.has(name).then(|| arena(name).map(Arc::new)).transpose();
    let rows = |name: &str| container.f64(name, &[container.rows(name)?, 3]);
    let (curve, setbacks) = (rows("curve")?, rows("setbacks")?);
    let position = container.f64("position", &[4])?;
    Ok(Trained {
        weights: arena("weights")?,
        optimiser: adamw::State {
            m: arena("first_moments")?,
            v: arena("second_moments")?,
            ema: like.optimiser.ema.as_ref().map(|_| arena("average")).transpose()?,
            step: position[0] as u64,
        },
        record: Record {
            best: optional("best")?,
            start: optional("start")?,
            curve: curve.chunks_exact(3).map(CurvePoint::of_row).collect(),
            since: Stretch { sum: position[1], steps: position[2] as u64 },
            health: Health { least: position[3], setbacks: setbacks.chunks_exact(3).map(Setback::of_row).collect() },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::training::tests;
    use super::*;
    use crate::shards::{Batch, LayerData};

    #[test]
    fn a_resumed_training_ends_with_the_same_bits() {
        let data = LayerData::made_up(&tests::layer(), 12, 4);
        // The second one has to go back on its way.
        for learning_rate in [5e-3, tests::TOO_MUCH] {
            let start = tests::with_rate(learning_rate, &data).block().clone();
            let started = || {
                let mut training = tests::with_rate(learning_rate, &data);
                training.start_from(start.clone(), &data).expect("a start");
                training
            };
            let (mut whole, mut resumed) = (started(), started());
            let mut batches: Box<dyn Iterator<Item = Batch>> = Box::new(data.batches(1, 4, 0));
            for (step, batch) in data.batches(1, 4, 0).enumerate().take(40) {
                whole.take_step(&batch, &data).expect("a step");
                resumed.take_step(&batches.next().expect("a batch"), &data).expect("a step");
                if step == 16 {
                    // What was kept last, after 16 steps, is not known to be any good.
                    let bytes = encode(&resumed.checkpoint().expect("a checkpoint")).expect("encodes");
                    resumed = tests::with_rate(learning_rate, &data);
                    resumed.resume(decode("checkpoint", &bytes, resumed.start()).expect("decodes"));
                    resumed.place(&data, None).expect("a place");
                    assert!((14..=16).contains(&resumed.step()), "step {}", resumed.step());
                    batches = Box::new(data.batches(1, 4, resumed.step()));
                    while resumed.step() < whole.step() {
                        resumed.take_step(&batches.next().expect("a batch"), &data).expect("a step");
                    }
                }
            }
            assert_eq!(whole.block().values(), resumed.block().values());
            assert_eq!(resumed.started_from(), Some(&start));
            assert_eq!(whole.curve(), resumed.curve());
            assert_eq!(whole.setbacks(), resumed.setbacks());
            assert_eq!(whole.setbacks().is_empty(), learning_rate != tests::TOO_MUCH);
        }
    }

    #[test]
    fn a_truncated_checkpoint_is_refused() {
        let data = LayerData::made_up(&tests::layer(), 12, 4);
        let training = tests::with_rate(5e-3, &data);
        let bytes = encode(training.start()).expect("encodes");
        for end in [0, 7, 100, bytes.len() - 1] {
            assert!(decode("checkpoint", &bytes[..end], training.start()).is_err(), "{end} bytes were taken");
        }
    }
}
