//! Records what goes into and out of the teacher's layers, for one range of samples.

use std::collections::BTreeSet;

use candle_core::{Device, Tensor};
use deltaconv_proto::draw::{Draw, Sample};
use deltaconv_proto::shard::{Shape, Shard};
use deltaconv_proto::{keys, v1};
use half::f16;

use crate::data::Data;
use crate::models::Teacher;
use crate::task::{Context, Error};
use crate::teacher::{self, Call, Conditions, SelfAttention};

/// Samples that go through the teacher at a time. A sample's activations have the same bits in any batch.
const BATCH: usize = 8;

/// Captures the task's range and writes a shard of it for each layer.
pub(crate) fn run(context: &Context, task: &v1::CaptureTask) -> Result<v1::Done, Error> {
    let range = task.range.ok_or(Error::Incomplete("range"))?;
    let samples = range.end.saturating_sub(range.start) as usize;
    context.report(|progress| progress.steps = samples as u64);
    let teacher = context.models.teacher(context)?;
    let data = context.models.data(context)?;
    let draw = Draw::new(&context.job, data.len(), teacher.sampler.alphas_cumprod().len(), data.latent_len());

    let mut recorder = Recorder::new(context, &task.layers, samples)?;
    let mut timesteps = Vec::with_capacity(samples);
    let began = std::time::Instant::now();
    let numbers: Vec<usize> = (range.start as usize..range.end as usize).collect();
    for batch in numbers.chunks(BATCH) {
        context.check_stop()?;
        let batch: Vec<Sample> = batch.iter().map(|i| draw.capture(*i)).collect();
        timesteps.extend(batch.iter().map(|sample| sample.timestep as i64));
        predict(&teacher, &data, &batch, &mut recorder)?;
        context.report(|progress| {
            progress.step = timesteps.len() as u64;
            progress.samples_per_second = timesteps.len() as f64 / began.elapsed().as_secs_f64();
        });
    }
    let shards = recorder.write(context, task.round, &range, &timesteps)?;
    Ok(v1::Done {
        busy_seconds: 0.0,
        samples: samples as u64,
        output: Some(v1::done::Output::Capture(v1::CaptureOutput { shards })),
    })
}

/// The noise that the teacher predicts for a batch of samples, [B, c, h, w], with `attention` in it.
pub(crate) fn predict(
    teacher: &Teacher,
    data: &Data,
    batch: &[Sample],
    attention: &mut dyn SelfAttention,
) -> Result<Tensor, Error> {
    let inputs = Inputs::new(teacher, data, batch)?;
    Ok(teacher.denoiser.predict(&inputs.noised, &inputs.timesteps, &inputs.conditions, attention)?)
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
    pub(crate) fn new(teacher: &Teacher, data: &Data, batch: &[Sample]) -> Result<Self, Error> {
        let latents = data.batch(batch.iter().map(|sample| data.latent(sample.latent).to_vec()).collect())?;
        let noise = data.batch(batch.iter().map(|sample| sample.noise.clone()).collect())?;
        let timesteps: Vec<usize> = batch.iter().map(|sample| sample.timestep).collect();
        let prompt = |sample: &Sample| match sample.empty_prompt {
            true => data.empty_prompt(),
            false => data.prompt(sample.latent),
        };
        let prompts: Vec<usize> = batch.iter().map(prompt).collect();
        let noised = teacher.sampler.add_noise(&latents, &noise, &timesteps)?;
        let timesteps: Vec<f32> = timesteps.iter().map(|timestep| *timestep as f32).collect();
        let conditions = data.conditions(&prompts)?;
        Ok(Self { noised, timesteps: Tensor::new(timesteps, &Device::Cpu)?, conditions })
    }
}

/// Keeps the activations of the wanted layers as they will be stored.
struct Recorder<'a> {
    layers: Vec<Recorded<'a>>,
}

struct Recorded<'a> {
    plan: &'a v1::LayerPlan,
    input: Vec<f16>,
    output: Vec<f16>,
}

impl<'a> Recorder<'a> {
    fn new(context: &'a Context, wanted: &[String], samples: usize) -> Result<Self, Error> {
        let wanted: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
        let planned = context.plan.layers.iter().filter(|layer| wanted.contains(layer.name.as_str()));
        let layers: Vec<Recorded<'_>> = planned
            .map(|plan| {
                let numbers = samples * shape(plan, 1).sample_len();
                Recorded { plan, input: Vec::with_capacity(numbers), output: Vec::with_capacity(numbers) }
            })
            .collect();
        if layers.len() != wanted.len() {
            return Err(Error::Incomplete("layers"));
        }
        Ok(Self { layers })
    }

    fn write(
        self,
        context: &Context,
        round: u32,
        range: &v1::SampleRange,
        timesteps: &[i64],
    ) -> Result<Vec<v1::ShardRef>, Error> {
        let mut written = Vec::new();
        for layer in self.layers {
            context.check_stop()?;
            let shape = shape(layer.plan, timesteps.len());
            let shard = Shard { shape, timesteps: timesteps.to_vec(), input: layer.input, output: layer.output };
            let name = &layer.plan.name;
            let bytes = shard.encode().map_err(|source| Error::Activations {
                layer: name.clone(),
                start: range.start,
                end: range.end,
                source: Box::new(source),
            })?;
            let object = context.wait(context.objects.put(&keys::shard(round, name, range), bytes))?;
            written.push(v1::ShardRef { layer: name.clone(), object: Some(object) });
        }
        Ok(written)
    }
}

fn shape(layer: &v1::LayerPlan, samples: usize) -> Shape {
    let (height, width) = (layer.height as usize, layer.width as usize);
    Shape { samples, height, width, channels: layer.channels as usize }
}

impl SelfAttention for Recorder<'_> {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, teacher::Error> {
        let output = call.attention()?;
        if let Some(recorded) = self.layers.iter_mut().find(|layer| layer.plan.name == call.layer.name) {
            append(&mut recorded.input, call.input)?;
            append(&mut recorded.output, &output)?;
        }
        Ok(output)
    }
}

fn append(values: &mut Vec<f16>, tensor: &Tensor) -> Result<(), teacher::Error> {
    use half::slice::HalfFloatSliceExt;
    let from = tensor.flatten_all()?.to_vec1::<f32>()?;
    let start = values.len();
    values.resize(start + from.len(), f16::ZERO);
    values[start..].convert_from_f32_slice(&from);
    Ok(())
}
