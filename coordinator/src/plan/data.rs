//! The data, from the headers of its files; of the tensors only the prompt ids are read.

use deltaconv_proto::Brief;
use deltaconv_proto::buckets::Size;
use deltaconv_proto::header;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::pipeline::TIME_IDS;
use deltaconv_proto::safetensors::{Dtype, Header, TensorInfo};
use deltaconv_proto::teacher::Teacher;
use serde::Deserialize;

use super::Error;

pub(crate) const LATENTS: &str = "latents.safetensors";
pub(crate) const EMBEDDINGS: &str = "prompt_embeddings.safetensors";
pub(crate) const PROMPTS: &str = "prompts.json";
/// Tensors of [`EMBEDDINGS`] that some models need.
const MASK: &str = "attention_mask";
const POOLED: &str = "pooled";

/// What a folder of ready data has.
pub(super) const FILES: [&str; 3] = [LATENTS, EMBEDDINGS, PROMPTS];

const MAX_HEADER_BYTES: u64 = 1 << 20;
const MAX_PROMPTS_BYTES: u64 = 16 << 20;
const MAX_LATENTS: usize = 1 << 24;
const MAX_PROMPTS: usize = 1 << 20;
/// Latents are made for maps of at most this side: SDXL's have 128.
const MAX_SIDE: usize = 2048;
/// Longest text that an embedding stands for.
const MAX_TOKENS: usize = 4096;
/// Prompt ids are read in pieces of this many bytes.
const PIECE_BYTES: u64 = 8 << 20;

const REMEDY: &str = "data.url is the folder of latents.safetensors, prompt_embeddings.safetensors and prompts.json";

/// What the headers say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(super) latents: usize,
    pub(super) channels: usize,
    /// Heights and widths of the latents: one, or one for each bucket.
    pub(super) sizes: Vec<Size>,
    /// The empty one included.
    pub(super) prompts: usize,
    /// BLAKE3 of the prompts that latents are to be sampled from, hex; empty for ready latents.
    pub(super) prompts_digest: String,
    /// What making latents will write; 0 for ready ones.
    pub(super) bytes_to_write: u64,
    /// What making latents reads beside the denoiser and the VAE: text encoders and images.
    pub(super) bytes_to_make_of: u64,
    /// What a worker reads to have latents and embeddings.
    pub(super) bytes: u64,
}

#[derive(Deserialize)]
pub(crate) struct Prompts {
    pub(crate) prompts: Vec<String>,
}

/// Reads the data's headers, prompts and prompt ids, and checks that they are what the teacher takes.
pub(crate) async fn read(folder: &Objects, teacher: &Teacher) -> Result<Known, Error> {
    let (channels, context) = (teacher.latent_channels(), teacher.text_channels());
    let latents = file(folder, LATENTS).await?;
    let embeddings = file(folder, EMBEDDINGS).await?;

    let tensor = Tensor { url: folder.url(), key: LATENTS, name: "latents" };
    let expected = format!("F16, BF16 or F32 [n, {channels}, h, w]: {channels} are the teacher's channels");
    let info = tensor.find(&latents.header, &expected)?;
    let float = matches!(info.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32);
    let (n, height, width) = match info.shape[..] {
        [n, c, h, w] if float && c == channels => (n, h, w),
        _ => return Err(tensor.wrong(info, expected)),
    };
    let sides = 1..=MAX_SIDE;
    if !(2..=MAX_LATENTS).contains(&n) || !sides.contains(&height) || !sides.contains(&width) {
        let expected = format!("2 to {MAX_LATENTS} latents with sides of 1 to {MAX_SIDE}");
        return Err(tensor.wrong(info, expected));
    }

    let tensor = Tensor { url: folder.url(), key: EMBEDDINGS, name: "embeddings" };
    let width_of_text = context.map_or("D".to_owned(), |context| context.to_string());
    let expected =
        format!("F16, BF16 or F32 [prompts, tokens, {width_of_text}], the empty prompt last, of at least two prompts");
    let info = tensor.find(&embeddings.header, &expected)?;
    let float = matches!(info.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32);
    let (prompts, tokens) = match info.shape[..] {
        [p, tokens, d]
            if float
                && (2..=MAX_PROMPTS).contains(&p)
                && (1..=MAX_TOKENS).contains(&tokens)
                && d > 0
                && context.is_none_or(|context| d == context) =>
        {
            (p, tokens)
        }
        _ => return Err(tensor.wrong(info, expected)),
    };

    check_further_embeddings(folder.url(), &embeddings.header, teacher, prompts, tokens)?;
    check_texts(folder, prompts).await?;

    let tensor = Tensor { url: folder.url(), key: LATENTS, name: "prompt" };
    let expected = format!("I64 [{n}]: the row of each latent's prompt in {EMBEDDINGS}");
    let info = tensor.find(&latents.header, &expected)?;
    if info.dtype != Dtype::I64 || info.shape != [n] {
        return Err(tensor.wrong(info, expected));
    }
    check_ids(folder, &latents.header, info, prompts as u64).await?;
    Ok(Known {
        latents: n,
        channels,
        sizes: vec![(height, width)],
        prompts,
        prompts_digest: String::new(),
        bytes_to_write: 0,
        bytes_to_make_of: 0,
        bytes: latents.file_len + embeddings.file_len,
    })
}

