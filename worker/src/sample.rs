//! Pictures from a teacher or a converted model, for people to look at.

use candle_core::{Device, Tensor};
use deltaconv_proto::code::Code;
use deltaconv_proto::draw::{self, Purpose};
use deltaconv_proto::objects::Objects;
use deltaconv_proto::pipeline::{self, Text};
use deltaconv_proto::teacher::Teacher as Configuration;
use deltaconv_proto::{keys, weights};

use crate::DeviceChoice;
use crate::accelerator::Accelerator;
use crate::data;
use crate::models::{self, Places, load_denoiser, load_vae, read_config};
use crate::student::Student;
use crate::task;
use crate::teacher::text::{Embeddings, TextEncoder};
use crate::teacher::{Call, Denoiser, Guidance, LoadOptions, Original, Sampler, SelfAttention, Steps, Vae};

/// Pictures that are sampled at a time.
const BATCH: usize = 4;
/// Longest side that is tried.
const MAX_SIDE: usize = 16_384;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Request {
    /// URL of the model's folder.
    pub model: String,
    /// One row of pictures each.
    pub prompts: Vec<String>,
    /// What the pictures shall not show, instead of the empty prompt.
    pub negative: Option<String>,
    /// One column of pictures each: the same seed has the same noise, whatever the prompt and the model.
    pub seeds: Vec<u64>,
    /// How it is sampled.
    pub steps: Steps,
    /// Scale of classifier-free guidance; the default of the model's pipeline where there is none.
    pub guidance: Option<f64>,
    /// Height and width in pixels; those that the model was trained at where there are none.
    pub size: Option<(usize, usize)>,
    /// Where it is computed: on a GPU in bf16, with the VAE in f32.
    pub device: DeviceChoice,
}

/// What was drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pictures {
    /// Of each, in pixels.
    pub height: usize,
    /// Of each, in pixels.
    pub width: usize,
    /// RGB, row by row of pixels: prompt by prompt, and for each prompt seed by seed.
    pub pictures: Vec<Vec<u8>>,
}

/// Why there are no pictures.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model can't be loaded or computed.
    #[error("{message}")]
    Model {
        /// What is wrong.
        message: String,
        /// Names it.
        code: Code,
    },
    /// A model without text encoders knows only some prompts.
    #[error("{url} has no text encoder, and {prompt:?} is none of the prompts that it has embeddings of: {known}")]
    Prompt {
        /// The model.
        url: String,
        /// What was asked for.
        prompt: String,
        /// What there is.
        known: String,
    },
    /// Pictures of this size can't be drawn.
    #[error("a size of {height}×{width} pixels: {problem}")]
    Size {
        /// Height asked for.
        height: usize,
        /// Width asked for.
        width: usize,
        /// What is wrong with it.
        problem: String,
    },
}

impl From<task::Error> for Error {
    fn from(error: task::Error) -> Self {
        Self::Model { message: error.to_string(), code: error.code() }
    }
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Model { code, .. } => *code,
            Self::Prompt { .. } => Code::UnknownPrompt,
            Self::Size { .. } => Code::LatentSize,
        }
    }
}

