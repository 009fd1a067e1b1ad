//! The job's data set: ready latents, each with a prompt, and the prompts' embeddings.

use candle_core::{Device, Tensor};
use deltaconv_proto::objects::{self, Objects};

use crate::container::Container;
use crate::task;

pub(crate) const LATENTS: &str = "latents.safetensors";
const EMBEDDINGS: &str = "prompt_embeddings.safetensors";
/// A larger data set than this does not fit the way it is read here.
const MAX_BYTES: u64 = 8 << 30;

/// Why the data set can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file can't be read.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// A tensor has another number of dimensions.
    #[error("{file} of {url}: {tensor:?} has {found} dimensions, expected {expected}")]
    Dimensions {
        /// The folder.
        url: String,
        /// The file.
        file: &'static str,
        /// The tensor.
        tensor: &'static str,
        /// Its dimensions.
        found: usize,
        /// Those it should have.
        expected: usize,
    },
    /// A latent's prompt is none of the embeddings.
    #[error("{LATENTS} of {url}: prompt of row {row} is {prompt}, and there are embeddings of {prompts} prompts")]
    Prompt {
        /// The folder.
        url: String,
        /// The row.
        row: usize,
        /// Its prompt.
        prompt: i64,
        /// Number of prompts.
        prompts: usize,
    },
}

/// A data set in memory.
pub(crate) struct Data {
    /// [n, c, h, w], flat.
    latents: Vec<f32>,
    /// [c, h, w].
    pub(crate) latent: [usize; 3],
    /// For each latent, a row of the embeddings.
    prompt: Vec<usize>,
    /// [p, T, D]; the last one is the empty prompt's.
    embeddings: Tensor,
}

impl Data {
    pub(crate) async fn load(url: &str) -> Result<Self, task::Error> {
        let objects = Objects::open(url)?;
        let bytes = objects.get(LATENTS, MAX_BYTES).await?;
        let file = Container::parse(LATENTS, &bytes)?;
        let dims = |file: &Container<'_>, name, tensor, expected| -> Result<Vec<usize>, task::Error> {
            let shape = file.info(tensor)?.shape.clone();
            if shape.len() == expected {
                return Ok(shape);
            }
            let (url, found) = (url.to_owned(), shape.len());
            Err(Error::Dimensions { url, file: name, tensor, found, expected }.into())
        };
        let shape = dims(&file, LATENTS, "latents", 4)?;
        let latents = file.f32("latents", &shape)?;
        let rows = file.i64("prompt", &[shape[0]])?;

        let bytes = objects.get(EMBEDDINGS, MAX_BYTES).await?;
        let file = Container::parse(EMBEDDINGS, &bytes)?;
        let embedding = dims(&file, EMBEDDINGS, "embeddings", 3)?;
        let values = file.f32("embeddings", &embedding)?;
        let embeddings = Tensor::from_vec(values, embedding.as_slice(), &Device::Cpu)?;

        let prompts = embedding[0];
        let prompt = (rows.iter().enumerate()).map(|(row, prompt)| {
            let in_range = usize::try_from(*prompt).ok().filter(|prompt| *prompt < prompts);
            in_range.ok_or_else(|| Error::Prompt { url: url.to_owned(), row, prompt: *prompt, prompts })
        });
        let prompt = prompt.collect::<Result<Vec<usize>, Error>>()?;
        Ok(Self { latents, latent: [shape[1], shape[2], shape[3]], prompt, embeddings })
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
        self.embeddings.dims().first().copied().unwrap_or(1)
    }

    /// Embeddings of `prompts`: [B, T, D].
    pub(crate) fn embeddings(&self, prompts: &[usize]) -> Result<Tensor, task::Error> {
        let rows: Vec<u32> = prompts.iter().map(|prompt| *prompt as u32).collect();
        Ok(self.embeddings.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?)
    }

    /// Latents or noises, each [c, h, w] flat, as one batch [B, c, h, w].
    pub(crate) fn batch(&self, rows: Vec<Vec<f32>>) -> Result<Tensor, task::Error> {
        let [c, h, w] = self.latent;
        let samples = rows.len();
        Ok(Tensor::from_vec(rows.concat(), (samples, c, h, w), &Device::Cpu)?)
    }
}
