//! Checkpoints of the training of all blocks: all that it needs to go on, to the bit, where another attempt stopped.
//!
//! A safetensors object. Of each layer, [parameters] f32: `<layer>.weights`, `.first_moments`, `.second_moments`, `.best`, and
//! where there is one `.average`; `curve` [points, 3] f64 of step, training and held-out error; `setbacks` [n, 3] f64 of step,
//! error, and the learning rate from there on over the recipe's; `position` [4] f64 of steps taken, the sum and the number of
//! errors since the curve's last point, and the least error of a stretch.
//!
//! For what training may have to go back to: `errors` [n] f64 of the steps since the last look; `kept` [1 or 2, 3] f64, of each
//! state that is kept, the older one first, the step, and the sum and the number of errors as above; and of each, if it isn't
//! the state of now, `<layer>.kept.<i>.weights`, `.first_moments`, `.second_moments` and `.average`. Where there is no `kept`,
//! as versions before wrote it, the state of now is what training goes back to.

use std::collections::BTreeMap;
use std::sync::Arc;

use deltaconv_kernels::{Parameters, adamw};
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::v1;

use super::on_processor::{Kept, Optimisers};
use super::student::Blocks;
use super::training::{Record, Snapshot, State};
use crate::checkpoints::{self, Snapshot as _};
use crate::container::Container;
use crate::distill::health::{CurvePoint, Health, Setback, Stretch};
use crate::task::{Context, Error};

const WEIGHTS: &str = "weights";
const FIRST: &str = "first_moments";
const SECOND: &str = "second_moments";
const AVERAGE: &str = "average";
const BEST: &str = "best";

/// The state in `checkpoint`. One that can't be read or isn't of these blocks is left, with a warning, and training begins
/// anew from `start`: that costs time, and the result is the same.
pub(super) fn resume(context: &Context, checkpoint: &v1::Checkpoint, start: State) -> Result<Snapshot, Error> {
    let object = checkpoint.object.as_ref().ok_or(Error::Incomplete("checkpoint"))?;
    let read = context.wait(context.objects.get_verified(object)).map_err(Error::from);
    match read.and_then(|bytes| decode(&object.key, &bytes, &start)) {
        Ok(snapshot) => {
            tracing::info!(task = %context.task, step = snapshot.step(), "resumed from a checkpoint");
            context.report(|progress| progress.checkpoint = Some(checkpoint.clone()));
            Ok(snapshot)
        }
        Err(error) => {
            tracing::warn!(task = %context.task, %error, "the checkpoint can't be used; beginning anew");
            Ok(start.into())
        }
    }
}

impl checkpoints::Snapshot for Snapshot {
    fn step(&self) -> u64 {
        self.state.record.step
    }

    fn encode(&self) -> Result<Vec<u8>, Error> {
        let State { blocks, optimisers, record } = &self.state;
        let curve = record.curve.iter().flat_map(CurvePoint::row);
        let setbacks = record.health.setbacks.iter().flat_map(Setback::row);
        let position = [record.step as f64, record.since.sum, record.since.steps as f64, record.health.least];
        let steps: Vec<u64> = self.kept.iter().map(|(kept, _)| step_of(kept)).collect();
        let kept =
            steps.iter().zip(&self.kept).flat_map(|(step, (_, since))| [*step as f64, since.sum, since.steps as f64]);

        let mut arenas = arenas_of("", blocks, optimisers);
        for (index, _) in steps.iter().enumerate().filter(|(_, step)| **step != record.step) {
            let (blocks, optimisers) = &self.kept[index].0;
            arenas.extend(arenas_of(&format!("kept.{index}."), blocks, optimisers));
        }
        arenas.extend(record.best.iter().map(|(layer, best)| (format!("{layer}.{BEST}"), &**best)));

        let lens: Vec<[usize; 1]> = arenas.iter().map(|(_, arena)| [arena.values().len()]).collect();
        let (points, of_setbacks) = ([record.curve.len(), 3], [record.health.setbacks.len(), 3]);
        let (of_errors, of_kept) = ([self.errors.len()], [steps.len(), 3]);
        let doubles: [(&str, Dtype, &[usize]); 5] = [
            ("curve", Dtype::F64, &points),
            ("setbacks", Dtype::F64, &of_setbacks),
            ("position", Dtype::F64, &[4]),
            ("errors", Dtype::F64, &of_errors),
            ("kept", Dtype::F64, &of_kept),
        ];
        let floats = arenas.iter().zip(&lens).map(|((name, _), len)| (name.as_str(), Dtype::F32, &len[..]));
        let mut bytes = serialize_header(doubles.into_iter().chain(floats), &BTreeMap::new())?;
        let numbers = curve.chain(setbacks).chain(position).chain(self.errors.iter().copied()).chain(kept);
        bytes.extend(numbers.flat_map(f64::to_le_bytes));
        for (_, arena) in arenas {
            bytes.extend(arena.values().iter().flat_map(|value| value.to_le_bytes()));
        }
        Ok(bytes)
    }
}

