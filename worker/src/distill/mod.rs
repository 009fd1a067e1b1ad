//! Trains the block of one layer on its recorded activations.

mod attended;
mod checkpoint;
pub(crate) mod health;
mod initial;
#[cfg(feature = "cuda")]
mod on_gpu;
mod output;
mod ridge;
mod training;
mod widen;

use std::time::Instant;

use deltaconv_kernels::{BlockShape, Gate};
use deltaconv_proto::code::Code;
use deltaconv_proto::{block, v1};

use crate::checkpoints::Checkpoints;
use crate::shards::LayerData;
use crate::task::{Context, Error, Stop};
use crate::{blocks, evaluate, metrics};
use training::Training;

/// Trains, from the checkpoint if there is one, and writes the block.
pub(crate) fn run(context: &Context, task: &v1::DistillTask) -> Result<v1::Done, Error> {
    let layer = task.layer.as_ref().ok_or(Error::Incomplete("layer"))?;
    let recipe = context.job.recipe.as_ref().ok_or(Error::Incomplete("recipe"))?;
    let steps = if task.steps > 0 { task.steps } else { recipe.steps_of(task.round) };
    let recipe = &v1::Recipe { steps, ..recipe.clone() };
    let seed = context.job.data.as_ref().ok_or(Error::Incomplete("data"))?.seed;
    let steps = u64::from(recipe.steps);
    let shape = block_shape(layer)?;
    context.report(|progress| {
        progress.steps = steps;
        progress.held_out_error = f64::NAN;
    });

    if task.round > 0 && task.start.is_none() {
        let output = unlearned("it has no block from the round before".to_owned());
        return Ok(v1::Done { output: Some(v1::done::Output::Distill(output)), ..v1::Done::default() });
    }

    let opened = Instant::now();
    let spanned = tracing::debug_span!("open", layer = layer.name).entered();
    let mut data = LayerData::open(context, (task.round, layer), &task.shards, recipe.samples as usize)?;
    let weights = match &task.start {
        None => initial::weights(&shape, seed, layer.index)?,
        Some(block) => {
            let layer_before = blocks::of_width(layer.clone(), task.start_inter_ratio);
            let trained = context.wait(blocks::read_one(&context.objects, &layer_before, block))?;
            if trained.shape() == &shape { trained } else { widen::widened(&trained, &shape, seed, layer.index)? }
        }
    };
    let opening = opened.elapsed();
    drop(spanned);
    let placed = Instant::now();
    let mut training = Training::new(weights, layer, recipe, seed, &data, &context.accelerator);
    if let Some(resume) = &task.resume {
        checkpoint::resume(context, resume, &mut training)?;
    }
    let room = training.place(&data, context.cache.device)?;
    if task.start.is_some() {
        training.measure_start(&data)?;
    }
    let placing = placed.elapsed();
    // Nothing is known of it yet but for a checkpoint, which has the start.
    let is_to_start = task.start_by_ridge && training.curve().is_empty();
    let regressed = if is_to_start { ridge::batches(&data, &shape) } else { Vec::new() };
    let (count, order) = (regressed.len(), training.order(&data));
    let mut feed = data.stream(regressed.into_iter().chain(order), room);
    if is_to_start {
        ridge::start(context, layer, &mut training, (&mut feed, count), &data)?;
        context.check_stop()?;
        training.measure_start(&data)?;
    }
    let first = training.step();
    let mut checkpoints = Checkpoints::new(context, first..steps);
    let began = Instant::now();
    let spanned = tracing::info_span!("train", layer = layer.name, steps).entered();
    let mut kernels = None;
    let mut lost = None;
    let mut first_step = None;
    while !training.is_over() {
        // A span of the kernels' work lasts as long as nobody looks at what it came to.
        kernels.get_or_insert_with(|| tracing::debug_span!("kernels", from = training.step()).entered());
        let stepping = Instant::now();
        let Some(batch) = feed.next(&context.supervision)? else { break };
        match training.take_step(&batch, &data) {
            Ok(()) => {}
            Err(error @ Error::Diverged { .. }) => {
                tracing::warn!(task = %context.task, %error, "training ends with the best block so far");
                lost = Some(error);
                break;
            }
            Err(error) => return Err(error),
        }
        first_step.get_or_insert_with(|| began.elapsed());
        metrics::stepped(stepping.elapsed());
        if training.is_look() {
            kernels = None;
        }
        let done = training.step() - first;
        context.report(|progress| {
            progress.step = training.step();
            progress.held_out_error = training.held_out_error();
            progress.training_error = training.curve().last().map_or(f64::NAN, |point| point.training_error);
            progress.samples_per_second = (done * u64::from(recipe.batch)) as f64 / began.elapsed().as_secs_f64();
        });
        if checkpoints.is_due(training.step()) && !training.is_over() {
            checkpoints.write(|| training.snapshot())?;
        }
    }
    if recipe.solves() && context.stopped().is_none() && training.held_out_error().is_finite() {
        ridge::end(context, &mut training, &mut data)?;
    }
    drop((feed, kernels, spanned));
    let (steps, training_took, measuring) = (training.step() - first, began.elapsed(), training.measuring());
    let (count, held_up) = checkpoints.begun();
    tracing::debug!(
        task = %context.task,
        steps,
        ?opening,
        ?placing,
        ?first_step,
        ?measuring,
        ?training_took,
        checkpoints = count,
        ?held_up,
        "trained"
    );
    if let Some(stop) = context.stopped() {
        if stop == Stop::Release && lost.is_none() {
            checkpoints.hand_back(training.step(), || training.snapshot())?;
        }
        return Err(Error::Stopped(stop));
    }
    let samples = steps * u64::from(recipe.batch);
    let relative_error = training.held_out_error();
    // What misses as much as there is does no better than zeros. Where that still gets less, training was merely short.
    let is_usable = relative_error < 1.0 || (lost.is_none() && training.is_still_learning());
    let output = match is_usable {
        true => {
            let block = Some(output::write(context, task.round, layer, &training)?);
            let start = training.started_from().filter(|_| task.start_by_ridge);
            let start = start.map(|start| output::write_start(context, layer, start)).transpose()?;
            let trained = training.block().clone();
            // The teacher takes their place.
            drop((training, data));
            let alone_error = task.alone.then(|| evaluate::error_alone(context, &layer.name, trained)).transpose()?;
            v1::DistillOutput { block, relative_error, unlearned: String::new(), alone_error, start }
        }
        false => unlearned(lost.map_or_else(
            || format!("its block misses {relative_error:.3} of the output's energy, and training makes it no better"),
            |error| error.code().before(error),
        )),
    };
    Ok(v1::Done { busy_seconds: 0.0, samples, output: Some(v1::done::Output::Distill(output)) })
}

