//! Records what goes into and out of the teacher's layers, for one range of samples. The next batch goes through the teacher
//! while one is copied to the host, and the one before that is on its way to the store.

mod drift;
mod recorder;
mod shard_sink;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use deltaconv_proto::draw::{Draw, Sample};
use deltaconv_proto::shard::{self, Contents, Shape};
use deltaconv_proto::{buckets, keys, v1};

use crate::data::Data;
use crate::models::Teacher;
use crate::task::{Context, Error};
use crate::teacher::{Conditions, Place, Removed, SelfAttention};

use drift::{Reached, Recorded};
pub(crate) use recorder::{Maps, Recorder, Sink};
use shard_sink::ShardSink;

/// Samples that go through the teacher at a time: on the processor, where their activations have the same bits in any
/// batch, and at most on a GPU.
const BATCH: usize = 8;
const BATCH_ON_GPU: usize = 64;
/// Bounds of [`importance`].
const LEAST: f64 = 0.02;
const MOST: f64 = 2.0;
/// Bytes that a batch on a GPU records, at most: up to three batches are on their way to the host.
const BATCH_BYTES: usize = 1 << 30;

/// Captures the task's range and writes a shard of it for each layer.
pub(crate) fn run(context: &Context, task: &v1::CaptureTask) -> Result<v1::Done, Error> {
    let range = task.range.ok_or(Error::Incomplete("range"))?;
    let samples = range.end.saturating_sub(range.start) as usize;
    context.report(|progress| progress.steps = samples as u64);
    let teacher = context.models.teacher(context)?;
    let data = context.models.data(context)?;
    let draw = Draw::new(&context.job, data.latent_lens(), teacher.sampler.alphas_cumprod().len());

    let by_bucket = data.by_bucket(range.start as usize..range.end as usize, |i| draw.latent_of_capture(i));
    let samples_of: Vec<usize> = by_bucket.iter().map(Vec::len).collect();
    let timesteps: Vec<i64> = by_bucket.iter().flatten().map(|i| draw.timestep_of_capture(*i) as i64).collect();
    let sinks = sinks(context, task, range, &samples_of, &timesteps)?;
    let mut recorder = Recorder::new(sinks, Contents::of(&context.job, task.round));
    let student = match task.round {
        0 => None,
        round => Some(context.models.blocks(context, &[v1::Blocks { round, blocks: task.blocks.clone() }])?),
    };
    let mut recorded = 0;
    let began = Instant::now();
    let mut spent = Spent::default();
    let batch_size = batch_size(context, &teacher);
    for batch in by_bucket.iter().flat_map(|numbers| numbers.chunks(batch_size)) {
        context.check_stop()?;
        let batch: Vec<Sample> = batch.iter().map(|i| draw.capture(*i)).collect();
        let at = Instant::now();
        let inputs = Inputs::new(&teacher, &data, &batch)?;
        spent.inputs += at.elapsed();
        let computing = tracing::debug_span!("teacher", samples = batch.len()).entered();
        let at = Instant::now();
        let predicted = match student.as_ref().and_then(|rounds| rounds.first()) {
            None => inputs.predict(&teacher, &mut recorder)?,
            Some(blocks) => {
                let mut reached = Reached::default();
                let predicted = inputs.predict(&teacher, &mut reached)?;
                let mut student = Recorded { blocks, reached, recorder: &mut recorder };
                inputs.predict(&teacher, &mut student)?;
                predicted
            }
        };
        let mut removed = Removed { kept: context.plan.kept.iter().cloned().collect() };
        let importance = importance(&predicted, &inputs.predict(&teacher, &mut removed)?)?;
        spent.models += at.elapsed();
        drop(computing);
        let at = Instant::now();
        recorder.end_batch(Some(importance))?;
        spent.shards += at.elapsed();
        recorded += batch.len();
        context.report(|progress| {
            progress.step = recorded as u64;
            progress.samples_per_second = recorded as f64 / began.elapsed().as_secs_f64();
        });
    }
    let at = Instant::now();
    let finished = recorder.finish()?.into_iter().map(ShardSink::finish);
    let finished = context.wait(futures::future::try_join_all(finished))?;
    spent.shards += at.elapsed();
    let Spent { inputs, models, shards } = spent;
    tracing::debug!(task = %context.task, samples, ?inputs, ?models, ?shards, "captured");
    let shards = finished.into_iter().map(|(layer, object)| v1::ShardRef { layer, object: Some(object) }).collect();
    Ok(v1::Done {
        busy_seconds: 0.0,
        samples: samples as u64,
        output: Some(v1::done::Output::Capture(v1::CaptureOutput { shards })),
    })
}

/// Where an attempt's time went.
#[derive(Default)]
struct Spent {
    /// Drawing noise, and putting it to latents and conditions.
    inputs: Duration,
    /// Passing through models; on a GPU, having it begin with that.
    models: Duration,
    /// Waiting for what was recorded to be on its way to the store, and at the end for all of it to be there.
    shards: Duration,
}

