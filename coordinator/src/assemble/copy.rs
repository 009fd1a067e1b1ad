//! The teacher's other files: what makes the output a model that loads as the teacher did.

use deltaconv_proto::keys;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::v1::ObjectRef;
use futures::TryStreamExt;

use super::Error;
use super::stream::{self, Upload};
use crate::plan::data::{EMBEDDINGS, LATENTS};
use crate::plan::teacher::Denoiser;

/// Pipelines have a few dozen. Each file that is written is listed in the job's record, which is small.
const MAX_FILES: usize = 64;
/// Files that are looked at before a folder is taken for no model's.
const MAX_LISTED: usize = 10_000;
/// Endings of files that hold weights. In the folder's root they are whole pipelines in one file, attention included.
const WEIGHTS: [&str; 5] = [".safetensors", ".ckpt", ".bin", ".pt", ".pth"];

/// Copies everything that belongs into the output beside the denoiser's weights, byte for byte, in order of the keys.
pub(super) async fn copy(
    teacher: &Objects,
    objects: &Objects,
    denoiser: Denoiser,
    folder: &str,
) -> Result<Vec<ObjectRef>, Error> {
    let too_many = |limit| Error::TooManyFiles { url: teacher.url().to_owned(), limit };
    let mut keys = teacher.list(MAX_LISTED + 1).await?;
    if keys.len() > MAX_LISTED {
        return Err(too_many(MAX_LISTED));
    }
    keys.retain(|key| belongs(denoiser, key));
    if keys.len() > MAX_FILES {
        return Err(too_many(MAX_FILES));
    }
    keys.sort();
    let mut written = Vec::with_capacity(keys.len());
    for key in &keys {
        let to = format!("{folder}/{key}");
        written.push(copy_file(teacher, objects, key, &to).await?);
    }
    Ok(written)
}

/// Whether a file of the teacher's folder goes into the output.
fn belongs(denoiser: Denoiser, key: &str) -> bool {
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

async fn copy_file(teacher: &Objects, objects: &Objects, from: &str, to: &str) -> Result<ObjectRef, Error> {
    let size = teacher.size(from).await?;
    if size <= stream::PIECE_BYTES {
        return Ok(objects.put(to, teacher.get(from, stream::PIECE_BYTES).await?).await?);
    }
    let mut upload = Upload::begin(objects, to).await?;
    let written = async {
        let mut pieces = std::pin::pin!(stream::read(teacher, from, size));
        while let Some(piece) = pieces.try_next().await? {
            upload.write(&piece).await?;
        }
        Ok(())
    }
    .await;
    Ok(upload.end(written).await?.1)
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
