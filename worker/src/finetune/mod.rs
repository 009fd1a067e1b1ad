//! Trains all blocks of the student together, end to end: on the noise that it predicts, and on where its residual stream is
//! behind each layer. Everything but the blocks stays as it is.
//!
//! Blocks that were trained apart each give what their layer gave, as well as they can; trained together, they give what the
//! whole model needs. It is computed on the processor in f32, also by a worker with a GPU.

mod checkpoint;
mod student;
#[cfg(test)]
mod tests;
mod training;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use deltaconv_kernels::Parameters;
use deltaconv_proto::draw::Draw;
use deltaconv_proto::{keys, v1};

use crate::blocks::{self, InPlace};
use crate::capture::Inputs;
use crate::checkpoints::Schedule;
use crate::evaluate::HeldOut;
use crate::task::{Context, Error, Stop};
use student::{Blocks, gradients, in_place};
use training::{Looked, Training};

/// Held-out samples of the capture that errors are measured on, at most.
const HELD_OUT: usize = 64;

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
    let (teacher, data) = (context.models.teacher_on_the_processor(context)?, context.models.data(context)?);
    let draw = Draw::new(&context.job, data.latent_lens(), teacher.sampler.alphas_cumprod().len());
    let given = context.wait(blocks::read(&context.objects, &context.plan, &task.blocks))?;
    let given = given.into_iter().map(|(layer, block)| (layer, Arc::new(block.parameters().clone())));
    let mut training = Training::new(given.collect(), recipe, settings);
    if let Some(resume) = &task.resume {
        checkpoint::resume(context, resume, &mut training)?;
    }
    let held_out = HeldOut::new(context, &teacher, &data, &draw, HELD_OUT)?;
    let measure = |blocks: &Blocks| held_out.error(context, &teacher, &mut InPlace(&in_place(blocks)));
    if training.is_curve_point() && training.state.step == 0 {
        training.note(measure(&training.averaged())?);
    }
    training.keep(Looked::Well);

    let mut checkpoints = Schedule::new(context.checkpoint_interval);
    let (first, began) = (training.state.step, Instant::now());
    let mut lost = None;
    while !training.is_over() && context.stopped().is_none() {
        let batch = draw.finetune(training.state.step, settings.batch as usize, |latent| data.bucket(latent));
        let inputs = Inputs::new(&teacher, &data, &batch)?;
        training.take_step(&gradients(&teacher, &training.state.blocks, &inputs)?)?;
        if training.is_look() {
            let looked = match training.look() {
                Ok(looked) => looked,
                Err(error) => {
                    tracing::warn!(task = %context.task, %error, "training ends with the best blocks so far");
                    lost = Some(error);
                    break;
                }
            };
            if training.is_curve_point() {
                training.note(measure(&training.averaged())?);
            }
            training.keep(looked);
        }
        let done = training.state.step - first;
        context.report(|progress| {
            progress.step = training.state.step;
            progress.held_out_error = training.least_error();
            progress.samples_per_second = (done * u64::from(settings.batch)) as f64 / began.elapsed().as_secs_f64();
        });
        if checkpoints.is_due() && !training.is_over() {
            checkpoint::store(context, &training)?;
            checkpoints.stored();
        }
    }
    if let Some(stop) = context.stopped() {
        if stop == Stop::Release && lost.is_none() && !training.is_over() {
            checkpoint::store(context, &training)?;
        }
        return Err(Error::Stopped(stop));
    }

    let samples = (training.state.step - first) * u64::from(settings.batch);
    let (error_before, error_after) = (training.state.curve.first(), training.least_error());
    let error_before = error_before.map_or(f64::NAN, |point| point.held_out_error);
    let better = error_after < error_before;
    let output = v1::FinetuneOutput {
        blocks: if better { write(context, &training.state.best)? } else { Vec::new() },
        error_before,
        error_after,
        steps: training.state.step,
        story: lost.map(|error| error.to_string()).unwrap_or_default(),
    };
    Ok(v1::Done { busy_seconds: 0.0, samples, output: Some(v1::done::Output::Finetune(output)) })
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
