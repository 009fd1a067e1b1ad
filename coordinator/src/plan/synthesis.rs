//! Latents that will be made: how many, how large, with which prompts.

use deltaconv_proto::buckets::Size;
use deltaconv_proto::images::Index;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::pipeline::Text;
use deltaconv_proto::prompts::Prompts;
use deltaconv_proto::teacher::{ClipConfig, Teacher};
use deltaconv_proto::v1::{Images, Synthesis};

use super::buckets::Asked;
use super::data::Known;
use super::spec::invalid;
use super::{Error, bytes};

/// `factor`: pixels of a picture for one of a latent.
pub(super) async fn of_prompts(
    synthesis: &Synthesis,
    folder: &Objects,
    teacher: &Teacher,
    factor: usize,
) -> Result<Known, Error> {
    let text = Text::read(folder, teacher).await?;
    let prompts = Prompts::read(&synthesis.prompts_url).await?;
    let asked = Asked {
        table: "data.synthesis",
        size: (synthesis.height, synthesis.width),
        buckets: synthesis.buckets.as_ref(),
        by_ratio: false,
    };
    let sizes = asked.latent_sizes(teacher, factor)?;
    let latents = synthesis.latents as usize;
    let used = prompts.texts.len().min(latents);
    Ok(known(latents, used, sizes, prompts.digest, teacher, &text, 0))
}

/// As [`of_prompts`], of images that the VAE encodes.
pub(super) async fn of_images(
    images: &Images,
    folder: &Objects,
    teacher: &Teacher,
    factor: usize,
) -> Result<Known, Error> {
    let text = Text::read(folder, teacher).await?;
    let asked = Asked {
        table: "data.images",
        size: (images.height, images.width),
        buckets: images.buckets.as_ref(),
        by_ratio: true,
    };
    let sizes = asked.latent_sizes(teacher, factor)?;
    let index = Index::read(&images.url, images.count as usize).await?;
    let found = index.images.len();
    if found < images.count as usize || found < 2 {
        let expected = format!("at most the {found} images of {}, and those at least 2", images.url);
        return Err(invalid("data.images.count", images.count, expected));
    }
    let bytes = index.images.iter().map(|image| image.end - image.start).sum();
    Ok(known(found, found, sizes, index.digest, teacher, &text, bytes))
}

/// `image_bytes`: of the images, as they are stored.
fn known(
    latents: usize,
    prompts: usize,
    sizes: Vec<Size>,
    prompts_digest: String,
    teacher: &Teacher,
    text: &Text,
    image_bytes: u64,
) -> Known {
    let channels = teacher.latent_channels();
    // Each task embeds its own prompts, one a latent at most, and the empty one. Which bucket an image is in isn't known
    // before it is read.
    let largest = sizes.iter().map(|(height, width)| height * width).max().unwrap_or(0);
    let of_latent = (channels * largest + 2 * numbers_of_prompt(text)) as u64 * 2;
    let bytes_to_write = of_latent.saturating_mul(latents as u64);
    let encoders = match text {
        Text::Clip(part) => bytes::weights(&part.weights),
        Text::ClipPair { first, second, .. } => bytes::weights(&first.weights) + bytes::weights(&second.weights),
        Text::T5 { part, .. } => bytes::weights(&part.weights),
    };
    Known {
        latents,
        channels,
        sizes,
        prompts: prompts + 1,
        prompts_digest,
        bytes_to_write,
        bytes_to_make_of: encoders + image_bytes,
        bytes: bytes_to_write,
    }
}

/// Numbers that a prompt's embeddings have, at most.
fn numbers_of_prompt(text: &Text) -> usize {
    let states = |config: &ClipConfig| config.positions * config.channels;
    match text {
        Text::Clip(part) => states(&part.config),
        Text::ClipPair { first, second, .. } => {
            states(&first.config) + states(&second.config) + second.config.projection.unwrap_or_default()
        }
        Text::T5 { part, tokens } => tokens * (part.config.channels + 1),
    }
}
