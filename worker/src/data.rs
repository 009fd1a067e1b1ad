//! The job's data set: latents, each with a prompt, and the prompts' embeddings, ready in a folder or as the teacher
//! sampled them.

use candle_core::{Device, Tensor};
use deltaconv_proto::buckets::{self, Bucket};
use deltaconv_proto::code::Code;
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
    /// A latent's bucket is none of the job's.
    #[error("{file}: bucket of row {row} is {bucket}, and the job has {buckets}")]
    Bucket {
        /// The file.
        file: String,
        /// The row.
        row: usize,
        /// Its bucket.
        bucket: i64,
        /// How many there are.
        buckets: usize,
    },
}

impl Error {
    /// Names the cause, and what helps.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Objects(error) => error.code(),
            Self::Dimensions { .. } | Self::Bucket { .. } => Code::DataTensor,
            Self::Prompt { .. } | Self::NoEmbeddings { .. } => Code::PromptId,
            Self::Empty => Code::DataMissing,
        }
    }
}

/// A data set in memory.
pub(crate) struct Data {
    /// Channels of the latents.
    channels: usize,
    /// The sizes of the latents; one, or several of a job with buckets.
    buckets: Vec<Bucket>,
    rows: Vec<Row>,
    /// The last row is the empty prompt's.
    embeddings: Embeddings,
}

/// One latent.
struct Row {
    /// [c, h, w], flat.
    latent: Vec<f32>,
    bucket: usize,
    /// A row of the embeddings.
    prompt: usize,
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
        let [channels, height, width] = [shape[1], shape[2], shape[3]];
        let picture = (height * factor as usize, width * factor as usize);
        let latents = latents.chunks_exact((channels * height * width).max(1));
        let row = |(latent, prompt): (&[f32], usize)| Row { latent: latent.to_vec(), bucket: 0, prompt };
        let rows = latents.zip(prompt).map(row).collect();
        Ok(Self { channels, buckets: vec![Bucket { latent: (height, width), picture }], rows, embeddings })
    }

    /// Latents that were synthesised, from the parts that `objects` hold.
    pub(crate) async fn synthesised(
        objects: &Objects,
        parts: &[v1::ShardOfRange],
        plan: &v1::JobPlan,
    ) -> Result<Self, task::Error> {
        let prompts = plan.prompts as usize;
        let (channels, buckets) = (plan.latent_channels as usize, buckets::of_job(plan));
        let mut all_rows = Vec::new();
        let mut embedded: Vec<Option<Embeddings>> = vec![None; prompts];
        for part in parts {
            let object = part.object.as_ref().ok_or(task::Error::Incomplete("latents"))?;
            let bytes = objects.get_verified(object).await?;
            let file = Container::parse(&object.key, &bytes)?;
            let samples = file.rows("prompt")?;
            let prompt = rows(&object.key, &file.i64("prompt", &[samples])?, prompts)?;
            let latents = read_latents(&file, channels, &buckets, samples)?;
            let row = |((bucket, latent), prompt)| Row { latent, bucket, prompt };
            all_rows.extend(latents.into_iter().zip(prompt).map(row));
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
        if all_rows.is_empty() {
            return Err(Error::Empty.into());
        }
        Ok(Self { channels, buckets, rows: all_rows, embeddings })
    }

    /// The numbers in each latent, row by row.
    pub(crate) fn latent_lens(&self) -> Vec<usize> {
        self.rows.iter().map(|row| row.latent.len()).collect()
    }

    /// Numbers in a latent of a bucket.
    pub(crate) fn latent_len(&self, bucket: usize) -> usize {
        let (height, width) = self.buckets[bucket].latent;
        self.channels * height * width
    }

    /// One latent, [c, h, w] flat.
    pub(crate) fn latent(&self, row: usize) -> &[f32] {
        &self.rows[row].latent
    }

    /// The bucket of a latent.
    pub(crate) fn bucket(&self, row: usize) -> usize {
        self.rows[row].bucket
    }

    /// The prompt of a latent.
    pub(crate) fn prompt(&self, row: usize) -> usize {
        self.rows[row].prompt
    }

    /// Samples by number, bucket by bucket, and in their order in each; `latent_of` says which latent a sample is of. What
    /// goes through a model together is of one bucket.
    pub(crate) fn by_bucket(
        &self,
        samples: std::ops::Range<usize>,
        latent_of: impl Fn(usize) -> usize,
    ) -> Vec<Vec<usize>> {
        let mut by_bucket = vec![Vec::new(); self.buckets.len()];
        samples.for_each(|sample| by_bucket[self.bucket(latent_of(sample))].push(sample));
        by_bucket
    }

    /// The row of the empty prompt.
    pub(crate) fn empty_prompt(&self) -> usize {
        self.prompts() - 1
    }

    /// Prompts, the empty one included.
    pub(crate) fn prompts(&self) -> usize {
        self.embeddings.states.dims().first().copied().unwrap_or(1)
    }

    /// What a denoiser is told of `prompts`, a sample each, of pictures of a bucket.
    pub(crate) fn conditions(&self, bucket: usize, prompts: &[usize]) -> Result<Conditions, task::Error> {
        self.embeddings.rows(prompts)?.conditions(self.buckets[bucket].picture)
    }

    /// Latents or noises of a bucket, each [c, h, w] flat, as one batch [B, c, h, w].
    pub(crate) fn batch(&self, bucket: usize, rows: Vec<Vec<f32>>) -> Result<Tensor, task::Error> {
        let (height, width) = self.buckets[bucket].latent;
        let samples = rows.len();
        Ok(Tensor::from_vec(rows.concat(), (samples, self.channels, height, width), &Device::Cpu)?)
    }
}

/// The latents of a part in their order, each [c, h, w] flat and with its bucket.
fn read_latents(
    file: &Container<'_>,
    channels: usize,
    buckets: &[Bucket],
    samples: usize,
) -> Result<Vec<(usize, Vec<f32>)>, task::Error> {
    let ids = match buckets.len() {
        1 => vec![0; samples],
        _ => file.i64("bucket", &[samples])?,
    };
    let known = |(row, id): (usize, &i64)| {
        let unknown = || Error::Bucket { file: file.name().to_owned(), row, bucket: *id, buckets: buckets.len() };
        usize::try_from(*id).ok().filter(|bucket| *bucket < buckets.len()).ok_or_else(unknown)
    };
    let of_latent = ids.iter().enumerate().map(known).collect::<Result<Vec<usize>, Error>>()?;
    let mut latents = vec![Vec::new(); samples];
    for (index, Bucket { latent: (height, width), .. }) in buckets.iter().enumerate() {
        let rows: Vec<usize> = (0..samples).filter(|row| of_latent[*row] == index).collect();
        // A bucket that doesn't occur has no tensor.
        if !rows.is_empty() {
            let name = buckets::tensor("latents", index, buckets.len());
            let numbers = file.f32(&name, &[rows.len(), channels, *height, *width])?;
            let of_each = numbers.chunks_exact((channels * height * width).max(1));
            rows.iter().zip(of_each).for_each(|(row, latent)| latents[*row] = latent.to_vec());
        }
    }
    Ok(of_latent.into_iter().zip(latents).collect())
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
    let unexpected = |reason| task::Error::Unexpected { what: name(PROMPTS), reason, code: Code::PromptsJson };
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
