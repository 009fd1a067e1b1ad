//! How fast a teacher is computed, and whether a GPU computes it as the processor does.

use std::collections::BTreeMap;
#[cfg(feature = "cuda")]
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device as TensorDevice, Tensor};
use deltaconv_kernels::{BlockShape, Gate, Parameters, bench};
use deltaconv_proto::code::Code;
use deltaconv_proto::draw::{self, Purpose};
use deltaconv_proto::objects::Objects;
use deltaconv_proto::shard::Contents;
use deltaconv_proto::teacher::{Layer, Teacher as Configuration};
use deltaconv_proto::weights::{self, Files};
use half::f16;

use super::{Device, Error};
use crate::accelerator::Accelerator;
#[cfg(feature = "cuda")]
use crate::accelerator::Cuda;
use crate::capture::{Maps, Recorder, Sink};
use crate::finetune::{self, Pass};
use crate::models::{denoiser_folder, load_denoiser, read_config};
use crate::task;
use crate::teacher::{self, Call, Conditions, Denoiser, LoadOptions, Original, Place, SelfAttention};

/// Passes before those that are timed, and those.
const WARM_UP: usize = 3;
const PASSES: usize = 10;
/// What a device may differ from the processor by, of the processor's norm: in f32, and in bf16 or f16.
const TOLERANCE_F32: f64 = 1e-4;
const TOLERANCE_HALF: f64 = 2e-2;
/// So much more where gradients have come back through all of the model, too.
#[cfg(feature = "cuda")]
const GRADIENTS: f64 = 5.0;
/// Of random blocks: K, and how large their weights are.
const KERNEL_SIZE: usize = 7;
const GAIN: f32 = 0.3;
/// Timesteps of random inputs.
const TIMESTEPS: u64 = 1000;

/// In what a teacher is held and computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32 throughout.
    F32,
    /// Weights and maps in bf16.
    Bf16,
    /// Weights and maps in f16.
    F16,
}

/// Which teacher, on what.
#[derive(Clone, Debug)]
pub struct Options {
    /// URL of the model's folder.
    pub model: String,
    /// Samples that go through it together.
    pub batch: usize,
    /// Height and width of the latents; those that it was trained at where there are none.
    pub latent: Option<(usize, usize)>,
    /// Where it is computed.
    pub device: Device,
    /// In what; the processor has f32 alone.
    pub precision: Precision,
    /// Of the random inputs.
    pub seed: u64,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Height and width of the latents.
    pub latent: (usize, usize),
    /// Seconds of a pass over a batch: the median of passes, each waited for; with capture their mean, since copies of one
    /// pass run beside the next.
    pub seconds: f64,
    /// Bytes that capture copied to the host for each batch; none without.
    pub captured: Option<usize>,
}

/// What is timed, over random inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// Passes.
    Passes,
    /// Passes with what goes into and out of every layer recorded as capture does.
    Capture,
    /// Steps of training random blocks in place of all layers together: a pass of the teacher, one of the student, and back.
    Training,
}