/// At which a state was kept: all its blocks took as many steps.
fn step_of((_, optimisers): &Kept) -> u64 {
    optimisers.values().next().map_or(0, |optimiser| optimiser.step)
}

/// The tensors of blocks in training, by name.
fn arenas_of<'a>(prefix: &str, blocks: &'a Blocks, optimisers: &'a Optimisers) -> Vec<(String, &'a Parameters)> {
    let of_layer = |(layer, block): (&String, &'a Arc<Parameters>)| {
        let optimiser = optimisers.get(layer);
        let arenas: [(&str, Option<&'a Parameters>); 4] = [
            (WEIGHTS, Some(block)),
            (FIRST, optimiser.map(|of| &of.m)),
            (SECOND, optimiser.map(|of| &of.v)),
            (AVERAGE, optimiser.and_then(|of| of.ema.as_ref())),
        ];
        arenas.map(|(of, arena)| Some((format!("{layer}.{prefix}{of}"), arena?)))
    };
    blocks.iter().flat_map(of_layer).flatten().collect()
}

/// The checkpoint in `bytes`, if it is one of a training like `like`.
pub(super) fn decode(key: &str, bytes: &[u8], like: &State) -> Result<Snapshot, Error> {
    let container = Container::parse(key, bytes)?;
    let rows = |name: &str| container.f64(name, &[container.rows(name)?, 3]);
    let (curve, setbacks) = (rows("curve")?, rows("setbacks")?);
    let position = container.f64("position", &[4])?;
    let step = position[0] as u64;
    let (errors, kept) = match container.has("kept") {
        true => (container.f64("errors", &[container.rows("errors")?])?, rows("kept")?),
        false => (Vec::new(), Vec::new()),
    };

    let arena = |layer: &str, block: &Parameters, of: &str| -> Result<Parameters, Error> {
        let mut arena = block.zeros_like();
        arena.values_mut().copy_from_slice(&container.f32(&format!("{layer}.{of}"), &[block.values().len()])?);
        Ok(arena)
    };
    let trained = |prefix: &str, step: u64| -> Result<Kept, Error> {
        let (mut blocks, mut optimisers) = (Blocks::new(), Optimisers::new());
        for (layer, block) in &like.blocks {
            let arena = |of: &str| arena(layer, block, &format!("{prefix}{of}"));
            let averaged = like.optimisers.get(layer).is_some_and(|of| of.ema.is_some());
            let ema = averaged.then(|| arena(AVERAGE)).transpose()?;
            optimisers.insert(layer.clone(), adamw::State { m: arena(FIRST)?, v: arena(SECOND)?, ema, step });
            blocks.insert(layer.clone(), Arc::new(arena(WEIGHTS)?));
        }
        Ok((blocks, optimisers))
    };
    let (blocks, optimisers) = trained("", step)?;
    let kept = kept.chunks_exact(3).enumerate().map(|(index, row)| {
        let since = Stretch { sum: row[1], steps: row[2] as u64 };
        match row[0] as u64 {
            kept if kept == step => Ok(((blocks.clone(), optimisers.clone()), since)),
            kept => Ok((trained(&format!("kept.{index}."), kept)?, since)),
        }
    });
    let kept = kept.collect::<Result<_, Error>>()?;
    let best = like.blocks.iter().map(|(layer, block)| Ok((layer.clone(), Arc::new(arena(layer, block, BEST)?))));
    let record = Record {
        step,
        curve: curve.chunks_exact(3).map(CurvePoint::of_row).collect(),
        since: Stretch { sum: position[1], steps: position[2] as u64 },
        health: Health { least: position[3], setbacks: setbacks.chunks_exact(3).map(Setback::of_row).collect() },
        best: best.collect::<Result<_, Error>>()?,
    };
    Ok(Snapshot { state: State { blocks, optimisers, record }, errors, kept })
}
