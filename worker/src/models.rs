//! The models and data of the job at hand, loaded once for all its tasks.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;
use deltaconv_proto::code::Code;
use deltaconv_proto::images::Index;
use deltaconv_proto::objects::{self, Objects, PART, read_parts};
use deltaconv_proto::pipeline::{self, Text};
use deltaconv_proto::teacher::{Layer, Scheduler, Teacher as Configuration};
use deltaconv_proto::weights::{self, Files};
use deltaconv_proto::{block, safetensors, v1};
use futures::{StreamExt, TryStreamExt};

use crate::accelerator::Accelerator;
use crate::blocks::{self, Blocks};
use crate::data::Data;
use crate::student::Student;
use crate::task::{Context, Error};
use crate::teacher::text::TextEncoder;
use crate::teacher::{Denoiser, LoadOptions, OwnAttention, Place, Sampler, Vae, Weights};

/// The noise schedule's configuration.
pub(crate) const SCHEDULER: &str = "scheduler/scheduler_config.json";
/// What weights are fetched by: object_store's time limit is for each request.
const PIECE_BYTES: u64 = 16 << 20;
/// Requests at a time.
const PIECES: usize = 4;
/// config.json and its like.
pub(crate) const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The pre-trained model and its noise schedule.
pub(crate) struct Teacher {
    pub(crate) denoiser: Denoiser,
    pub(crate) sampler: Sampler,
    /// What makes pictures of latents; none where latents are pictures.
    pub(crate) vae: Option<Vae>,
}

impl Teacher {
    /// Latents [B, c, h, w] of pictures [B, 3, H, W].
    pub(crate) fn encode(&self, pictures: &Tensor) -> Result<Tensor, Error> {
        match &self.vae {
            Some(vae) => Ok(vae.encode(pictures)?),
            None => Ok(pictures.clone()),
        }
    }

    /// Pictures [B, 3, H, W] of latents [B, c, h, w].
    pub(crate) fn decode(&self, latents: &Tensor) -> Result<Tensor, Error> {
        match &self.vae {
            Some(vae) => Ok(vae.decode(latents)?),
            None => Ok(latents.clone()),
        }
    }
}

/// What was loaded last, by where it came from.
#[derive(Default)]
pub(crate) struct Models {
    teacher: Slot<Teacher>,
    text: Slot<TextEncoder>,
    images: Slot<Index>,
    student: Slot<Student>,
    blocks: Slot<Vec<Blocks>>,
    data: Slot<Data>,
}

struct Slot<T>(Mutex<Option<(String, Arc<T>)>>);

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Slot<T> {
    /// What `origin` names; loaded if something else was loaded last, which is then dropped first.
    fn get(&self, origin: String, load: impl FnOnce() -> Result<T, Error>) -> Result<Arc<T>, Error> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((from, loaded)) = slot.as_ref()
            && *from == origin
        {
            return Ok(loaded.clone());
        }
        *slot = None;
        let loaded = Arc::new(load()?);
        *slot = Some((origin, loaded.clone()));
        Ok(loaded)
    }
}

impl Models {
    /// The job's teacher. Fails if it isn't the one that was planned.
    pub(crate) fn teacher(&self, context: &Context) -> Result<Arc<Teacher>, Error> {
        let places = Places::on(&context.accelerator);
        let origin = format!("{} {} {places:?}", context.job.teacher_url, context.plan.header_digest);
        let load = |places: &Places| context.wait(load_teacher(&context.job.teacher_url, &context.plan, places));
        self.teacher.get(origin, || where_there_is_room(&places, load))
    }

    /// The job's student, from the objects that assembly has `written`. Fails if one of them isn't what was written.
    pub(crate) fn student(&self, context: &Context, written: &[v1::ObjectRef]) -> Result<Arc<Student>, Error> {
        let places = Places::on(&context.accelerator);
        let origin = format!("{} {places:?}", context.job.output_url);
        let folder = &context.plan.denoiser_folder;
        let load = |places: &Places| context.wait(Student::load(&context.objects, folder, written, &places.denoiser));
        self.student.get(origin, || where_there_is_room(&places, load))
    }

    /// The blocks of these rounds, in their order.
    pub(crate) fn blocks(&self, context: &Context, rounds: &[v1::Blocks]) -> Result<Arc<Vec<Blocks>>, Error> {
        let of_round = |round: &v1::Blocks| {
            let digests = round.blocks.iter().filter_map(|block| Some(block.object.as_ref()?.digest.as_str()));
            digests.collect::<Vec<_>>().join(" ")
        };
        let origin = rounds.iter().map(of_round).collect::<Vec<_>>().join("\n");
        let read = |round: &v1::Blocks| context.wait(blocks::read(&context.objects, &context.plan, &round.blocks));
        self.blocks.get(origin, || rounds.iter().map(read).collect())
    }