/// Draws the pictures that `request` asks for; `progress` is told steps done and steps in all.
///
/// # Errors
/// A model that can't be loaded, prompts that it can't embed, a size that it doesn't take.
pub fn sample(request: &Request, mut progress: impl FnMut(usize, usize)) -> Result<Pictures, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::Model { message: format!("can't start: {e}"), code: Code::NotStarted })?;
    let model = runtime.block_on(Model::load(&request.model, &places(request)?))?;
    let (height, width) = model.latent_size(request.size)?;
    let factor = model.factor();
    let picture = (height * factor, width * factor);

    let mut texts = request.prompts.clone();
    texts.extend(request.negative.clone());
    let embeddings = runtime.block_on(model.embed(&texts))?;
    let prompts = request.prompts.len();
    // Behind the prompts stands the empty one, or the negative one and then the empty one.
    let of_row = |row: usize| -> Result<_, Error> {
        let rows = embeddings.rows(&[row]).map_err(task::Error::from)?;
        Ok(rows.conditions(picture)?)
    };
    let negative = of_row(prompts)?;
    let guidance = Guidance { scale: request.guidance.unwrap_or_else(|| model.usual_guidance()), negative };

    let cells: Vec<(usize, u64)> =
        (0..prompts).flat_map(|prompt| request.seeds.iter().map(move |seed| (prompt, *seed))).collect();
    let channels = model.config.latent_channels();
    let total = cells.chunks(BATCH).len() * request.steps.count;
    let mut counted = 0;
    let mut pictures = Vec::with_capacity(cells.len());
    for batch in cells.chunks(BATCH) {
        let noise = batch.iter().flat_map(|(_, seed)| {
            draw::normal(&mut draw::generator(*seed, Purpose::EvaluatePictures, 0), channels * height * width)
        });
        let noise =
            Tensor::from_iter(noise, &Device::Cpu).and_then(|t| t.reshape((batch.len(), channels, height, width)));
        let rows: Vec<usize> = batch.iter().map(|(prompt, _)| *prompt).collect();
        let conditions = embeddings.rows(&rows).map_err(task::Error::from)?.conditions(picture)?;
        let mut attention = Counted {
            attention: model.attention(),
            last: model.layers(height, width)?,
            at_end: &mut || {
                counted += 1;
                progress(counted, total);
            },
        };
        let latents = model
            .sampler
            .sample(
                model.denoiser(),
                &noise.map_err(task::Error::from)?,
                &conditions,
                Some(&guidance),
                request.steps,
                &mut attention,
            )
            .map_err(task::Error::from)?;
        for latent in 0..batch.len() {
            let latent = latents.narrow(0, latent, 1).map_err(task::Error::from)?;
            pictures.push(to_rgb(&model.decode(&latent)?).map_err(task::Error::from)?);
        }
    }
    Ok(Pictures { height: picture.0, width: picture.1, pictures })
}

fn places(request: &Request) -> Result<Places, Error> {
    let accelerator = Accelerator::open(request.device).map_err(task::Error::from)?;
    Ok(Places::on(&accelerator))
}

/// A teacher or a student with all that makes pictures of prompts.
struct Model {
    objects: Objects,
    config: Configuration,
    kind: Kind,
    sampler: Sampler,
    vae: Option<Vae>,
}

enum Kind {
    Teacher(Denoiser),
    Student(Student),
}

impl Model {
    async fn load(url: &str, places: &Places) -> Result<Self, Error> {
        let objects = Objects::open(url).map_err(task::Error::from)?;
        let folder = models::denoiser_folder(&objects).await;
        let config = read_config(&objects, folder).await?;
        let sampler = models::load_sampler(&objects).await?;
        let converted = objects.size(keys::DESCRIPTION).await.is_ok();
        let kind = match converted {
            true => Kind::Student(Student::of_model(&objects, folder, &places.denoiser).await?),
            false => {
                let files =
                    weights::Files::find(&objects, folder, weights::DIFFUSERS).await.map_err(task::Error::from)?;
                let options = LoadOptions::default();
                Kind::Teacher(load_denoiser(&objects, folder, &files, &options, &places.denoiser).await?.0)
            }
        };
        let vae = load_vae(&objects, &config, &places.vae).await?;
        Ok(Self { objects, config, kind, sampler, vae })
    }

    fn denoiser(&self) -> &Denoiser {
        match &self.kind {
            Kind::Teacher(denoiser) => denoiser,
            Kind::Student(student) => &student.denoiser,
        }
    }