/// What stands beside the embeddings: a mask where padding is told from text, and pooled embeddings for models that take
/// them.
fn check_further_embeddings(
    url: &str,
    header: &Header,
    teacher: &Teacher,
    prompts: usize,
    tokens: usize,
) -> Result<(), Error> {
    let float = |info: &TensorInfo| matches!(info.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32);
    if let Some(info) = header.tensors.get(MASK)
        && (!float(info) || info.shape != [prompts, tokens])
    {
        let expected = format!("F16, BF16 or F32 [{prompts}, {tokens}] of 0 and 1");
        return Err(Tensor { url, key: EMBEDDINGS, name: MASK }.wrong(info, expected));
    }
    let Teacher::UNet(unet) = teacher else { return Ok(()) };
    let Some(added) = unet.added else { return Ok(()) };
    let width = added.input.saturating_sub(TIME_IDS * added.time_channels);
    let tensor = Tensor { url, key: EMBEDDINGS, name: POOLED };
    let expected = format!("F16, BF16 or F32 [{prompts}, {width}]: the model takes an embedding of the whole text too");
    let info = tensor.find(header, &expected)?;
    if !float(info) || info.shape != [prompts, width] {
        return Err(tensor.wrong(info, expected));
    }
    Ok(())
}

async fn file(folder: &Objects, key: &'static str) -> Result<header::FileHeader, Error> {
    header::read(folder, key, MAX_HEADER_BYTES).await.map_err(|e| Error::missing_header(e, key, REMEDY))
}

/// The prompts' texts, which pictures are labelled with.
async fn check_texts(folder: &Objects, embeddings: usize) -> Result<(), Error> {
    let wrong = |reason: String| Error::Prompts { url: folder.url().to_owned(), key: PROMPTS, reason };
    let bytes = folder.get(PROMPTS, MAX_PROMPTS_BYTES).await.map_err(|e| Error::missing(e, PROMPTS, REMEDY))?;
    let Prompts { prompts } = serde_json::from_slice(&bytes)
        .map_err(|e| wrong(format!("{}; expected {{\"prompts\": [\"…\", …, \"\"]}}", Brief(&e))))?;
    if prompts.len() != embeddings {
        let found = prompts.len();
        return Err(wrong(format!("{found} prompts, but {EMBEDDINGS} has {embeddings} rows: each row needs its text")));
    }
    match prompts.last() {
        Some(last) if !last.is_empty() => {
            let last: String = last.chars().take(80).collect();
            Err(wrong(format!("the last prompt is {last:?}; it must be the empty one, \"\", which guidance needs")))
        }
        _ => Ok(()),
    }
}

async fn check_ids(folder: &Objects, header: &Header, info: &TensorInfo, prompts: u64) -> Result<(), Error> {
    let (start, end) = (header.data_start() + info.start, header.data_start() + info.end);
    let mut at = start;
    while at < end {
        let to = end.min(at + PIECE_BYTES);
        let piece = folder.get_range(LATENTS, at, to).await?;
        for (i, id) in piece.chunks_exact(8).enumerate() {
            let prompt = i64::from_le_bytes(id.try_into().expect("chunks of 8 bytes"));
            if !u64::try_from(prompt).is_ok_and(|prompt| prompt < prompts) {
                let row = (at - start) / 8 + i as u64;
                return Err(Error::PromptId { url: folder.url().to_owned(), row, prompt, last: prompts - 1 });
            }
        }
        at = to;
    }
    Ok(())
}

/// A tensor by name, for errors about it.
struct Tensor<'a> {
    url: &'a str,
    key: &'static str,
    name: &'static str,
}

impl Tensor<'_> {
    fn find<'h>(&self, header: &'h Header, expected: &str) -> Result<&'h TensorInfo, Error> {
        header.tensors.get(self.name).ok_or_else(|| Error::MissingTensor {
            url: self.url.to_owned(),
            key: self.key,
            tensor: self.name,
            expected: expected.to_owned(),
        })
    }

    fn wrong(&self, info: &TensorInfo, expected: String) -> Error {
        Error::Tensor {
            url: self.url.to_owned(),
            key: self.key,
            tensor: self.name,
            dtype: info.dtype,
            shape: info.shape.clone(),
            expected,
        }
    }
}