    /// The job's data set.
    pub(crate) fn data(&self, context: &Context) -> Result<Arc<Data>, Error> {
        let data = context.job.data.as_ref().ok_or(Error::Incomplete("data"))?;
        if data.synthesis.is_none() && data.images.is_none() {
            let factor = context.plan.picture_height / context.plan.latent_height.max(1);
            return self.data.get(data.url.clone(), || context.wait(Data::load(&data.url, factor)));
        }
        let digests = context.latents.iter().filter_map(|part| Some(part.object.as_ref()?.digest.as_str()));
        let origin = digests.collect::<Vec<_>>().join(" ");
        self.data.get(origin, || context.wait(Data::synthesised(&context.objects, &context.latents, &context.plan)))
    }

    /// Which images the job has.
    pub(crate) fn images(&self, context: &Context, images: &v1::Images) -> Result<Arc<Index>, Error> {
        let origin = format!("{} {} {}", images.url, images.count, context.plan.prompts_digest);
        self.images.get(origin, || Ok(context.wait(Index::read(&images.url, images.count as usize))?))
    }

    /// The text encoders of the job's teacher.
    pub(crate) fn text(&self, context: &Context) -> Result<Arc<TextEncoder>, Error> {
        let url = &context.job.teacher_url;
        self.text.get(url.clone(), || context.wait(load_text(url, &context.plan.denoiser_folder)))
    }
}

/// Loads a model in its places, or on the processor where a GPU has no room for it.
fn where_there_is_room<T>(places: &Places, load: impl Fn(&Places) -> Result<T, Error>) -> Result<T, Error> {
    use crate::teacher::Error::Kernels;
    match load(places) {
        Err(Error::Teacher(Kernels(error @ deltaconv_kernels::Error::OutOfMemory { .. }))) => {
            tracing::warn!(%error, "the model does not fit on the GPU and is computed on the processor");
            load(&Places::default())
        }
        loaded => loaded,
    }
}

/// Where the parts of a pipeline are computed; on the processor by default.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    pub(crate) denoiser: Place,
    /// In f32: those of SDXL leave the range of f16, and bf16 shows in the pictures.
    pub(crate) vae: Place,
}

impl Places {
    pub(crate) fn on(accelerator: &Accelerator) -> Self {
        Self { denoiser: accelerator.place(true), vae: accelerator.place(false) }
    }
}

/// The attention of one layer of the planned teacher, whose other weights aren't read.
pub(crate) async fn load_attention(
    objects: &Objects,
    plan: &v1::JobPlan,
    layer: &v1::LayerPlan,
    place: &Place,
) -> Result<OwnAttention, Error> {
    AttentionWeights::read(objects, plan, layer).await?.attention(place)
}

/// The same on the processor, and what it makes of values.
pub(crate) async fn load_attention_and_values(
    objects: &Objects,
    plan: &v1::JobPlan,
    layer: &v1::LayerPlan,
) -> Result<(OwnAttention, Values), Error> {
    let mut weights = AttentionWeights::read(objects, plan, layer).await?;
    let values = weights.values()?;
    Ok((weights.attention(&Place::default())?, values))
}

/// The weights of one layer's attention.
struct AttentionWeights {
    weights: Weights,
    layer: Layer,
    /// Whether its projections have one.
    bias: bool,
}

impl AttentionWeights {
    async fn read(objects: &Objects, plan: &v1::JobPlan, layer: &v1::LayerPlan) -> Result<Self, Error> {
        let files = planned_files(objects, plan).await?;
        let config = read_config(objects, &plan.denoiser_folder).await?;
        let layers = config.layers(plan.latent_height as usize, plan.latent_width as usize);
        let mut layers = layers.map_err(crate::teacher::Error::from)?.into_iter();
        let layer = layers.find(|known| known.name == layer.name).ok_or(Error::Incomplete("layer"))?;
        let weights = open_tensors(objects, &files, &block::replaced_prefix(&layer.name)).await?;
        Ok(Self { weights, layer, bias: config.attention_bias() })
    }