    fn attention(&self) -> Box<dyn SelfAttention + '_> {
        match &self.kind {
            Kind::Teacher(_) => Box::new(Original),
            Kind::Student(student) => Box::new(student.attention()),
        }
    }

    fn factor(&self) -> usize {
        self.vae.as_ref().map_or(1, |vae| vae.config().factor())
    }

    /// Height and width of the latents.
    fn latent_size(&self, size: Option<(usize, usize)>) -> Result<(usize, usize), Error> {
        let factor = self.factor();
        let Some((height, width)) = size else {
            let absent = "the model's config.json says none, so give one";
            return self.config.sample_size().ok_or(Error::Size { height: 0, width: 0, problem: absent.to_owned() });
        };
        let wrong = |problem: String| Error::Size { height, width, problem };
        if height > MAX_SIDE || width > MAX_SIDE || height == 0 || width == 0 {
            return Err(wrong(format!("sides of 1 to {MAX_SIDE} pixels are possible")));
        }
        if height % factor != 0 || width % factor != 0 {
            return Err(wrong(format!("the model's VAE takes multiples of {factor}")));
        }
        self.config.layers(height / factor, width / factor).map_err(|e| wrong(e.to_string()))?;
        Ok((height / factor, width / factor))
    }

    /// The last layer of a pass, by number.
    fn layers(&self, height: usize, width: usize) -> Result<usize, Error> {
        let layers = self.config.layers(height, width);
        let layers = layers.map_err(|e| Error::Model { message: e.to_string(), code: e.code() })?;
        Ok(layers.len().saturating_sub(1))
    }

    /// The default `guidance_scale` of the pipelines' `__call__` in diffusers.
    fn usual_guidance(&self) -> f64 {
        match &self.config {
            Configuration::UNet(unet) if unet.added.is_some() => 5.0,
            Configuration::UNet(_) => 7.5,
            _ => 4.5,
        }
    }

    /// A row for each text, and behind them the empty prompt's.
    async fn embed(&self, texts: &[String]) -> Result<Embeddings, Error> {
        match Text::read(&self.objects, &self.config).await {
            Ok(text) => Ok(TextEncoder::load(&self.objects, &text).await?.embed(texts)?),
            Err(pipeline::Error::Missing { .. }) => self.look_up(texts).await,
            Err(error) => Err(task::Error::from(error).into()),
        }
    }

    /// Of a model that comes with embeddings of some prompts instead of text encoders.
    async fn look_up(&self, texts: &[String]) -> Result<Embeddings, Error> {
        let (known, embeddings) = data::read_prompts(&self.objects).await?;
        let row = |text: &str| {
            known.iter().position(|prompt| prompt == text).ok_or_else(|| Error::Prompt {
                url: self.objects.url().to_owned(),
                prompt: text.to_owned(),
                known: known.iter().filter(|prompt| !prompt.is_empty()).cloned().collect::<Vec<_>>().join(", "),
            })
        };
        let mut rows = texts.iter().map(|text| row(text)).collect::<Result<Vec<_>, Error>>()?;
        rows.push(known.len().saturating_sub(1));
        Ok(embeddings.rows(&rows).map_err(task::Error::from)?)
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor, Error> {
        match &self.vae {
            Some(vae) => Ok(vae.decode(latents).map_err(task::Error::from)?),
            None => Ok(latents.clone()),
        }
    }
}

/// Says when a pass has come to its last layer.
struct Counted<'a> {
    attention: Box<dyn SelfAttention + 'a>,
    last: usize,
    at_end: &'a mut dyn FnMut(),
}

impl SelfAttention for Counted<'_> {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, crate::teacher::Error> {
        if call.layer.index == self.last {
            (self.at_end)();
        }
        self.attention.apply(call)
    }
}

/// [1, 3, H, W] in [−1, 1] → RGB, a byte a channel.
fn to_rgb(picture: &Tensor) -> candle_core::Result<Vec<u8>> {
    let values = picture.squeeze(0)?.permute((1, 2, 0))?.flatten_all()?.to_vec1::<f32>()?;
    // As diffusers' image processor: denormalised, clamped, rounded.
    Ok(values.into_iter().map(|value| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8).collect())
}
