//! How far a teacher's attention reaches, layer by layer: which kernel would hold most of it.

mod distance;

use candle_core::Tensor;
use deltaconv_proto::code::Code;
use deltaconv_proto::draw::{Draw, Sample};
use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::weights::{self, Files};

use crate::capture::Inputs;
use crate::data::{self, Data};
use crate::models::{self, Teacher};
use crate::task;
use crate::teacher::{self, Call, LoadOptions, Place, SelfAttention};
use distance::Distances;

pub use distance::SINK;

/// The share of the high-pass mass that a layer's kernel shall hold (arXiv 2504.21292).
pub const SHARE: f64 = 0.8;

/// Less high-pass mass than this share of all attention is rounding, of a layer that attends to all keys alike.
const LEAST_HIGH_PASS: f64 = 1e-3;

/// Samples that go through the teacher at a time. Results are the same with any number.
const BATCH: usize = 4;

/// Which teacher is observed on what.
#[derive(Debug, Clone)]
pub struct Options {
    /// URL of the teacher's folder.
    pub teacher: String,
    /// Where its denoiser lies there.
    pub denoiser: String,
    /// URL of the data: latents and embeddings of their prompts.
    pub data: String,
    /// Noised latents that go through the teacher, over all timesteps.
    pub samples: usize,
    /// Which latents, timesteps and noise: the same seed gives the same figures.
    pub seed: u64,
    /// Share of samples with the empty prompt.
    pub empty_prompt_fraction: f64,
}

/// How far one layer's attention reaches.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// diffusers' module path.
    pub name: String,
    /// H and W of its map.
    pub map: [usize; 2],
    /// Share of the high-pass mass up to each distance d from 0, which is what a kernel of 2d + 1 holds. Empty where
    /// there is hardly any such mass.
    pub cumulative: Vec<f64>,
    /// The smallest odd K whose window holds [`SHARE`] of it.
    pub kernel_size: Option<u32>,
    /// The high-pass mass over all attention.
    pub high_pass: f64,
    /// Sink columns, mean over heads and samples.
    pub sinks: f64,
    /// Their mass over all attention.
    pub sink_mass: f64,
}

/// Why a teacher can't be observed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The teacher or the data can't be loaded, or the teacher can't be computed on it.
    #[error("{source}")]
    Task {
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// Names it.
        code: Code,
    },
    /// The thread that computes is gone.
    #[error("the computation ended early: {0}")]
    Interrupted(String),
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Task { code, .. } => *code,
            Self::Interrupted(_) => Code::Fault,
        }
    }
}

impl<E: Into<task::Error>> From<E> for Error {
    fn from(error: E) -> Self {
        let error = error.into();
        Self::Task { code: error.code(), source: Box::new(error) }
    }
}

/// Whether a folder holds data that a teacher can be observed on.
///
/// # Errors
/// A URL that can't be opened, a store that doesn't answer.
pub async fn has_data(url: &str) -> Result<bool, Error> {
    match Objects::open(url)?.size(data::LATENTS).await {
        Ok(_) => Ok(true),
        Err(objects::Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Runs the teacher and measures its attention, layer by layer in forward order. `progress` is told how many samples are
/// done.
///
/// # Errors
/// Folders that can't be read, and a teacher that can't be computed on this data.
pub async fn run(options: Options, progress: impl FnMut(usize) + Send + 'static) -> Result<Vec<Layer>, Error> {
    let runtime = tokio::runtime::Handle::current();
    // Loading computes, too.
    let computed = tokio::task::spawn_blocking(move || {
        let teacher = runtime.block_on(load(&options))?;
        let factor = teacher.vae.as_ref().map_or(1, |vae| vae.config().factor());
        let data = runtime.block_on(Data::load(&options.data, factor as u32))?;
        observe(&options, &teacher, &data, progress)
    });
    computed.await.map_err(|e| Error::Interrupted(e.to_string()))?
}

async fn load(options: &Options) -> Result<Teacher, Error> {
    let objects = Objects::open(&options.teacher)?;
    let sampler = models::load_sampler(&objects).await?;
    let files = Files::find(&objects, &options.denoiser, weights::DIFFUSERS).await?;
    let (denoiser, _) =
        models::load_denoiser(&objects, &options.denoiser, &files, &LoadOptions::default(), &Place::default()).await?;
    let vae =
        models::load_vae(&objects, &models::read_config(&objects, &options.denoiser).await?, &Place::default()).await?;
    Ok(Teacher { denoiser, sampler, vae })
}

fn observe(
    options: &Options,
    teacher: &Teacher,
    data: &Data,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Layer>, Error> {
    let draw = draw(options, teacher, data);
    let mut observer = Observer::default();
    let samples: Vec<usize> = (0..options.samples).collect();
    for batch in samples.chunks(BATCH) {
        let drawn: Vec<Sample> = batch.iter().map(|i| draw.capture(*i)).collect();
        Inputs::new(teacher, data, &drawn)?.predict(teacher, &mut observer)?;
        progress(batch.last().map_or(0, |last| last + 1));
    }
    Ok(observer.layers.into_iter().map(Observed::layer).collect())
}

/// All data is looked at: nothing is trained here.
fn draw(options: &Options, teacher: &Teacher, data: &Data) -> Draw {
    Draw {
        seed: options.seed,
        latents: data.latent_lens(),
        held_out_latents: 0,
        training_samples: options.samples,
        held_out_samples: 0,
        evaluation_samples: 0,
        empty_prompt_fraction: options.empty_prompt_fraction,
        timesteps: teacher.sampler.alphas_cumprod().len(),
    }
}

/// Measures the attention of every layer that it lets through.
#[derive(Default)]
struct Observer {
    layers: Vec<Observed>,
}

struct Observed {
    name: String,
    map: [usize; 2],
    distances: Distances,
}

impl SelfAttention for Observer {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, teacher::Error> {
        let layer = call.layer;
        let map = [layer.height, layer.width];
        let heads = call.attention_maps(|attention| Distances::measure(|visit| attention.for_each_row(visit), map))?;
        if self.layers.len() == layer.index {
            self.layers.push(Observed { name: layer.name.clone(), map, distances: Distances::default() });
        }
        // Every pass goes through the same layers in the same order.
        if let Some(observed) = self.layers.get_mut(layer.index) {
            heads.iter().for_each(|head| observed.distances.add(head));
        }
        call.attention()
    }
}

impl Observed {
    fn layer(self) -> Layer {
        let distances = self.distances;
        let of_all = |mass: f64| if distances.rows > 0.0 { mass / distances.rows } else { 0.0 };
        let high_pass = of_all(distances.total());
        let cumulative = if high_pass < LEAST_HIGH_PASS { Vec::new() } else { distances.cumulative() };
        Layer {
            name: self.name,
            map: self.map,
            kernel_size: cumulative.iter().position(|share| *share >= SHARE).map(|distance| 2 * distance as u32 + 1),
            cumulative,
            high_pass,
            sinks: distances.sinks as f64 / distances.maps.max(1) as f64,
            sink_mass: of_all(distances.sink_mass),
        }
    }
}

#[cfg(test)]
mod tests;