/// What is reported of a layer whose block can't take the place of its attention.
fn unlearned(story: String) -> v1::DistillOutput {
    v1::DistillOutput { block: None, relative_error: 1.0, unlearned: story, alone_error: None, start: None }
}

/// The block that the plan has for a layer. Fails if the plan and the kernels disagree about its tensors.
pub(crate) fn block_shape(layer: &v1::LayerPlan) -> Result<BlockShape, Error> {
    let unexpected = |reason: String| Error::Unexpected {
        what: format!("the plan of {}", layer.name),
        reason,
        code: Code::VersionsDiffer,
    };
    let gate = match layer.gate.as_str() {
        block::SCALED => Gate::Scaled,
        block::SIGMOID => Gate::Sigmoid,
        other => return Err(unexpected(format!("gate {other:?} is neither scaled nor sigmoid"))),
    };
    let (channels, kernel_size) = (layer.channels as usize, layer.kernel_size as usize);
    let shape = BlockShape::new(channels, layer.inter_ratio, kernel_size, layer.scales.clone(), gate)?;
    let planned = block::tensors(layer);
    let computed: Vec<_> = shape.tensors().into_iter().map(|tensor| (tensor.name, tensor.dims)).collect();
    if planned != computed {
        return Err(unexpected(format!("its tensors are {planned:?}, the block's are {computed:?}")));
    }
    Ok(shape)
}
