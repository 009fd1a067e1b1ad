//! Checkpoints: all that training needs to go on, to the bit, where another attempt stopped.
//!
//! A safetensors object: `weights`, `first_moments`, `second_moments`, and where there is one `average`, `best`, the block with
//! the least held-out error so far, and `start`, the one that a regression gave to begin with, [parameters] f32; `curve`
//! [points, 3] f64 of step, training and held-out error; `setbacks` [n, 3] f64 of step, error, and the learning rate from
//! there on over the recipe's; `position` [4] f64 of steps taken, the sum and the number of errors since the curve's last
//! point, and the least error of a stretch. The position in the data follows from the step.
//!
//! For what training may have to go back to: `errors` [n] f64 of the steps since the last look; `kept` [1 or 2] f64, the steps
//! at which a state was kept, the older one first, and of each, if it isn't the state of now, `kept.<i>.weights`,
//! `.first_moments`, `.second_moments` and `.average`. Where there is no `kept`, as versions before wrote it, the state of now
//! is what training goes back to.

use std::collections::BTreeMap;
use std::sync::Arc;

use deltaconv_kernels::{Parameters, adamw};
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::v1;

use super::health::{CurvePoint, Health, Setback, Stretch};
use super::training::{Kept, Record, Snapshot, Trained, Training};
use crate::checkpoints::{self, Snapshot as _};
use crate::container::Container;
use crate::task::{Context, Error};

const WEIGHTS: &str = "weights";
const FIRST: &str = "first_moments";
const SECOND: &str = "second_moments";
const AVERAGE: &str = "average";

/// Takes up where `checkpoint` was written. One that can't be read or isn't of this block is left, with a warning, and
/// training begins anew: that costs time, and the result is the same.
pub(super) fn resume(context: &Context, checkpoint: &v1::Checkpoint, training: &mut Training) -> Result<(), Error> {
    let object = checkpoint.object.as_ref().ok_or(Error::Incomplete("checkpoint"))?;
    let read = context.wait(context.objects.get_verified(object)).map_err(Error::from);
    match read.and_then(|bytes| decode(&object.key, &bytes, training.start())) {
        Ok(snapshot) => {
            tracing::info!(task = %context.task, step = snapshot.step(), "resumed from a checkpoint");
            context.report(|progress| progress.checkpoint = Some(checkpoint.clone()));
            training.resume(snapshot);
        }
        Err(error) => tracing::warn!(task = %context.task, %error, "the checkpoint can't be used; beginning anew"),
    }
    Ok(())
}

impl checkpoints::Snapshot for Snapshot {
    fn step(&self) -> u64 {
        self.trained.optimiser.step
    }

    fn encode(&self) -> Result<Vec<u8>, Error> {
        let Trained { weights, optimiser: state, record } = &self.trained;
        let curve = record.curve.iter().flat_map(CurvePoint::row);
        let setbacks = record.health.setbacks.iter().flat_map(Setback::row);
        let position = [state.step as f64, record.since.sum, record.since.steps as f64, record.health.least];
        let kept = self.kept.iter().map(|kept| kept.1.step as f64);

        let mut arenas = arenas_of("", weights, state);
        for (index, kept) in self.kept.iter().enumerate().filter(|(_, kept)| kept.1.step != state.step) {
            arenas.extend(arenas_of(&format!("kept.{index}."), &kept.0, &kept.1));
        }
        let of_record = [("best", &record.best), ("start", &record.start)];
        arenas.extend(of_record.iter().filter_map(|(name, arena)| Some(((*name).to_owned(), arena.as_deref()?))));

        let parameters = [weights.values().len()];
        let (points, of_setbacks) = ([record.curve.len(), 3], [record.health.setbacks.len(), 3]);
        let (of_errors, of_kept) = ([self.errors.len()], [self.kept.len()]);
        let doubles: [(&str, Dtype, &[usize]); 5] = [
            ("curve", Dtype::F64, &points),
            ("setbacks", Dtype::F64, &of_setbacks),
            ("position", Dtype::F64, &[4]),
            ("errors", Dtype::F64, &of_errors),
            ("kept", Dtype::F64, &of_kept),
        ];
        let floats = arenas.iter().map(|(name, _)| (name.as_str(), Dtype::F32, &parameters[..]));
        let mut bytes = serialize_header(doubles.into_iter().chain(floats), &BTreeMap::new())?;
        let numbers = curve.chain(setbacks).chain(position).chain(self.errors.iter().copied()).chain(kept);
        bytes.extend(numbers.flat_map(f64::to_le_bytes));
        for (_, arena) in arenas {
            bytes.extend(arena.values().iter().flat_map(|value| value.to_le_bytes()));
        }
        Ok(bytes)
    }
}

/// The tensors of a block in training, by name.
fn arenas_of<'a>(prefix: &str, weights: &'a Parameters, state: &'a adamw::State) -> Vec<(String, &'a Parameters)> {
    let arenas = [(WEIGHTS, weights), (FIRST, &state.m), (SECOND, &state.v)].into_iter();
    let average = state.ema.as_ref().map(|ema| (AVERAGE, ema));
    arenas.chain(average).map(|(name, arena)| (format!("{prefix}{name}"), arena)).collect()
}