/// A shard of each wanted layer, with `samples_of` samples of each bucket.
fn sinks(
    context: &Context,
    task: &v1::CaptureTask,
    range: v1::SampleRange,
    samples_of: &[usize],
    timesteps: &[i64],
) -> Result<Vec<(String, ShardSink)>, Error> {
    let wanted: BTreeSet<&str> = task.layers.iter().map(String::as_str).collect();
    let planned = context.plan.layers.iter().filter(|layer| wanted.contains(layer.name.as_str()));
    let sink = |layer: &v1::LayerPlan| {
        let key = keys::shard(task.round, &layer.name, &range, &context.attempt);
        let upload = context.objects.upload(&key, &context.cache.outgoing)?;
        let of = (&shard::shapes(layer, samples_of)[..], Contents::of(&context.job, task.round));
        let sink = ShardSink::new((layer.name.clone(), range), of, timesteps, upload, context.runtime.clone())?;
        Ok((layer.name.clone(), sink))
    };
    let sinks: Vec<_> = planned.map(sink).collect::<Result<_, Error>>()?;
    if sinks.len() != wanted.len() {
        return Err(Error::Incomplete("layers"));
    }
    Ok(sinks)
}

/// Samples that go through the teacher at a time. Follows from the plan and the kind of device alone, since on a GPU bits
/// depend on it.
fn batch_size(context: &Context, teacher: &Teacher) -> usize {
    if teacher.denoiser.place().device().is_cpu() {
        return BATCH;
    }
    let values: usize = context.plan.layers.iter().map(|layer| 2 * sample_len(layer)).sum();
    (BATCH_BYTES / (values * size_of::<half::f16>()).max(1)).clamp(1, BATCH_ON_GPU)
}

/// How much each sample counts in training: the part of its predicted noise, [B, ..] each, that goes wrong where the layers'
/// outputs are missing, ‖ε − ε_removed‖ / ‖ε‖. [B] f32, where they are.
///
/// What is learned of a layer is judged by the noise that the whole model predicts. At little noise that hangs on attention
/// ten times as much as at much noise, so errors there count more. Within bounds, so that no sample is lost or is all.
fn importance(predicted: &Tensor, removed: &Tensor) -> Result<Tensor, Error> {
    let norms = |x: &Tensor| x.sqr()?.flatten_from(1)?.sum(1)?.sqrt();
    let (missed, whole) = (norms(&predicted.sub(removed)?)?, norms(predicted)?);
    Ok(missed.div(&whole.maximum(f64::from(f32::MIN_POSITIVE))?)?.clamp(LEAST, MOST)?)
}

/// What a model is given for a batch of samples.
pub(crate) struct Inputs {
    /// [B, c, h, w].
    pub(crate) noised: Tensor,
    /// [B].
    pub(crate) timesteps: Tensor,
    pub(crate) conditions: Conditions,
}

impl Inputs {
    /// `batch`: samples of one bucket.
    pub(crate) fn new(teacher: &Teacher, data: &Data, batch: &[Sample]) -> Result<Self, Error> {
        let bucket = batch.first().map_or(0, |sample| data.bucket(sample.latent));
        let latents = data.batch(bucket, batch.iter().map(|sample| data.latent(sample.latent).to_vec()).collect())?;
        let noise = data.batch(bucket, batch.iter().map(|sample| sample.noise.clone()).collect())?;
        let timesteps: Vec<usize> = batch.iter().map(|sample| sample.timestep).collect();
        let prompt = |sample: &Sample| match sample.empty_prompt {
            true => data.empty_prompt(),
            false => data.prompt(sample.latent),
        };
        let prompts: Vec<usize> = batch.iter().map(prompt).collect();
        let noised = teacher.sampler.add_noise(&latents, &noise, &timesteps)?;
        let timesteps: Vec<f32> = timesteps.iter().map(|timestep| *timestep as f32).collect();
        let conditions = data.conditions(bucket, &prompts)?;
        Ok(Self { noised, timesteps: Tensor::new(timesteps, &Device::Cpu)?, conditions })
    }

    /// With what is large where the model is, as it takes it, for more than one pass.
    pub(crate) fn at(&self, place: &Place) -> Result<Self, Error> {
        let mut conditions = self.conditions.clone();
        conditions.encoder_hidden_states = place.take(&conditions.encoder_hidden_states)?;
        Ok(Self { noised: place.take(&self.noised)?, timesteps: self.timesteps.clone(), conditions })
    }

    /// The noise [B, c, h, w] f32 that the teacher predicts with `attention` in it, where it is computed.
    pub(crate) fn predict(&self, teacher: &Teacher, attention: &mut dyn SelfAttention) -> Result<Tensor, Error> {
        let Self { noised, timesteps, conditions } = self;
        Ok(teacher.denoiser.predict(noised, timesteps, conditions, attention)?)
    }
}

/// Numbers in one sample of a layer, in the bucket where they are most.
pub(crate) fn sample_len(layer: &v1::LayerPlan) -> usize {
    let every = vec![1; buckets::maps(layer).len()];
    shard::shapes(layer, &every).iter().map(Shape::sample_len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_count_by_what_attention_gives_to_their_noise() {
        let noise = |values: &[f32]| Tensor::from_slice(values, (values.len() / 2, 1, 1, 2), &Device::Cpu).unwrap();
        // Half of it, nothing, all of it and more, and noise that is none.
        let predicted = noise(&[3.0, 4.0, 1.0, 2.0, 1.0, 0.0, 0.0, 0.0]);
        let removed = noise(&[3.0, 1.5, 1.0, 2.0, 9.0, 0.0, 1.0, 0.0]);
        let found: Vec<f32> = importance(&predicted, &removed).unwrap().to_vec1().unwrap();
        assert_eq!(found, [0.5, LEAST as f32, MOST as f32, MOST as f32]);
    }
}