/// Times a teacher.
///
/// # Errors
/// A model that can't be loaded or computed, a device that isn't there.
pub fn time(options: &Options, timed: Timed) -> Result<Measured, Error> {
    let place = &place(options)?;
    let model = Model::load(options, place)?;
    let inputs = model.inputs(options)?.at(place)?;
    if timed == Timed::Training {
        let weights = Tensor::new(vec![1.0_f32; options.batch], place.device()).map_err(task::Error::from)?;
        let (accelerator, blocks) = (accelerator(place)?, model.blocks(options)?);
        let seconds = finetune::seconds_per_step(&accelerator, place, blocks, [WARM_UP, PASSES], |step| {
            step(Pass { predict: &mut |attention| model.noise(&inputs, attention), weights: &weights, share: 1.0 })
        })?;
        return Ok(Measured { latent: model.latent, seconds, captured: None });
    }
    if timed == Timed::Capture {
        let layers = model.layers()?.into_iter().map(|layer| (layer.name, Copied::default())).collect();
        let mut recorder = Recorder::new(layers, Contents::Activations);
        let mut passes = |count| -> Result<(), task::Error> {
            for _ in 0..count {
                model.pass(&inputs, &mut recorder)?;
                recorder.end_batch(None)?;
            }
            recorder.settle()
        };
        passes(WARM_UP)?;
        let began = Instant::now();
        passes(PASSES)?;
        let seconds = began.elapsed().as_secs_f64() / PASSES as f64;
        let bytes = |copied: &Copied| size_of_val(&copied.input[..]) + size_of_val(&copied.output[..]);
        let captured = Some(recorder.finish()?.iter().map(bytes).sum());
        return Ok(Measured { latent: model.latent, seconds, captured });
    }
    let mut seconds = Vec::with_capacity(PASSES);
    for pass in 0..WARM_UP + PASSES {
        let began = Instant::now();
        // Reading the prediction waits for it.
        let predicted = model.pass(&inputs, &mut Original)?;
        predicted.to_device(&TensorDevice::Cpu).map_err(task::Error::from)?;
        if pass >= WARM_UP {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(Measured { latent: model.latent, seconds: seconds[seconds.len() / 2], captured: None })
}

/// How far a device is from the processor in one thing.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// What.
    pub of: String,
    /// ‖device − processor‖ / ‖processor‖.
    pub relative_error: f64,
    /// What it may be.
    pub limit: f64,
}

impl Difference {
    /// Whether it is as small as it must be; a NaN is not.
    pub fn holds(&self) -> bool {
        self.relative_error <= self.limit
    }
}

/// Compares a pass on `options.device` with one on the processor in f32: the prediction, and of all layers' inputs, of their
/// outputs, and on a GPU of the gradients of random blocks in their place, what differs most.
///
/// # Errors
/// As [`time`].
pub fn compare(options: &Options) -> Result<Vec<Difference>, Error> {
    let on = |model: &Model| -> Result<(Tensor, Vec<Kept>), Error> {
        let mut keeper = Keeper::default();
        let predicted = model.pass(&model.inputs(options)?, &mut keeper)?;
        Ok((on_host(&predicted).map_err(task::Error::from)?, keeper.layers))
    };
    let on_processor = Model::load(options, &Place::default())?;
    let on_device = Model::load(options, &place(options)?)?;
    let (expected, expected_layers) = on(&on_processor)?;
    let (found, found_layers) = on(&on_device)?;
    let error = |found: &Tensor, expected: &Tensor| -> candle_core::Result<f64> {
        let norm = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>();
        let difference = (found.to_dtype(DType::F64)? - expected.to_dtype(DType::F64)?)?;
        Ok((norm(&difference)? / norm(expected)?).sqrt())
    };
    let limit = if options.precision == Precision::F32 { TOLERANCE_F32 } else { TOLERANCE_HALF };
    let relative_error = error(&found, &expected).map_err(task::Error::from)?;
    let mut differences = vec![Difference { of: "prediction".to_owned(), relative_error, limit }];
    for (what, of) in [("input", (|kept| &kept.input) as fn(&Kept) -> &Tensor), ("output", |kept| &kept.output)] {
        let pairs = found_layers.iter().zip(&expected_layers);
        let by_layer = pairs.map(|(found, expected)| Ok((found.layer.clone(), error(of(found), of(expected))?)));
        differences.extend(largest(what, limit, by_layer)?);
    }
    #[cfg(feature = "cuda")]
    if options.device == Device::Cuda {
        let limit = GRADIENTS * limit;
        let by_layer = gradients(options, &on_device, &on_processor)?.into_iter().map(Ok);
        differences.extend(largest("gradient within", limit, by_layer)?);
    }
    Ok(differences)
}

/// The largest difference of all layers'; a NaN is the largest.
fn largest(
    what: &str,
    limit: f64,
    by_layer: impl Iterator<Item = candle_core::Result<(String, f64)>>,
) -> Result<Option<Difference>, task::Error> {
    let mut most: Option<Difference> = None;
    for difference in by_layer {
        let (layer, relative_error) = difference?;
        if most.as_ref().is_none_or(|most| relative_error.is_nan() || relative_error > most.relative_error) {
            most = Some(Difference { of: format!("{what} of {layer}"), relative_error, limit });
        }
    }
    Ok(most)
}

/// How far the gradients of random blocks in place of all layers are from the processor's, by layer.
#[cfg(feature = "cuda")]
fn gradients(options: &Options, on_device: &Model, on_processor: &Model) -> Result<Vec<(String, f64)>, Error> {
    let cuda = Arc::new(Cuda::at(on_device.denoiser.place().device())?);
    let blocks = on_device.blocks(options)?;
    let weights: Vec<f32> = (0..options.batch).map(|i| 0.5 + i as f32).collect();
    let on = |model: &Model| -> Result<(Inputs, Tensor), Error> {
        let place = model.denoiser.place();
        let weights = Tensor::new(weights.as_slice(), place.device()).map_err(task::Error::from)?;
        Ok((model.inputs(options)?.at(place)?, weights))
    };
    let (inputs, weights_there) = on(on_device)?;
    let (same, weights_here) = on(on_processor)?;
    let errors = finetune::compare_gradients(
        &cuda,
        on_device.denoiser.place().dtype(),
        blocks,
        Pass { predict: &mut |attention| on_device.noise(&inputs, attention), weights: &weights_there, share: 0.5 },
        Pass { predict: &mut |attention| on_processor.noise(&same, attention), weights: &weights_here, share: 0.5 },
    )?;
    Ok(errors.into_iter().collect())
}

/// The last batch of a layer, where a shard's bytes would be.
#[derive(Default)]
struct Copied {
    input: Vec<f16>,
    output: Vec<f16>,
}

impl Sink for Copied {
    fn take(&mut self, Maps { input, output, .. }: Maps<'_>) -> Result<(), task::Error> {
        for (copy, values) in [(&mut self.input, Some(input)), (&mut self.output, output)] {
            copy.clear();
            copy.extend_from_slice(values.unwrap_or_default());
        }
        Ok(())
    }
}

/// What a model takes.
struct Inputs {
    sample: Tensor,
    timestep: Tensor,
    conditions: Conditions,
}

impl Inputs {
    /// With those that are large where the model is, as it takes them.
    fn at(self, place: &Place) -> Result<Self, task::Error> {
        let Self { sample, timestep, mut conditions } = self;
        conditions.encoder_hidden_states = place.take(&conditions.encoder_hidden_states)?;
        Ok(Self { sample: place.take(&sample)?, timestep, conditions })
    }
}

struct Model {
    config: Configuration,
    denoiser: Denoiser,
    latent: (usize, usize),
}

impl Model {
    fn load(options: &Options, place: &Place) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|e| Error::Model { message: format!("can't start: {e}"), code: Code::NotStarted })?;
        let loading = async {
            let objects = Objects::open(&options.model)?;
            let folder = denoiser_folder(&objects).await;
            let config = read_config(&objects, folder).await?;
            let files = Files::find(&objects, folder, weights::DIFFUSERS).await?;
            let (denoiser, _) = load_denoiser(&objects, folder, &files, &LoadOptions::default(), place).await?;
            Ok::<_, task::Error>((config, denoiser))
        };
        let (config, denoiser) = runtime.block_on(loading)?;
        let latent = options.latent.or(config.sample_size());
        let latent = latent.ok_or_else(|| {
            let message = "its config.json has no sample_size: give --latent".into();
            Error::Model { message, code: Code::LatentSize }
        })?;
        Ok(Self { config, denoiser, latent })
    }

    fn layers(&self) -> Result<Vec<Layer>, Error> {
        let layers = self.config.layers(self.latent.0, self.latent.1);
        Ok(layers.map_err(|e| task::Error::from(teacher::Error::from(e)))?)
    }

    fn inputs(&self, options: &Options) -> Result<Inputs, Error> {
        let (batch, (height, width)) = (options.batch, self.latent);
        let mut number = 0;
        let mut normal = |dims: &[usize]| -> Result<Tensor, Error> {
            number += 1;
            let mut rng = draw::generator(options.seed, Purpose::EvaluateNoise, number);
            let values = draw::normal(&mut rng, dims.iter().product());
            Ok(Tensor::from_vec(values, dims, &TensorDevice::Cpu).map_err(task::Error::from)?)
        };
        let tokens = if matches!(self.config, Configuration::PixArt(_)) { 300 } else { 77 };
        let text = normal(&[batch, tokens, self.config.text_channels().unwrap_or(1)])?;
        let mut conditions = Conditions::from(text);
        let host = |values: Vec<f32>, dims: &[usize]| {
            Tensor::from_vec(values, dims, &TensorDevice::Cpu).map_err(task::Error::from)
        };
        if let Configuration::PixArt(_) = self.config {
            // Prompts of other lengths, the rest of each padded.
            let kept = |sample: usize, token: usize| token < 10 + (sample * 37 + options.seed as usize) % 290;
            let mask = (0..batch * tokens).map(|i| f32::from(kept(i / tokens, i % tokens)));
            conditions.encoder_attention_mask = Some(host(mask.collect(), &[batch, tokens])?);
        }
        if let Configuration::UNet(unet) = &self.config
            && let Some(added) = unet.added
        {
            let numbers = [height * 8, width * 8, 0, 0, height * 8, width * 8].map(|number| number as f32);
            conditions.text_embeds = Some(normal(&[batch, added.input - numbers.len() * added.time_channels])?);
            conditions.time_ids = Some(host(numbers.repeat(batch), &[batch, numbers.len()])?);
        }
        let sample = normal(&[batch, self.config.latent_channels(), height, width])?;
        let timesteps = (0..batch as u64).map(|i| ((i * 379 + options.seed * 97 + 17) % TIMESTEPS) as f32);
        let timestep = host(timesteps.collect(), &[batch])?;
        Ok(Inputs { sample, timestep, conditions })
    }

    /// Random blocks in place of all layers.
    fn blocks(&self, options: &Options) -> Result<BTreeMap<String, Parameters>, Error> {
        let gate = if matches!(self.config, Configuration::PixArt(_)) { Gate::Sigmoid } else { Gate::Scaled };
        let mut blocks = BTreeMap::new();
        for (index, layer) in (0_u64..).zip(self.layers()?) {
            let shape = BlockShape::new(layer.channels, 0.5, KERNEL_SIZE, vec![1.0, 0.5], gate)?;
            blocks.insert(layer.name, bench::weights(&shape, options.seed ^ index, GAIN));
        }
        Ok(blocks)
    }

    fn noise(&self, inputs: &Inputs, attention: &mut dyn SelfAttention) -> Result<Tensor, task::Error> {
        let Inputs { sample, timestep, conditions } = inputs;
        Ok(self.denoiser.predict(sample, timestep, conditions, attention)?)
    }

    fn pass(&self, inputs: &Inputs, attention: &mut dyn SelfAttention) -> Result<Tensor, task::Error> {
        let Inputs { sample, timestep, conditions } = inputs;
        Ok(self.denoiser.forward(sample, timestep, conditions, attention)?)
    }
}

