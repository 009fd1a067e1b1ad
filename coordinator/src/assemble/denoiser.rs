//! The student's denoiser: the teacher's weights without attention, and the blocks.

use deltaconv_proto::block;
use deltaconv_proto::digest;
use deltaconv_proto::header::FileHeader;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::safetensors::{Dtype, TensorInfo, serialize_header};
use deltaconv_proto::v1::{JobPlan, ObjectRef};
use deltaconv_proto::weights::{self, Files};
use futures::TryStreamExt;

use super::Error;
use super::blocks::{self, LayerBlock};
use super::stream::{self, Digest, Upload};
use crate::plan::teacher::Denoiser;

/// A denoiser that was written.
pub(super) struct Merged {
    pub(super) model: ObjectRef,
    /// BLAKE3 of the teacher's file, in hex; of several, that of their digests in a row.
    pub(super) teacher_digest: String,
}

/// Writes the student's weights to `key`: first the blocks, in f32, then the frozen tensors as they are and in the order
/// in which they lie in the teacher's files. Blocks first keeps all aligned, since no teacher's floats are wider.
pub(super) async fn merge(
    teacher: &Objects,
    objects: &Objects,
    plan: &JobPlan,
    blocks: &[LayerBlock],
    key: &str,
) -> Result<Merged, Error> {
    let weights = Files::find(teacher, Denoiser::of(plan).folder, weights::DIFFUSERS).await?;
    if weights.digest != plan.header_digest {
        let (url, key) = (teacher.url().to_owned(), weights.key);
        return Err(Error::TeacherChanged { url, key, expected: plan.header_digest.clone(), found: weights.digest });
    }
    let frozen = frozen(teacher, &weights, blocks)?;
    let published = blocks::published(blocks);
    let new = published.iter().map(|(name, shape)| (name.as_str(), Dtype::F32, shape.as_slice()));
    let kept = frozen.iter().flatten().map(|(name, info)| (*name, info.dtype, info.shape.as_slice()));
    let metadata = weights.files.first().map(|file| file.header.metadata.clone()).unwrap_or_default();
    let header = serialize_header(new.chain(kept), &metadata)
        .map_err(|source| Error::WriteHeader { key: key.to_owned(), source })?;

    let mut upload = Upload::begin(objects, key).await?;
    let written = async {
        upload.write(&header).await?;
        blocks::write_tensors(objects, blocks, &mut upload).await?;
        let mut digests = Vec::with_capacity(weights.files.len());
        for (file, frozen) in weights.files.iter().zip(&frozen) {
            digests.push(copy_frozen(teacher, file, frozen, &mut upload).await?);
        }
        Ok(match digests.len() {
            1 => digests.remove(0),
            _ => digest::of(digests.concat().as_bytes()),
        })
    }
    .await;
    let (teacher_digest, model) = upload.end(written).await?;
    Ok(Merged { model, teacher_digest })
}

/// The teacher's tensors that no block replaces: for each file, in the order in which they lie there.
fn frozen<'w>(
    teacher: &Objects,
    weights: &'w Files,
    blocks: &[LayerBlock],
) -> Result<Vec<Vec<(&'w str, &'w TensorInfo)>>, Error> {
    let replaced: Vec<String> = blocks.iter().map(|(layer, _)| block::replaced_prefix(&layer.name)).collect();
    let untouched = |prefix: &&String| !weights.tensors().any(|(name, _)| name.starts_with(prefix.as_str()));
    if let Some(prefix) = replaced.iter().find(untouched) {
        let (url, key, prefix) = (teacher.url().to_owned(), weights.key.clone(), prefix.clone());
        return Err(Error::NothingReplaced { url, key, prefix });
    }
    let stays = |name: &str| !replaced.iter().any(|prefix| name.starts_with(prefix));
    let of_file = |file: &'w FileHeader| {
        let all = file.header.tensors.iter().map(|(name, info)| (name.as_str(), info));
        let mut frozen: Vec<_> = all.filter(|(name, _)| stays(name)).collect();
        frozen.sort_by_key(|(_, info)| (info.start, info.end));
        frozen
    };
    Ok(weights.files.iter().map(of_file).collect())
}

/// Reads a file of the teacher's once from start to end, writes the frozen tensors on, and returns the file's digest.
async fn copy_frozen(
    teacher: &Objects,
    file: &FileHeader,
    frozen: &[(&str, &TensorInfo)],
    upload: &mut Upload<'_>,
) -> Result<String, Error> {
    let data_start = file.header.data_start();
    let spans: Vec<(u64, u64)> =
        frozen.iter().map(|(_, info)| (data_start + info.start, data_start + info.end)).collect();
    let mut spans = spans.into_iter().peekable();
    let mut digest = Digest::default();
    let mut position = 0;
    let mut pieces = std::pin::pin!(stream::read(teacher, &file.key, file.file_len));
    while let Some(piece) = pieces.try_next().await? {
        digest.update(&piece).await;
        let end = position + piece.len() as u64;
        while let Some(&(from, to)) = spans.peek() {
            let (first, last) = (from.max(position), to.min(end));
            if first < last {
                upload.write(&piece[(first - position) as usize..(last - position) as usize]).await?;
            }
            // The rest of this tensor, or the next one, lies in a later piece.
            if to > end {
                break;
            }
            spans.next();
        }
        position = end;
    }
    Ok(digest.hex())
}
