//! Which of the teacher's files go into the output as they are.

use deltaconv_proto::keys;
use deltaconv_proto::objects::Objects;
use futures::{StreamExt, TryStreamExt};

use super::Error;
use super::data::{EMBEDDINGS, LATENTS};
use super::teacher::Denoiser;

/// Files of a teacher's folder whose sizes are added up; a model has far less.
const LISTED: usize = 10_000;
/// Endings of files that hold weights. In the folder's root they are whole pipelines in one file, attention included.
const WEIGHTS: [&str; 5] = [".safetensors", ".ckpt", ".bin", ".pt", ".pth"];

/// Bytes of these files.
pub(super) async fn bytes(teacher: &Objects, denoiser: Denoiser) -> Result<u64, Error> {
    let belonging = |(key, size): (String, u64)| if belongs(denoiser, &key) { size } else { 0 };
    let add = |sum: u64, size| async move { Ok(sum.saturating_add(size)) };
    Ok(teacher.listing().take(LISTED).map_ok(belonging).try_fold(0, add).await?)
}

/// Whether a file of the teacher's folder goes into the output.
pub(crate) fn belongs(denoiser: Denoiser, key: &str) -> bool {
    let is_weights = WEIGHTS.iter().any(|ending| key.ends_with(ending));
    match key.split_once('/') {
        _ if key.split('/').any(|part| part.starts_with('.')) => false,
        // Of the denoiser only the configuration: other variants of its weights still hold the attention.
        Some((folder, _)) if folder == denoiser.folder => key == denoiser.config,
        Some(_) => true,
        // Written by assembly itself, a converted teacher's too.
        None if [keys::LOADER, keys::DESCRIPTION].contains(&key) => false,
        None => key == EMBEDDINGS || (key != LATENTS && !is_weights),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::teacher::{TRANSFORMER, UNET};

    #[test]
    fn no_copy_of_the_attention_gets_into_the_output() {
        for key in [
            "unet/config.json",
            "scheduler/scheduler_config.json",
            "vae/diffusion_pytorch_model.safetensors",
            "model_index.json",
            "prompts.json",
            "prompt_embeddings.safetensors",
        ] {
            assert!(belongs(UNET, key), "{key} was left out");
        }
        for key in [
            "unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.bin",
            "v1-5-pruned.ckpt",
            "v1-5-pruned-emaonly.safetensors",
            "latents.safetensors",
            "deltaconv_diffusers.py",
            ".gitattributes",
            ".cache/huggingface/x.json",
        ] {
            assert!(!belongs(UNET, key), "{key} was copied");
        }
        assert!(!belongs(TRANSFORMER, "transformer/diffusion_pytorch_model.safetensors"));
        assert!(belongs(TRANSFORMER, "transformer/config.json"));
    }
}
