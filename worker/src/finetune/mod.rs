//! Trains all blocks of the student together, end to end: on the noise that it predicts, and on where its residual stream is
//! behind each layer. Everything but the blocks stays as it is.
//!
//! Blocks that were trained apart each give what their layer gave, as well as they can; trained together, they give what the
//! whole model needs. It is computed where the teacher is: on the processor in f32, or on a GPU in the teacher's precision.

mod checkpoint;
mod measure;
#[cfg(feature = "cuda")]
mod on_gpu;
mod on_processor;
mod student;
#[cfg(test)]
mod tests;
mod training;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use candle_core::Tensor;
use deltaconv_kernels::Parameters;
use deltaconv_proto::draw::{Draw, Sample};
use deltaconv_proto::{keys, v1};

use crate::blocks::{self, InPlace};
use crate::capture::{Inputs, sample_len};
use crate::checkpoints::Checkpoints;
use crate::evaluate::HeldOut;
use crate::models::Teacher;
use crate::task::{Context, Error, Stop};
use crate::teacher::Place;
#[cfg(feature = "cuda")]
pub(crate) use measure::compare_gradients;
pub(crate) use measure::seconds_per_step;
pub(crate) use student::Pass;
use student::{Blocks, in_place};
use training::{State, Training};

/// Held-out samples of the capture that errors are measured on, at most.
const HELD_OUT: usize = 64;
/// Bytes that the samples of a part of a batch may take, and how many times the values of its layers' maps a sample's gradients
/// need on the way to them, about: 11 million values for SD1.5 at 64×64.
const PART_BYTES: usize = 12 << 30;
const REMEMBERED: usize = 64;
/// Batches that are drawn while others are trained on.
const BATCHES_AHEAD: usize = 4;

/// Samples of a step's batch that go through the models together.
struct Part {
    inputs: Inputs,
    /// What each sample counts.
    weights: Vec<f32>,
    /// Of the batch.
    share: f64,
}

