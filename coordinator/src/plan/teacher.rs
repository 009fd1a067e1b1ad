//! The teacher, from its configurations and the header of its weights.

use deltaconv_proto::objects::Objects;
use deltaconv_proto::teacher::{Scheduler, Teacher};

use super::Error;
use super::header::{self, FileHeader};

/// The denoiser's folder.
pub(crate) const FOLDER: &str = "unet";
/// The denoiser's configuration.
pub(crate) const CONFIG: &str = "unet/config.json";
/// The denoiser's weights.
pub(crate) const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";
/// The noise schedule's configuration.
pub(crate) const SCHEDULER: &str = "scheduler/scheduler_config.json";

/// Real configurations have a few kilobytes.
pub(crate) const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// SDXL's header has 210 kB.
pub(crate) const MAX_HEADER_BYTES: u64 = 16 << 20;

/// Everything that is known of a teacher without reading its weights.
pub(super) struct Known {
    pub(super) teacher: Teacher,
    pub(super) weights: FileHeader,
    pub(super) scheduler: Scheduler,
}

pub(super) async fn read(folder: &Objects) -> Result<Known, Error> {
    let config = folder.get(CONFIG, MAX_CONFIG_BYTES).await.map_err(|e| {
        Error::missing(
            e,
            CONFIG,
            "teacher_url is the folder of a model in diffusers layout, the one with model_index.json",
        )
    })?;
    let at = |key| move |source| Error::teacher(folder.url(), key, source);
    let teacher = Teacher::parse(&config).map_err(at(CONFIG))?;

    let weights = header::read(folder, WEIGHTS, MAX_HEADER_BYTES).await.map_err(|e| {
        Error::missing_header(
            e,
            WEIGHTS,
            "save the model with safe_serialization=True, as one file and without a variant",
        )
    })?;
    teacher.check(&weights.header).map_err(at(WEIGHTS))?;

    let scheduler = folder.get(SCHEDULER, MAX_CONFIG_BYTES).await.map_err(|e| {
        Error::missing(
            e,
            SCHEDULER,
            "the noise that the teacher was trained on isn't known; copy the file from the model",
        )
    })?;
    let scheduler = Scheduler::parse(&scheduler).map_err(at(SCHEDULER))?;
    Ok(Known { teacher, weights, scheduler })
}
