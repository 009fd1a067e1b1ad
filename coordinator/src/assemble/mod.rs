//! The converted model, put together from the teacher and the trained blocks, and the check of what workers hand in.
//!
//! Everything is streamed: the teacher is never whole in memory. Written again, every object has the same bytes, so a
//! coordinator that was killed in the middle starts over.

pub(crate) mod abandoned;
mod blocks;
mod copy;
mod denoiser;
mod error;
mod stream;
pub(crate) mod tensors;
#[cfg(test)]
mod tests;
pub mod verify;

use deltaconv_proto::description::Description;
use deltaconv_proto::keys;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::v1::{JobPlan, JobSpec, ObjectRef};

pub use blocks::LayerBlock;
pub use error::Error;
pub use tensors::Error as TensorError;

use crate::plan::teacher::Denoiser;

/// The model's loader for diffusers.
const LOADER: &str = include_str!("deltaconv_diffusers.py");

/// What was written, with keys under the job's prefix.
#[derive(Clone, Debug, PartialEq)]
pub struct Assembled {
    /// Every object of the output.
    pub objects: Vec<ObjectRef>,
    /// BLAKE3 of the teacher's denoiser file, hex.
    pub teacher_digest: String,
    /// BLAKE3 of the student's denoiser file, hex.
    pub model_digest: String,
    /// BLAKE3 of the blocks alone, hex.
    pub blocks_digest: String,
}

/// The key of the student's weights under the job's prefix.
pub(crate) fn model_key(plan: &JobPlan) -> String {
    format!("{}/{}", keys::OUTPUT, Denoiser::of(plan).weights)
}

/// The key of the blocks alone under the job's prefix.
pub(crate) fn blocks_key() -> String {
    format!("{}/{}", keys::OUTPUT, keys::BLOCKS)
}

/// The key of the model's description under the job's prefix.
pub(crate) fn description_key() -> String {
    format!("{}/{}", keys::OUTPUT, keys::DESCRIPTION)
}

/// Writes the converted model under the job's prefix. Its description is written last: where it stands, the rest does.
///
/// # Errors
/// [`Error::TeacherChanged`] when the teacher isn't the planned one; [`Error::Block`] and
/// [`deltaconv_proto::objects::Error::Broken`] for blocks that are not what they should be; failures of the stores.
pub async fn assemble(spec: &JobSpec, plan: &JobPlan, blocks: &[LayerBlock]) -> Result<Assembled, Error> {
    let teacher = Objects::open(&spec.teacher_url)?;
    let objects = Objects::open(&spec.output_url)?;
    let blocks = blocks::in_forward_order(plan, blocks)?;

    let denoiser::Merged { model, teacher_digest } =
        denoiser::merge(&teacher, &objects, plan, &blocks, &model_key(plan)).await?;
    let alone = blocks::write_alone(&objects, &blocks, &blocks_key()).await?;
    let mut written = copy::copy(&teacher, &objects, Denoiser::of(plan), keys::OUTPUT).await?;

    let (model_digest, blocks_digest) = (model.digest.clone(), alone.digest.clone());
    written.extend([model, alone]);
    written.push(objects.put(&format!("{}/{}", keys::OUTPUT, keys::LOADER), LOADER).await?);
    let key = description_key();
    let description = Description::new(plan, teacher_digest.clone());
    let mut json =
        serde_json::to_vec_pretty(&description).map_err(|source| Error::Json { key: key.clone(), source })?;
    json.push(b'\n');
    written.push(objects.put(&key, json).await?);
    Ok(Assembled { objects: written, teacher_digest, model_digest, blocks_digest })
}