    fn attention(self, place: &Place) -> Result<OwnAttention, Error> {
        let Self { weights, layer, bias } = self;
        let heads = (layer.heads, layer.channels / layer.heads);
        Ok(OwnAttention::of_heads(&mut weights.at(place), &format!("{}.attn1", layer.name), heads, bias)?)
    }

    fn values(&mut self) -> Result<Values, Error> {
        let Self { weights, layer, bias } = self;
        let (prefix, channels) = (block::replaced_prefix(&layer.name), layer.channels);
        let mut read = |name: &str, dims: &[usize]| weights.read(&format!("{prefix}{name}"), dims);
        Ok(Values {
            heads: layer.heads,
            to_values: read("to_v.weight", &[channels, channels])?,
            bias: if *bias { read("to_v.bias", &[channels])? } else { Vec::new() },
            to_outputs: read("to_out.0.weight", &[channels, channels])?,
        })
    }
}

/// What an attention makes of values.
pub(crate) struct Values {
    pub(crate) heads: usize,
    /// W_V [values, C], head by head.
    pub(crate) to_values: Vec<f32>,
    /// [values]; empty without.
    pub(crate) bias: Vec<f32>,
    /// W_O [C, values].
    pub(crate) to_outputs: Vec<f32>,
}

impl Values {
    /// Of all heads, as many as channels.
    pub(crate) fn width(&self) -> usize {
        self.to_values.len().isqrt()
    }

    /// The value channels, those first that count most in the output: by the energy of each one's part of W_O · W_V, which is
    /// that of its column of W_O times that of its row of W_V.
    pub(crate) fn by_energy(&self) -> Vec<usize> {
        let width = self.width();
        let squares = |of: &mut dyn Iterator<Item = f32>| of.map(|value| f64::from(value).powi(2)).sum::<f64>();
        let energy = |value: usize| {
            let row = &self.to_values[value * width..][..width];
            let mut column = self.to_outputs.iter().copied().skip(value).step_by(width);
            squares(&mut row.iter().copied()) * squares(&mut column)
        };
        let mut values: Vec<(usize, f64)> = (0..width).map(|value| (value, energy(value))).collect();
        values.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        values.into_iter().map(|(value, _)| value).collect()
    }
}

/// The denoiser's files, if they are those that were planned.
async fn planned_files(objects: &Objects, plan: &v1::JobPlan) -> Result<Files, Error> {
    let files = Files::find(objects, &plan.denoiser_folder, weights::DIFFUSERS).await?;
    if files.digest != plan.header_digest {
        let what = format!("{}/{}", objects.url(), files.key);
        let reason =
            format!("the digest of its header is {}, and it was planned with {}", files.digest, plan.header_digest);
        return Err(Error::Unexpected { what, reason, code: Code::InputsChanged });
    }
    Ok(files)
}

async fn load_teacher(url: &str, plan: &v1::JobPlan, places: &Places) -> Result<Teacher, Error> {
    let objects = Objects::open(url)?;
    let sampler = load_sampler(&objects).await?;
    let folder = &plan.denoiser_folder;
    let files = planned_files(&objects, plan).await?;
    let (denoiser, _) = load_denoiser(&objects, folder, &files, &LoadOptions::default(), &places.denoiser).await?;
    let vae = load_vae(&objects, &read_config(&objects, folder).await?, &places.vae).await?;
    Ok(Teacher { denoiser, sampler, vae })
}

pub(crate) async fn load_sampler(objects: &Objects) -> Result<Sampler, Error> {
    let scheduler = objects.get(SCHEDULER, MAX_CONFIG_BYTES).await?;
    Ok(Sampler::new(Scheduler::parse(&scheduler).map_err(crate::teacher::Error::from)?))
}

pub(crate) async fn load_vae(objects: &Objects, denoiser: &Configuration, place: &Place) -> Result<Option<Vae>, Error> {
    Ok(match pipeline::read_vae(objects, denoiser).await? {
        Some(part) => Some(Vae::load(&part.config, &mut open_weights(objects, &part.weights).await?.at(place))?),
        None => None,
    })
}

async fn load_text(url: &str, folder: &str) -> Result<TextEncoder, Error> {
    let objects = Objects::open(url)?;
    let text = Text::read(&objects, &read_config(&objects, folder).await?).await?;
    TextEncoder::load(&objects, &text).await
}

/// The folder of a pipeline's denoiser.
pub(crate) async fn denoiser_folder(objects: &Objects) -> &'static str {
    match objects.size("unet/config.json").await {
        Err(objects::Error::NotFound { .. }) => "transformer",
        // Whatever is wrong with it, reading it says so.
        _ => "unet",
    }
}

