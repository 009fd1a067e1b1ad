//! The teacher, from its configurations and the header of its weights.

use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::teacher::{Scheduler, Teacher};
use deltaconv_proto::v1::JobPlan;
use deltaconv_proto::weights::{self, Files};

use super::Error;

/// Where a pipeline keeps its denoiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Denoiser {
    pub(crate) folder: &'static str,
    /// Its configuration.
    pub(crate) config: &'static str,
    /// Its weights in a converted model.
    pub(crate) weights: &'static str,
}

/// Of Stable Diffusion.
pub(crate) const UNET: Denoiser =
    Denoiser { folder: "unet", config: "unet/config.json", weights: "unet/diffusion_pytorch_model.safetensors" };
/// Of PixArt.
pub(crate) const TRANSFORMER: Denoiser = Denoiser {
    folder: "transformer",
    config: "transformer/config.json",
    weights: "transformer/diffusion_pytorch_model.safetensors",
};

impl Denoiser {
    /// That of a plan. A plan's folder is one of these, since it was made of them.
    pub(crate) fn of(plan: &JobPlan) -> Self {
        if plan.denoiser_folder == TRANSFORMER.folder { TRANSFORMER } else { UNET }
    }
}

/// The noise schedule's configuration.
pub(crate) const SCHEDULER: &str = "scheduler/scheduler_config.json";

/// Real configurations have a few kilobytes.
pub(crate) const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Everything that is known of a teacher without reading its weights.
pub(super) struct Known {
    pub(super) teacher: Teacher,
    pub(super) denoiser: Denoiser,
    pub(super) weights: Files,
    pub(super) scheduler: Scheduler,
}

pub(super) async fn read(folder: &Objects) -> Result<Known, Error> {
    let known = read_unchecked(folder).await?;
    let at = |source| Error::teacher(folder.url(), &*known.weights.key, source);
    known.teacher.check(|name| known.weights.tensor(name)).map_err(at)?;
    Ok(known)
}

/// What a teacher's configuration says, of a folder that may lack all else.
pub(super) async fn read_config(folder: &Objects) -> Result<(Denoiser, Teacher), Error> {
    let (denoiser, config) = match folder.get(UNET.config, MAX_CONFIG_BYTES).await {
        Err(objects::Error::NotFound { .. }) => (TRANSFORMER, folder.get(TRANSFORMER.config, MAX_CONFIG_BYTES).await),
        found => (UNET, found),
    };
    let config = config.map_err(|e| {
        Error::missing(
            e,
            "unet/config.json or transformer/config.json",
            "teacher_url is the folder of a model in diffusers layout, the one with model_index.json",
        )
    })?;
    let at_config = |source| Error::teacher(folder.url(), denoiser.config, source);
    Ok((denoiser, Teacher::parse(&config).map_err(at_config)?))
}

/// As [`read`], of weights that may be a converted model's.
pub(super) async fn read_unchecked(folder: &Objects) -> Result<Known, Error> {
    let (denoiser, teacher) = read_config(folder).await?;
    let at = |key| move |source| Error::teacher(folder.url(), key, source);

    let weights = Files::find(folder, denoiser.folder, weights::DIFFUSERS).await?;

    let scheduler = folder.get(SCHEDULER, MAX_CONFIG_BYTES).await.map_err(|e| {
        Error::missing(
            e,
            SCHEDULER,
            "the noise that the teacher was trained on isn't known; copy the file from the model",
        )
    })?;
    let scheduler = Scheduler::parse(&scheduler).map_err(at(SCHEDULER))?;
    Ok(Known { teacher, denoiser, weights, scheduler })
}