/// A layer's activations on the host, f32.
struct Kept {
    layer: String,
    input: Tensor,
    output: Tensor,
}

#[derive(Default)]
struct Keeper {
    layers: Vec<Kept>,
}

impl SelfAttention for Keeper {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, teacher::Error> {
        let output = call.attention()?;
        self.layers.push(Kept {
            layer: call.layer.name.clone(),
            input: on_host(call.input)?,
            output: on_host(&output)?,
        });
        Ok(output)
    }
}

fn on_host(tensor: &Tensor) -> candle_core::Result<Tensor> {
    tensor.to_device(&TensorDevice::Cpu)?.to_dtype(DType::F32)
}

/// What blocks in the place are trained on.
fn accelerator(place: &Place) -> Result<Accelerator, Error> {
    #[cfg(feature = "cuda")]
    if place.device().is_cuda() {
        return Ok(Accelerator::Cuda(Arc::new(Cuda::at(place.device())?)));
    }
    let _ = place;
    Ok(Accelerator::None)
}

#[cfg(feature = "cuda")]
fn place(options: &Options) -> Result<Place, Error> {
    let dtype = match options.precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
        Precision::F16 => DType::F16,
    };
    match options.device {
        Device::Cpu => on_processor(options),
        Device::Cuda => Ok(Place::cuda(&crate::accelerator::open_device(0)?, dtype)),
    }
}

#[cfg(not(feature = "cuda"))]
fn place(options: &Options) -> Result<Place, Error> {
    match options.device {
        Device::Cpu => on_processor(options),
        Device::Cuda => Err(Error::NoCuda),
    }
}

fn on_processor(options: &Options) -> Result<Place, Error> {
    match options.precision {
        Precision::F32 => Ok(Place::default()),
        _ => {
            let message = "the processor computes in f32 alone: give --precision f32".into();
            Err(Error::Model { message, code: Code::Precision })
        }
    }
}