/// The checkpoint in `bytes`, if it is one of a training like `like`.
fn decode(key: &str, bytes: &[u8], like: &Trained) -> Result<Snapshot, Error> {
    let container = Container::parse(key, bytes)?;
    let parameters = [like.weights.values().len()];
    let arena = |name: &str| -> Result<Parameters, Error> {
        let mut arena = like.weights.zeros_like();
        arena.values_mut().copy_from_slice(&container.f32(name, &parameters)?);
        Ok(arena)
    };
    let optional = |name: &str| container.has(name).then(|| arena(name).map(Arc::new)).transpose();
    let rows = |name: &str| container.f64(name, &[container.rows(name)?, 3]);
    let numbers = |name: &str| match container.has(name) {
        true => container.f64(name, &[container.rows(name)?]),
        false => Ok(Vec::new()),
    };
    let trained = |prefix: &str, step: u64| -> Result<Kept, Error> {
        let arena = |name: &str| arena(&format!("{prefix}{name}"));
        let ema = like.optimiser.ema.as_ref().map(|_| arena(AVERAGE)).transpose()?;
        Ok((arena(WEIGHTS)?, adamw::State { m: arena(FIRST)?, v: arena(SECOND)?, ema, step }))
    };
    let (curve, setbacks) = (rows("curve")?, rows("setbacks")?);
    let position = container.f64("position", &[4])?;
    let step = position[0] as u64;
    let (weights, optimiser) = trained("", step)?;
    let kept = numbers("kept")?.into_iter().enumerate().map(|(index, kept)| match kept as u64 {
        kept if kept == step => Ok((weights.clone(), optimiser.clone())),
        kept => trained(&format!("kept.{index}."), kept),
    });
    let kept = kept.map(|kept| kept.map(Arc::new)).collect::<Result<_, Error>>()?;
    let record = Record {
        best: optional("best")?,
        start: optional("start")?,
        curve: curve.chunks_exact(3).map(CurvePoint::of_row).collect(),
        since: Stretch { sum: position[1], steps: position[2] as u64 },
        health: Health { least: position[3], setbacks: setbacks.chunks_exact(3).map(Setback::of_row).collect() },
    };
    Ok(Snapshot { trained: Trained { weights, optimiser, record }, errors: numbers("errors")?, kept })
}

#[cfg(test)]
mod tests {
    use super::super::training::tests;
    use super::*;
    use crate::shards::LayerData;

    /// The training that another attempt has from this one's checkpoint.
    fn handed_over(training: &mut Training, learning_rate: f64, data: &LayerData) -> Training {
        let bytes = training.snapshot().expect("a snapshot").encode().expect("encodes");
        let mut resumed = tests::with_rate(learning_rate, data);
        resumed.resume(decode("checkpoint", &bytes, resumed.start()).expect("decodes"));
        resumed.place(data, None).expect("a place");
        resumed
    }

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
            let mut batches = data.batches(1, 4, 0);
            for batch in data.batches(1, 4, 0).take(40) {
                whole.take_step(&batch, &data).expect("a step");
                resumed.take_step(&batches.next().expect("a batch"), &data).expect("a step");
                // After every step, wherever in a stretch, and whether what was kept is any good or not.
                resumed = handed_over(&mut resumed, learning_rate, &data);
                assert_eq!(resumed.step(), whole.step());
                batches = data.batches(1, 4, resumed.step());
            }
            assert_eq!(whole.block().values(), resumed.block().values());
            assert_eq!(resumed.started_from(), Some(&start));
            assert_eq!(whole.curve(), resumed.curve());
            assert_eq!(whole.setbacks(), resumed.setbacks());
            assert_eq!(whole.setbacks().is_empty(), learning_rate != tests::TOO_MUCH);
        }
    }

    #[test]
    fn a_checkpoint_of_a_version_before_is_gone_on_from() {
        let data = LayerData::made_up(&tests::layer(), 12, 4);
        let mut training = tests::with_rate(5e-3, &data);
        let go_on = |training: &mut Training, steps: usize| {
            for batch in data.batches(1, 4, training.step()).take(steps) {
                training.take_step(&batch, &data).expect("a step");
            }
        };
        go_on(&mut training, 3);
        let mut bytes = training.snapshot().expect("a snapshot").encode().expect("encodes");
        // As if it had none of the tensors that came later.
        for (name, other) in [(&b"\"errors\""[..], &b"\"others\""[..]), (b"\"kept\"", b"\"many\"")] {
            let at = bytes.windows(name.len()).position(|window| window == name).expect("in the header");
            bytes[at..at + name.len()].copy_from_slice(other);
        }
        let mut resumed = tests::with_rate(5e-3, &data);
        resumed.resume(decode("checkpoint", &bytes, resumed.start()).expect("decodes"));
        resumed.place(&data, None).expect("a place");
        let snapshot = resumed.snapshot().expect("a snapshot");
        assert_eq!((snapshot.step(), snapshot.errors.len(), snapshot.kept.len()), (3, 0, 1));
        assert_eq!(snapshot.kept[0].0.values(), snapshot.trained.weights.values());
        go_on(&mut training, 37);
        go_on(&mut resumed, 37);
        assert!(resumed.is_over());
        assert_eq!(resumed.block().values(), training.block().values());
    }

    #[test]
    fn a_truncated_checkpoint_is_refused() {
        let data = LayerData::made_up(&tests::layer(), 12, 4);
        let mut training = tests::with_rate(5e-3, &data);
        let bytes = training.snapshot().expect("a snapshot").encode().expect("encodes");
        for end in [0, 7, 100, bytes.len() - 1] {
            assert!(decode("checkpoint", &bytes[..end], training.start()).is_err(), "{end} bytes were taken");
        }
    }
}
