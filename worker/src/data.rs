//! The job's data set: latents, each with a prompt, and the prompts' embeddings, ready in a folder or as the teacher
//! sampled them.

use candle_core::{Device, Tensor};
use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::v1;
use serde::Deserialize;

use crate::container::Container;
use crate::task;
use crate::teacher::Conditions;
use crate::teacher::text::Embeddings;

pub(crate) const LATENTS: &str = "latents.safetensors";
const EMBEDDINGS: &str = "prompt_embeddings.safetensors";
const PROMPTS: &str = "prompts.json";
/// A larger data set than this does not fit the way it is read here.
const MAX_BYTES: u64 = 8 << 30;

/// Why the data set can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file can't be read.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// A tensor has another number of dimensions.
    #[error("{file}: {tensor:?} has {found} dimensions, expected {expected}")]
    Dimensions {
        /// The file.
        file: String,
        /// The tensor.
        tensor: &'static str,
        /// Its dimensions.
        found: usize,
        /// Those it should have.
        expected: usize,
    },
    /// A latent's prompt is none of the embeddings.
    #[error("{file}: prompt of row {row} is {prompt}, and there are embeddings of {prompts} prompts")]
    Prompt {
        /// The file.
        file: String,
        /// The row.
        row: usize,
        /// Its prompt.
        prompt: i64,
        /// Number of prompts.
        prompts: usize,
    },
    /// A prompt of the job has no embeddings in any part.
    #[error("no part of the job's latents has embeddings of prompt {prompt}")]
    NoEmbeddings {
        /// The prompt.
        prompt: usize,
    },
    /// There are no latents.
    #[error("the job has no latents")]
    Empty,
}

/// A data set in memory.
pub(crate) struct Data {
    /// [n, c, h, w], flat.
    latents: Vec<f32>,
    /// [c, h, w].
    pub(crate) latent: [usize; 3],
    /// For each latent, a row of the embeddings.
    prompt: Vec<usize>,
    /// The last row is the empty prompt's.
    embeddings: Embeddings,
    /// Height and width of the pictures, in pixels.
    picture: (usize, usize),
}

/// The size of a plan's pictures.
pub(crate) fn picture_size(plan: &v1::JobPlan) -> (usize, usize) {
    (plan.picture_height as usize, plan.picture_width as usize)
}

impl Data {
    /// Ready latents from the folder at `url`; a pixel of theirs stands for `factor` × `factor` of the pictures.
    pub(crate) async fn load(url: &str, factor: u32) -> Result<Self, task::Error> {
        let objects = Objects::open(url)?;
        let name = |file: &str| format!("{url}/{file}");
        let bytes = objects.get(LATENTS, MAX_BYTES).await?;
        let file = Container::parse(&name(LATENTS), &bytes)?;
        let shape = dims(&file, "latents", 4)?;
        let latents = file.f32("latents", &shape)?;
        let ids = file.i64("prompt", &[shape[0]])?;

        let bytes = objects.get(EMBEDDINGS, MAX_BYTES).await?;
        let embeddings = read_embeddings(&Container::parse(&name(EMBEDDINGS), &bytes)?)?;
        let prompt = rows(&name(LATENTS), &ids, embeddings.states.dim(0)?)?;
        let latent = [shape[1], shape[2], shape[3]];
        let picture = (latent[1] * factor as usize, latent[2] * factor as usize);
        Ok(Self { latents, latent, prompt, embeddings, picture })
    }

    /// Latents that were synthesised, from the parts that `objects` hold.
    pub(crate) async fn synthesised(
        objects: &Objects,
        parts: &[v1::ShardOfRange],
        plan: &v1::JobPlan,
    ) -> Result<Self, task::Error> {
        let prompts = plan.prompts as usize;
        let latent = [plan.latent_channels, plan.latent_height, plan.latent_width].map(|n| n as usize);
        let (mut latents, mut prompt) = (Vec::new(), Vec::new());
        let mut embedded: Vec<Option<Embeddings>> = vec![None; prompts];
        for part in parts {
            let object = part.object.as_ref().ok_or(task::Error::Incomplete("latents"))?;
            let bytes = objects.get_verified(object).await?;
            let file = Container::parse(&object.key, &bytes)?;
            let samples = file.rows("latents")?;
            latents.extend(file.f32("latents", &[&[samples][..], &latent].concat())?);
            prompt.extend(rows(&object.key, &file.i64("prompt", &[samples])?, prompts)?);
            let found = read_embeddings(&file)?;
            let ids = rows(&object.key, &file.i64("prompts", &[found.states.dim(0)?])?, prompts)?;
            for (row, id) in ids.into_iter().enumerate() {
                if embedded[id].is_none() {
                    embedded[id] = Some(found.rows(&[row])?);
                }
            }
        }
        let missing = |prompt| Error::NoEmbeddings { prompt };
        let all = embedded.into_iter().enumerate().map(|(id, embeddings)| embeddings.ok_or_else(|| missing(id)));
        let embeddings = Embeddings::join(&all.collect::<Result<Vec<_>, Error>>()?)?;
        if prompt.is_empty() {
            return Err(Error::Empty.into());
        }
        Ok(Self { latents, latent, prompt, embeddings, picture: picture_size(plan) })
    }