impl Part {
    /// Does something with it where the teacher is.
    fn pass<T>(&self, teacher: &Teacher, work: impl FnOnce(Pass<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let place = teacher.denoiser.place();
        let inputs = self.inputs.at(place)?;
        let weights = &Tensor::new(self.weights.as_slice(), place.device())?;
        work(Pass { predict: &mut |attention| inputs.predict(teacher, attention), weights, share: self.share })
    }
}

/// Samples that may go through the models together, so that what is remembered on the way there has room: follows from the plan
/// and the precision alone, since bits depend on it.
fn samples_of_part(context: &Context, place: &Place) -> usize {
    let values: usize = context.plan.layers.iter().map(sample_len).sum();
    (PART_BYTES / (values * REMEMBERED * place.dtype().size_in_bytes()).max(1)).max(1)
}

/// Trains, from the checkpoint if there is one, and writes the blocks where they have become better.
pub(crate) fn run(context: &Context, task: &v1::FinetuneTask) -> Result<v1::Done, Error> {
    let recipe = context.job.recipe.as_ref().ok_or(Error::Incomplete("recipe"))?;
    let settings = recipe.finetune.ok_or(Error::Incomplete("finetune"))?;
    context.report(|progress| {
        progress.steps = u64::from(settings.steps);
        progress.held_out_error = f64::NAN;
    });
    if task.blocks.is_empty() {
        // Every layer stays attention.
        let output = v1::FinetuneOutput { story: "no layer has a block".to_owned(), ..v1::FinetuneOutput::default() };
        return Ok(v1::Done { output: Some(v1::done::Output::Finetune(output)), ..v1::Done::default() });
    }
    let (teacher, data) = (context.models.teacher(context)?, context.models.data(context)?);
    let draw = Draw::new(&context.job, data.latent_lens(), teacher.sampler.alphas_cumprod().len());
    let given = context.wait(blocks::read(&context.objects, &context.plan, &task.blocks))?;
    let given = given.into_iter().map(|(layer, block)| (layer, Arc::new(block.parameters().clone())));
    let start = State::new(given.collect(), recipe);
    let start = match &task.resume {
        Some(resume) => checkpoint::resume(context, resume, start)?,
        None => start.into(),
    };
    let first = start.state.record.step;
    let mut training = Training::new(start, recipe, settings, &context.accelerator, teacher.denoiser.place())?;
    let held_out = HeldOut::new(context, &teacher, &data, &draw, HELD_OUT)?;

    let together = samples_of_part(context, teacher.denoiser.place());
    let batch = |step| -> Result<Vec<Part>, Error> {
        let samples = draw.finetune(step, settings.batch as usize, |latent| data.bucket(latent));
        let part = |part: &[Sample]| {
            let weights = part.iter().map(|sample| draw.weight_of_finetune(sample.timestep)).collect();
            let share = part.len() as f64 / samples.len() as f64;
            Ok(Part { inputs: Inputs::new(&teacher, &data, part)?, weights, share })
        };
        samples.chunks(together).map(part).collect()
    };
    let steps = first..u64::from(settings.steps);
    let mut checkpoints = Checkpoints::new(context, steps.clone());
    let lost =
        ahead(steps, batch, |batches| train(context, (&mut training, &mut checkpoints), &teacher, &held_out, batches))?;
    if let Some(stop) = context.stopped() {
        if stop == Stop::Release && lost.is_none() {
            checkpoints.hand_back(training.record.step, || training.snapshot())?;
        }
        return Err(Error::Stopped(stop));
    }

    let samples = (training.record.step - first) * u64::from(settings.batch);
    let (error_before, error_after) = (training.record.curve.first(), training.least_error());
    let error_before = error_before.map_or(f64::NAN, |point| point.held_out_error);
    let better = error_after < error_before;
    let output = v1::FinetuneOutput {
        blocks: if better { write(context, &training.record.best)? } else { Vec::new() },
        error_before,
        error_after,
        steps: training.record.step,
        story: lost.map(|error| error.code().before(error)).unwrap_or_default(),
    };
    Ok(v1::Done { busy_seconds: 0.0, samples, output: Some(v1::done::Output::Finetune(output)) })
}

/// Has `make` run for each step on a thread of its own, some steps ahead of `take`, which is given what it makes. Ends with
/// `take`, however much is still to be made.
fn ahead<T: Send, R>(steps: Range<u64>, make: impl Fn(u64) -> T + Send, take: impl FnOnce(Receiver<T>) -> R) -> R {
    let (sender, made) = sync_channel(BATCHES_AHEAD);
    std::thread::scope(|scope| {
        // Sending fails as soon as the receiver is gone.
        scope.spawn(move || steps.map(make).try_for_each(|made| sender.send(made).ok()));
        take(made)
    })
}

/// Takes steps on the batches until training is over, is told to stop, or is lost: then the error is returned.
fn train(
    context: &Context,
    (training, checkpoints): (&mut Training, &mut Checkpoints<'_>),
    teacher: &Teacher,
    held_out: &HeldOut,
    batches: Receiver<Result<Vec<Part>, Error>>,
) -> Result<Option<Error>, Error> {
    let measure = |training: &mut Training| -> Result<(), Error> {
        let averaged = training.averaged()?;
        let error = held_out.error(context, teacher, &mut InPlace(&in_place(&averaged)))?;
        training.note(averaged, error);
        Ok(())
    };
    if training.is_curve_point() && training.record.step == 0 {
        measure(training)?;
    }
    training.keep_start()?;

    let (first, began) = (training.record.step, Instant::now());
    while !training.is_over() && context.stopped().is_none() {
        for part in batches.recv().map_err(|_| Error::Incomplete("batch"))?? {
            part.pass(teacher, |pass| training.add(pass))?;
        }
        training.step()?;
        if training.is_look() {
            let looked = match training.look() {
                Ok(looked) => looked,
                Err(error @ Error::Diverged { .. }) => {
                    tracing::warn!(task = %context.task, %error, "training ends with the best blocks so far");
                    return Ok(Some(error));
                }
                Err(error) => return Err(error),
            };
            if training.is_curve_point() {
                measure(training)?;
            }
            training.keep(looked)?;
        }
        let (step, samples) = (training.record.step, (training.record.step - first) * training.batch());
        context.report(|progress| {
            progress.step = step;
            progress.held_out_error = training.least_error();
            progress.training_error = training.record.curve.last().map_or(f64::NAN, |point| point.training_error);
            progress.samples_per_second = samples as f64 / began.elapsed().as_secs_f64();
        });
        if checkpoints.is_due(step) && !training.is_over() {
            checkpoints.write(|| training.snapshot())?;
        }
    }
    Ok(None)
}

/// Writes the blocks with their published tensor names.
fn write(context: &Context, blocks: &Blocks) -> Result<Vec<v1::BlockRef>, Error> {
    let one = |(layer, block): (&String, &Arc<Parameters>)| {
        let key = keys::finetuned(layer, &context.attempt);
        let object = context.wait(blocks::write(&context.objects, &key, block, &BTreeMap::new()))?;
        Ok(v1::BlockRef { layer: layer.clone(), object: Some(object), ..v1::BlockRef::default() })
    };
    blocks.iter().map(one).collect()
}
