//! The teacher's other files: what makes the output a model that loads as the teacher did.

use deltaconv_proto::objects::Objects;
use deltaconv_proto::v1::ObjectRef;
use futures::TryStreamExt;

use super::Error;
use super::stream::{self, Upload};
use crate::plan::copied::belongs;
use crate::plan::teacher::Denoiser;

/// Pipelines have a few dozen. Each file that is written is listed in the job's record, which is small.
const MAX_FILES: usize = 64;
/// Files that are looked at before a folder is taken for no model's.
const MAX_LISTED: usize = 10_000;

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