    /// Rows of latents.
    pub(crate) fn len(&self) -> usize {
        self.prompt.len()
    }

    /// Numbers in one latent.
    pub(crate) fn latent_len(&self) -> usize {
        self.latent.iter().product()
    }

    /// One latent, [c, h, w] flat.
    pub(crate) fn latent(&self, row: usize) -> &[f32] {
        let len = self.latent_len();
        &self.latents[row * len..(row + 1) * len]
    }

    /// The prompt of a latent.
    pub(crate) fn prompt(&self, row: usize) -> usize {
        self.prompt[row]
    }

    /// The row of the empty prompt.
    pub(crate) fn empty_prompt(&self) -> usize {
        self.prompts() - 1
    }

    /// Prompts, the empty one included.
    pub(crate) fn prompts(&self) -> usize {
        self.embeddings.states.dims().first().copied().unwrap_or(1)
    }

    /// What a denoiser is told of `prompts`, a sample each.
    pub(crate) fn conditions(&self, prompts: &[usize]) -> Result<Conditions, task::Error> {
        self.embeddings.rows(prompts)?.conditions(self.picture)
    }

    /// Latents or noises, each [c, h, w] flat, as one batch [B, c, h, w].
    pub(crate) fn batch(&self, rows: Vec<Vec<f32>>) -> Result<Tensor, task::Error> {
        let [c, h, w] = self.latent;
        let samples = rows.len();
        Ok(Tensor::from_vec(rows.concat(), (samples, c, h, w), &Device::Cpu)?)
    }
}

fn dims(file: &Container<'_>, tensor: &'static str, expected: usize) -> Result<Vec<usize>, task::Error> {
    let shape = file.info(tensor)?.shape.clone();
    if shape.len() == expected {
        return Ok(shape);
    }
    Err(Error::Dimensions { file: file.name().to_owned(), tensor, found: shape.len(), expected }.into())
}

/// `embeddings`, and what stands beside them.
fn read_embeddings(file: &Container<'_>) -> Result<Embeddings, task::Error> {
    let shape = dims(file, "embeddings", 3)?;
    let tensor = |name: &'static str, shape: &[usize]| -> Result<Tensor, task::Error> {
        Ok(Tensor::from_vec(file.f32(name, shape)?, shape, &Device::Cpu)?)
    };
    let states = tensor("embeddings", &shape)?;
    let mask = match file.has("attention_mask") {
        true => Some(tensor("attention_mask", &shape[..2])?),
        false => None,
    };
    let pooled = match file.has("pooled") {
        true => Some(tensor("pooled", &[shape[0], dims(file, "pooled", 2)?[1]])?),
        false => None,
    };
    Ok(Embeddings { states, mask, pooled })
}

/// The prompts of a folder with ready embeddings, and these; the last one is the empty prompt.
pub(crate) async fn read_prompts(objects: &Objects) -> Result<(Vec<String>, Embeddings), task::Error> {
    #[derive(Deserialize)]
    struct File {
        prompts: Vec<String>,
    }
    let name = |file: &str| format!("{}/{file}", objects.url());
    let bytes = objects.get(PROMPTS, MAX_BYTES).await?;
    let unexpected = |reason| task::Error::Unexpected { what: name(PROMPTS), reason };
    let File { prompts } = serde_json::from_slice(&bytes).map_err(|e| unexpected(e.to_string()))?;
    let bytes = objects.get(EMBEDDINGS, MAX_BYTES).await?;
    let embeddings = read_embeddings(&Container::parse(&name(EMBEDDINGS), &bytes)?)?;
    let rows = embeddings.states.dim(0)?;
    if rows != prompts.len() || rows == 0 {
        return Err(unexpected(format!("it has {} prompts, and {EMBEDDINGS} has {rows} rows", prompts.len())));
    }
    Ok((prompts, embeddings))
}

/// Ids of prompts as rows, of which there are `prompts`.
fn rows(file: &str, ids: &[i64], prompts: usize) -> Result<Vec<usize>, Error> {
    let row = |(row, prompt): (usize, &i64)| {
        let in_range = usize::try_from(*prompt).ok().filter(|prompt| *prompt < prompts);
        in_range.ok_or_else(|| Error::Prompt { file: file.to_owned(), row, prompt: *prompt, prompts })
    };
    ids.iter().enumerate().map(row).collect()
}