pub(crate) async fn read_config(objects: &Objects, folder: &str) -> Result<Configuration, Error> {
    let json = objects.get(&format!("{folder}/config.json"), MAX_CONFIG_BYTES).await?;
    Ok(Configuration::parse(&json).map_err(crate::teacher::Error::from)?)
}

/// A denoiser and its weights, from the folder of a model in diffusers layout.
pub(crate) async fn load_denoiser(
    objects: &Objects,
    folder: &str,
    files: &Files,
    options: &LoadOptions,
    place: &Place,
) -> Result<(Denoiser, Weights), Error> {
    let config = read_config(objects, folder).await?;
    let mut weights = open_weights(objects, files).await?.at(place);
    let denoiser = Denoiser::load(&config, &mut weights, options)?;
    Ok((denoiser, weights))
}

/// Weights to be read tensor by tensor, from local files or from temporary copies: they are never whole in memory.
pub(crate) async fn open_weights(objects: &Objects, files: &Files) -> Result<Weights, Error> {
    let mut weights = Weights::default();
    for file in &files.files {
        match local_path(objects, &file.key) {
            Some(path) => weights.add_file(&path)?,
            None => weights.add_open_file(fetch(objects, &file.key, file.file_len).await?)?,
        }
    }
    Ok(weights)
}

/// The tensors whose names begin with `prefix`, which are read into memory.
async fn open_tensors(objects: &Objects, files: &Files, prefix: &str) -> Result<Weights, Error> {
    let mut weights = Weights::default();
    for file in &files.files {
        let wanted: Vec<_> = file.header.tensors.iter().filter(|(name, _)| name.starts_with(prefix)).collect();
        let entries = wanted.iter().map(|(name, info)| (name.as_str(), info.dtype, info.shape.as_slice()));
        let mut bytes = safetensors::serialize_header(entries, &BTreeMap::new())?;
        let start = file.header.data_start();
        let reads = wanted.iter().map(|(_, info)| objects.get_range(&file.key, start + info.start, start + info.end));
        let mut tensors = futures::stream::iter(reads).buffered(PIECES);
        while let Some(tensor) = tensors.try_next().await? {
            bytes.extend(tensor);
        }
        weights.add_bytes(bytes)?;
    }
    Ok(weights)
}

/// The weights in an object that a manifest lists, which are verified.
pub(crate) async fn open_verified(objects: &Objects, object: &v1::ObjectRef) -> Result<Weights, Error> {
    let at_fault = |source| no_copy(source, &object.key, object.size);
    let local = local_path(objects, &object.key);
    let mut copy = if local.is_some() { None } else { Some(tempfile::tempfile().map_err(at_fault)?) };
    let source = (objects.clone(), object.clone());
    let mut parts = std::pin::pin!(read_parts([source], PIECES * PART, |len| vec![0; len]));
    while let Some(part) = parts.try_next().await? {
        if let Some(copy) = &mut copy {
            copy.write_all(&part.bytes).map_err(at_fault)?;
        }
    }
    let mut weights = Weights::default();
    match (local, copy) {
        (Some(path), _) => weights.add_file(&path)?,
        (None, Some(copy)) => weights.add_open_file(copy)?,
        (None, None) => {}
    }
    Ok(weights)
}

/// An object of so many bytes as a file without a name, which goes with the process.
async fn fetch(objects: &Objects, key: &str, size: u64) -> Result<File, Error> {
    let at_fault = |source| no_copy(source, key, size);
    let mut file = tempfile::tempfile().map_err(at_fault)?;
    let piece = |start| objects.get_range(key, start, size.min(start + PIECE_BYTES));
    let starts = (0..size).step_by(PIECE_BYTES as usize);
    let mut pieces = futures::stream::iter(starts.map(piece)).buffered(PIECES);
    while let Some(piece) = pieces.try_next().await? {
        file.write_all(&piece).map_err(at_fault)?;
    }
    Ok(file)
}

fn no_copy(source: std::io::Error, key: &str, size: u64) -> Error {
    Error::Unexpected {
        what: format!("the folder for temporary files ({})", std::env::temp_dir().display()),
        reason: format!("{source}; {key} needs {size} bytes there, TMPDIR names another"),
        code: Code::TemporaryFolder,
    }
}

fn local_path(objects: &Objects, key: &str) -> Option<std::path::PathBuf> {
    let folder = url::Url::parse(objects.url()).ok()?.to_file_path().ok()?;
    Some(folder.join(key))
}
