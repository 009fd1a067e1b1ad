//! Latents that the teacher will sample: how many, how large, from which prompts.

use deltaconv_proto::objects::Objects;
use deltaconv_proto::pipeline::Text;
use deltaconv_proto::prompts::Prompts;
use deltaconv_proto::teacher::{ClipConfig, Teacher};
use deltaconv_proto::v1::Synthesis;

use super::Error;
use super::data::Known;
use super::spec::invalid;

/// Pictures beyond this are nobody's training size.
const MAX_SIDE: u32 = 16_384;

/// `factor`: pixels of a picture for one of a latent.
pub(super) async fn read(
    synthesis: &Synthesis,
    folder: &Objects,
    teacher: &Teacher,
    factor: usize,
) -> Result<Known, Error> {
    let text = Text::read(folder, teacher).await?;
    let prompts = Prompts::read(&synthesis.prompts_url).await?;
    let (height, width) = match (synthesis.height, synthesis.width) {
        (0, 0) => teacher.sample_size().ok_or_else(|| {
            invalid("data.synthesis.size", "absent", "height and width in pixels: the teacher's config.json says none")
        })?,
        (height, width) => {
            let fits = |side: u32| (1..=MAX_SIDE).contains(&side) && (side as usize).is_multiple_of(factor);
            if !fits(height) || !fits(width) {
                let expected = format!("two multiples of {factor}, at most {MAX_SIDE}");
                return Err(invalid("data.synthesis.size", format!("[{height}, {width}]"), expected));
            }
            (height as usize / factor, width as usize / factor)
        }
    };
    let used = prompts.texts.len().min(synthesis.latents as usize);
    let channels = teacher.latent_channels();
    // Each task embeds its own prompts, one a latent at most, and the empty one.
    let of_latent = (channels * height * width + numbers_of_prompt(&text)) as u64 * 2;
    Ok(Known {
        latents: synthesis.latents as usize,
        channels,
        height,
        width,
        prompts: used + 1,
        prompts_digest: prompts.digest,
        bytes_to_write: of_latent.saturating_mul(u64::from(synthesis.latents)),
    })
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
