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
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::{keys, v1};

use crate::blocks;
use crate::capture::Inputs;
use crate::checkpoints::Schedule;
use crate::data::Data;
use crate::models::Teacher;
use crate::task::{Context, Error, Stop};
use student::{Blocks, Plain, gradients};
use training::{Looked, Training};

/// Held-out samples of the capture that errors are measured on, at most.
const HELD_OUT: u32 = 64;
/// Of them, how many go through a model at a time.
const BATCH: usize = 8;

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
    let mut training = Training::new(read(context, task)?, recipe, settings);
    if let Some(resume) = &task.resume {
        checkpoint::resume(context, resume, &mut training)?;
    }
    let held_out = HeldOut::new(context, &teacher, &data, &draw)?;
    if training.is_curve_point() && training.state.step == 0 {
        training.note(held_out.error(context, &teacher, &training.averaged())?);
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
                training.note(held_out.error(context, &teacher, &training.averaged())?);
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

/// The blocks that training starts from.
fn read(context: &Context, task: &v1::FinetuneTask) -> Result<Blocks, Error> {
    let one = |block: &v1::BlockRef| {
        let layer = context.plan.layers.iter().find(|layer| layer.name == block.layer);
        let layer = layer.ok_or(Error::Incomplete("layer"))?;
        let object = block.object.as_ref().ok_or(Error::Incomplete("block"))?;
        let parameters = context.wait(blocks::read_one(&context.objects, layer, object))?;
        Ok((layer.name.clone(), Arc::new(parameters)))
    };
    task.blocks.iter().map(one).collect()
}

/// Writes the blocks with their published tensor names.
fn write(context: &Context, blocks: &Blocks) -> Result<Vec<v1::BlockRef>, Error> {
    let one = |(layer, block): (&String, &Arc<Parameters>)| {
        let tensors: Vec<_> = block.iter().collect();
        let header = tensors.iter().map(|(tensor, _)| (tensor.name.as_str(), Dtype::F32, tensor.dims.as_slice()));
        let mut bytes = serialize_header(header, &BTreeMap::new())?;
        for (_, values) in tensors {
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        let object = context.wait(context.objects.put(&keys::finetuned(layer, &context.attempt), bytes))?;
        Ok(v1::BlockRef { layer: layer.clone(), object: Some(object), ..v1::BlockRef::default() })
    };
    blocks.iter().map(one).collect()
}

/// Batches that training never sees, with the noise that the teacher predicts for them.
struct HeldOut {
    batches: Vec<(Inputs, Vec<f32>)>,
    /// Sum of its squares.
    energy: f64,
}

impl HeldOut {
    fn new(context: &Context, teacher: &Teacher, data: &Data, draw: &Draw) -> Result<Self, Error> {
        let recipe = context.job.recipe.as_ref().ok_or(Error::Incomplete("recipe"))?;
        let count = recipe.held_out_samples.min(HELD_OUT);
        let samples = recipe.samples as usize..(recipe.samples + count) as usize;
        let by_bucket = data.by_bucket(samples, |i| draw.latent_of_capture(i));
        let batch = |numbers: &[usize]| {
            context.check_stop()?;
            let batch: Vec<_> = numbers.iter().map(|i| draw.capture(*i)).collect();
            let inputs = Inputs::new(teacher, data, &batch)?;
            let expected = inputs.predict(teacher, &mut crate::teacher::Original)?.flatten_all()?.to_vec1()?;
            Ok((inputs, expected))
        };
        let batches = by_bucket.iter().flat_map(|numbers| numbers.chunks(BATCH)).map(batch);
        let batches: Vec<(Inputs, Vec<f32>)> = batches.collect::<Result<_, Error>>()?;
        let energy = batches.iter().map(|(_, expected)| squares(expected, None)).sum();
        if energy > 0.0 { Ok(Self { batches, energy }) } else { Err(Error::Incomplete("predicted noise")) }
    }

    /// The squared error of the noise that the student with these blocks predicts, over the teacher's mean square.
    fn error(&self, context: &Context, teacher: &Teacher, blocks: &Blocks) -> Result<f64, Error> {
        let mut missed = 0.0;
        for (inputs, expected) in &self.batches {
            context.check_stop()?;
            let found: Vec<f32> = inputs.predict(teacher, &mut Plain(blocks))?.flatten_all()?.to_vec1()?;
            missed += squares(&found, Some(expected));
        }
        Ok(missed / self.energy)
    }
}

fn squares(values: &[f32], expected: Option<&[f32]>) -> f64 {
    let square = |(i, value): (usize, &f32)| f64::from(value - expected.map_or(0.0, |expected| expected[i])).powi(2);
    values.iter().enumerate().map(square).sum()
}
