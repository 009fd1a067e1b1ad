//! Latents that will be made: how many, how large, with which prompts.

use deltaconv_proto::images::Index;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::pipeline::Text;
use deltaconv_proto::prompts::Prompts;
use deltaconv_proto::teacher::{ClipConfig, Teacher};
use deltaconv_proto::v1::{Images, Synthesis};

use super::Error;
use super::data::Known;
use super::spec::invalid;

/// Pictures beyond this are nobody's training size.
const MAX_SIDE: u32 = 16_384;

/// `factor`: pixels of a picture for one of a latent.
pub(super) async fn of_prompts(
    synthesis: &Synthesis,
    folder: &Objects,
    teacher: &Teacher,
    factor: usize,
) -> Result<Known, Error> {
    let text = Text::read(folder, teacher).await?;
    let prompts = Prompts::read(&synthesis.prompts_url).await?;
    let size = latent_size("data.synthesis.size", (synthesis.height, synthesis.width), teacher, factor)?;
    let latents = synthesis.latents as usize;
    let used = prompts.texts.len().min(latents);
    Ok(known(latents, used, size, prompts.digest, teacher, &text))
}

/// As [`of_prompts`], of images that the VAE encodes.
pub(super) async fn of_images(
    images: &Images,
    folder: &Objects,
    teacher: &Teacher,
    factor: usize,
) -> Result<Known, Error> {
    let text = Text::read(folder, teacher).await?;
    let size = latent_size("data.images.size", (images.height, images.width), teacher, factor)?;
    let index = Index::read(&images.url, images.count as usize).await?;
    let found = index.images.len();
    if found < images.count as usize || found < 2 {
        let expected = format!("at most the {found} images of {}, and those at least 2", images.url);
        return Err(invalid("data.images.count", images.count, expected));
    }
    Ok(known(found, found, size, index.digest, teacher, &text))
}

/// Height and width of the latents, of a `field` that gives the pictures' size in pixels, or 0 for the trained one.
fn latent_size(
    field: &str,
    (height, width): (u32, u32),
    teacher: &Teacher,
    factor: usize,
) -> Result<(usize, usize), Error> {
    if (height, width) == (0, 0) {
        let expected = "height and width in pixels: the teacher's config.json says none";
        return teacher.sample_size().ok_or_else(|| invalid(field, "absent", expected));
    }
    let fits = |side: u32| (1..=MAX_SIDE).contains(&side) && (side as usize).is_multiple_of(factor);
    if !fits(height) || !fits(width) {
        let expected = format!("two multiples of {factor}, at most {MAX_SIDE}");
        return Err(invalid(field, format!("[{height}, {width}]"), expected));
    }
    Ok((height as usize / factor, width as usize / factor))
}

fn known(
    latents: usize,
    prompts: usize,
    (height, width): (usize, usize),
    prompts_digest: String,
    teacher: &Teacher,
    text: &Text,
) -> Known {
    let channels = teacher.latent_channels();
    // Each task embeds its own prompts, one a latent at most, and the empty one.
    let of_latent = (channels * height * width + 2 * numbers_of_prompt(text)) as u64 * 2;
    let bytes_to_write = of_latent.saturating_mul(latents as u64);
    Known { latents, channels, height, width, prompts: prompts + 1, prompts_digest, bytes_to_write }
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
