//! How fast a teacher is computed, and whether a GPU computes it as the processor does.

use std::time::Instant;

use candle_core::{DType, Device as TensorDevice, Tensor};
use deltaconv_proto::draw::{self, Purpose};
use deltaconv_proto::objects::Objects;
use deltaconv_proto::shard::Contents;
use deltaconv_proto::teacher::Teacher as Configuration;
use deltaconv_proto::weights::{self, Files};
use half::f16;

use super::{Device, Error};
use crate::capture::{Maps, Recorder, Sink};
use crate::models::{denoiser_folder, load_denoiser, read_config};
use crate::task;
use crate::teacher::{self, Call, Conditions, Denoiser, LoadOptions, Original, Place, SelfAttention};

/// Passes before those that are timed, and those.
const WARM_UP: usize = 3;
const PASSES: usize = 10;
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

/// Times passes over random inputs; with `capture`, what goes into and out of every layer is recorded as capture does.
///
/// # Errors
/// A model that can't be loaded or computed, a device that isn't there.
pub fn time(options: &Options, capture: bool) -> Result<Measured, Error> {
    let place = &place(options)?;
    let model = Model::load(options, place)?;
    let inputs = model.inputs(options)?.at(place)?;
    if capture {
        let layers = model.layers()?.into_iter().map(|layer| (layer, Copied::default())).collect();
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

/// Compares a pass on `options.device` with one on the processor in f32: ‖device − processor‖ / ‖processor‖ of the
/// prediction, and the largest of all layers' inputs and of their outputs, with the layers' names.
///
/// # Errors
/// As [`time`].
pub fn compare(options: &Options) -> Result<Vec<(String, f64)>, Error> {
    let on = |place: &Place| -> Result<(Tensor, Vec<Kept>), Error> {
        let model = Model::load(options, place)?;
        let mut keeper = Keeper::default();
        let predicted = model.pass(&model.inputs(options)?, &mut keeper)?;
        Ok((on_host(&predicted).map_err(task::Error::from)?, keeper.layers))
    };
    let (expected, expected_layers) = on(&Place::default())?;
    let (found, found_layers) = on(&place(options)?)?;
    let error = |found: &Tensor, expected: &Tensor| -> candle_core::Result<f64> {
        let norm = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>();
        let difference = (found.to_dtype(DType::F64)? - expected.to_dtype(DType::F64)?)?;
        Ok((norm(&difference)? / norm(expected)?).sqrt())
    };
    let mut errors = vec![("prediction".to_owned(), error(&found, &expected).map_err(task::Error::from)?)];
    for (what, of) in [("input", (|kept| &kept.input) as fn(&Kept) -> &Tensor), ("output", |kept| &kept.output)] {
        let mut largest = ("no layer".to_owned(), 0.0);
        for (found, expected) in found_layers.iter().zip(&expected_layers) {
            let error = error(of(found), of(expected)).map_err(task::Error::from)?;
            // A NaN is the largest.
            if error > largest.1 || error.is_nan() {
                largest = (format!("{what} of {}", found.layer), error);
            }
        }
        errors.push(largest);
    }
    Ok(errors)
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
        let runtime = runtime.map_err(|e| Error::Model(format!("can't start: {e}")))?;
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
        let latent = latent.ok_or_else(|| Error::Model("its config.json has no sample_size: give --latent".into()))?;
        Ok(Self { config, denoiser, latent })
    }

    /// The numbers in one sample of each layer.
    /// The layers' names.
    fn layers(&self) -> Result<Vec<String>, Error> {
        let layers = self.config.layers(self.latent.0, self.latent.1);
        let layers = layers.map_err(|e| task::Error::from(teacher::Error::from(e)))?;
        Ok(layers.into_iter().map(|layer| layer.name).collect())
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
        _ => Err(Error::Model("the processor computes in f32 alone: give --precision f32".into())),
    }
}
