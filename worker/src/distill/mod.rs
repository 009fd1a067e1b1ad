//! Trains the block of one layer on its recorded activations.

mod checkpoint;
mod initial;
#[cfg(feature = "cuda")]
mod on_gpu;
mod output;
mod training;

use deltaconv_kernels::{BlockShape, Gate};
use deltaconv_proto::{block, v1};

use crate::blocks;
use crate::shards::LayerData;
use crate::task::{Context, Error, Stop};
use training::Training;

/// Trains, from the checkpoint if there is one, and writes the block.
pub(crate) fn run(context: &Context, task: &v1::DistillTask) -> Result<v1::Done, Error> {
    let layer = task.layer.as_ref().ok_or(Error::Incomplete("layer"))?;
    let recipe = context.job.recipe.as_ref().ok_or(Error::Incomplete("recipe"))?;
    let recipe = &v1::Recipe { steps: recipe.steps_of(task.round), ..recipe.clone() };
    let seed = context.job.data.as_ref().ok_or(Error::Incomplete("data"))?.seed;
    let steps = u64::from(recipe.steps);
    let shape = block_shape(layer)?;
    context.report(|progress| {
        progress.steps = steps;
        progress.held_out_error = f64::NAN;
    });

    let mut data = LayerData::open(context, (task.round, layer), &task.shards, recipe.samples as usize)?;
    let weights = match &task.start {
        None if task.round > 0 => return Err(Error::Incomplete("start")),
        None => initial::weights(&shape, seed, layer.index)?,
        Some(block) => context.wait(blocks::read_one(&context.objects, layer, block))?,
    };
    let mut training = Training::new(weights, layer, recipe, seed, &data, &context.accelerator);
    if let Some(resume) = &task.resume {
        checkpoint::resume(context, resume, &mut training)?;
    }
    let room = training.place(&data, context.cache.device)?;
    let mut feed = data.stream(training.order(&data), room);
    let mut checkpoints = checkpoint::Schedule::new(context.checkpoint_interval);
    let first = training.step();
    let began = std::time::Instant::now();
    while training.step() < steps {
        let Some(batch) = feed.next(&context.supervision)? else { break };
        training.take_step(&batch, &data)?;
        let done = training.step() - first;
        context.report(|progress| {
            progress.step = training.step();
            progress.held_out_error = training.held_out_error();
            progress.samples_per_second = (done * u64::from(recipe.batch)) as f64 / began.elapsed().as_secs_f64();
        });
        if checkpoints.is_due() && training.step() < steps {
            training.settle()?;
            checkpoint::store(context, &training)?;
            checkpoints.stored();
        }
    }
    drop(feed);
    if let Some(stop) = context.stopped() {
        if stop == Stop::Release && training.step() < steps {
            training.settle()?;
            checkpoint::store(context, &training)?;
        }
        return Err(Error::Stopped(stop));
    }
    training.settle()?;
    let relative_error = training.held_out_error();
    let block = output::write(context, task.round, layer, &training)?;
    Ok(v1::Done {
        busy_seconds: 0.0,
        samples: (training.step() - first) * u64::from(recipe.batch),
        output: Some(v1::done::Output::Distill(v1::DistillOutput { block: Some(block), relative_error })),
    })
}

/// The block that the plan has for a layer. Fails if the plan and the kernels disagree about its tensors.
pub(crate) fn block_shape(layer: &v1::LayerPlan) -> Result<BlockShape, Error> {
    let unexpected = |reason: String| Error::Unexpected { what: format!("the plan of {}", layer.name), reason };
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
