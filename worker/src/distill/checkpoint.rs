//! Checkpoints: all that training needs to go on, to the bit, where another attempt stopped.
//!
//! A safetensors object: `weights`, `first_moments`, `second_moments` and, where one is kept, `average` [parameters]
//! f32; `curve` [points, 3] f64 of step, training and held-out error; `position` [2] f64 of steps taken and the sum of
//! errors since the curve's last point. The position in the data follows from the step.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use deltaconv_kernels::Parameters;
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::{keys, v1};

use super::training::{CurvePoint, Trained, Training};
use crate::container::Container;
use crate::task::{Context, Error};

/// When the next checkpoint is due.
pub(super) struct Schedule {
    interval: Duration,
    last: Instant,
}

impl Schedule {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, last: Instant::now() }
    }

    pub(super) fn is_due(&self) -> bool {
        self.last.elapsed() >= self.interval
    }

    pub(super) fn stored(&mut self) {
        self.last = Instant::now();
    }
}

/// Writes a checkpoint and reports it.
pub(super) fn store(context: &Context, training: &Training) -> Result<(), Error> {
    let step = training.step();
    let key = keys::checkpoint(&context.task, &context.attempt, step);
    let object = context.wait(context.objects.put(&key, encode(&training.trained)?))?;
    context.report(|progress| progress.checkpoint = Some(v1::Checkpoint { object: Some(object), step }));
    Ok(())
}

/// Takes up where `checkpoint` was written. One that can't be read or isn't of this block is left, with a warning, and
/// training begins anew: that costs time, and the result is the same.
pub(super) fn resume(context: &Context, checkpoint: &v1::Checkpoint, training: &mut Training) -> Result<(), Error> {
    let object = checkpoint.object.as_ref().ok_or(Error::Incomplete("checkpoint"))?;
    let read = context.wait(context.objects.get_verified(object)).map_err(Error::from);
    match read.and_then(|bytes| decode(&object.key, &bytes, &training.trained)) {
        Ok(trained) => {
            tracing::info!(task = %context.task, step = trained.optimiser.step, "resumed from a checkpoint");
            context.report(|progress| progress.checkpoint = Some(checkpoint.clone()));
            training.trained = trained;
        }
        Err(error) => tracing::warn!(task = %context.task, %error, "the checkpoint can't be used; beginning anew"),
    }
    Ok(())
}

fn encode(trained: &Trained) -> Result<Vec<u8>, Error> {
    let state = &trained.optimiser;
    let curve: Vec<f64> = trained
        .curve
        .iter()
        .flat_map(|point| [point.step as f64, point.training_error, point.held_out_error])
        .collect();
    let position = [state.step as f64, trained.error_sum];
    let arenas = [
        Some(("weights", &trained.weights)),
        Some(("first_moments", &state.m)),
        Some(("second_moments", &state.v)),
        state.ema.as_ref().map(|ema| ("average", ema)),
    ];
    let arenas: Vec<(&str, &Parameters)> = arenas.into_iter().flatten().collect();
    let (parameters, points) = ([trained.weights.values().len()], [trained.curve.len(), 3]);
    let doubles: [(&str, Dtype, &[usize]); 2] = [("curve", Dtype::F64, &points), ("position", Dtype::F64, &[2])];
    let floats = arenas.iter().map(|(name, _)| (*name, Dtype::F32, &parameters[..]));
    let mut bytes = serialize_header(doubles.into_iter().chain(floats), &BTreeMap::new())?;
    bytes.extend(curve.iter().chain(&position).flat_map(|value| value.to_le_bytes()));
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
    let points = container.rows("curve")?;
    let curve = container.f64("curve", &[points, 3])?;
    let position = container.f64("position", &[2])?;
    let mut trained = like.clone();
    trained.weights = arena("weights")?;
    trained.optimiser.m = arena("first_moments")?;
    trained.optimiser.v = arena("second_moments")?;
    trained.optimiser.ema = like.optimiser.ema.as_ref().map(|_| arena("average")).transpose()?;
    trained.optimiser.step = position[0] as u64;
    trained.error_sum = position[1];
    let point = |row: &[f64]| CurvePoint { step: row[0] as u64, training_error: row[1], held_out_error: row[2] };
    trained.curve = curve.chunks_exact(3).map(point).collect();
    Ok(trained)
}

#[cfg(test)]
mod tests {
    use super::super::training::tests;
    use super::*;
    use crate::shards::{Batch, LayerData};

    #[test]
    fn a_resumed_training_ends_with_the_same_bits() {
        let data = LayerData::made_up(&tests::layer(), 12, 4);
        let mut whole = tests::training(&data);
        let mut resumed = tests::training(&data);
        let mut batches: Box<dyn Iterator<Item = Batch>> = Box::new(data.batches(1, 4, 0));
        for (step, batch) in data.batches(1, 4, 0).enumerate().take(40) {
            whole.take_step(&batch, &data).expect("a step");
            resumed.take_step(&batches.next().expect("a batch"), &data).expect("a step");
            if step == 16 {
                let bytes = encode(&resumed.trained).expect("encodes");
                resumed = tests::training(&data);
                resumed.trained = decode("checkpoint", &bytes, &resumed.trained).expect("decodes");
                batches = Box::new(data.batches(1, 4, resumed.step()));
            }
        }
        assert_eq!(whole.block().values(), resumed.block().values());
        assert_eq!(whole.trained.curve, resumed.trained.curve);
    }

    #[test]
    fn a_truncated_checkpoint_is_refused() {
        let data = LayerData::made_up(&tests::layer(), 12, 4);
        let training = tests::training(&data);
        let bytes = encode(&training.trained).expect("encodes");
        for end in [0, 7, 100, bytes.len() - 1] {
            assert!(decode("checkpoint", &bytes[..end], &training.trained).is_err(), "{end} bytes were taken");
        }
    }
}
