//! What is known of a model from its folder alone, be it a teacher or a converted model. No weight is read.

use std::collections::BTreeMap;

use deltaconv_proto::block;
use deltaconv_proto::description::{self, Description};
use deltaconv_proto::keys;
use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::teacher::{self, PredictionType};
use deltaconv_proto::v1::LayerPlan;
use deltaconv_proto::weights::Files;
use serde::Serialize;

use super::teacher::{Known, read_unchecked};
use super::{Error, kernel_size};

/// SDXL's description has 20 kB.
const MAX_DESCRIPTION_BYTES: u64 = 16 << 20;

/// A model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// Its folder.
    pub url: String,
    /// Class of the denoiser.
    pub class: &'static str,
    /// Where the denoiser lies in the folder.
    pub denoiser: &'static str,
    /// Whether layers were replaced by blocks.
    pub converted: bool,
    /// The denoiser's parameters.
    pub parameters: u64,
    /// Bytes of its tensors as they are stored.
    pub stored_bytes: u64,
    /// Of these, by dtype.
    pub dtypes: BTreeMap<String, u64>,
    /// Bytes of its tensors in f32, as a worker holds them.
    pub worker_bytes: u64,
    /// Channels, height and width of the latents that the layers are listed for.
    pub latent: [usize; 3],
    /// Width of the text embeddings; none in a model without cross-attention.
    pub text_channels: Option<usize>,
    /// "epsilon", "sample" or "v_prediction".
    pub prediction_type: &'static str,
    /// Timesteps that it was trained on.
    pub timesteps: usize,
    /// The self-attention layers in forward order.
    pub layers: Vec<InspectedLayer>,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InspectedLayer {
    /// diffusers' module path.
    pub name: String,
    /// C.
    pub channels: usize,
    /// Attention heads.
    pub heads: usize,
    /// H and W of its map.
    pub map: [usize; 2],
    /// Whether a block stands there.
    pub replaced: bool,
    /// K of the block, or of the one that would be planned.
    pub kernel_size: u32,
    /// Of the attention or of the block.
    pub parameters: u64,
}

/// Looks at the model in a folder, for latents of `size` (height, width) or of the size that it was trained at.
///
/// # Errors
/// What is wrong with the folder or with one of its files.
pub async fn inspect(url: &str, size: Option<(usize, usize)>) -> Result<Inspection, Error> {
    let folder = Objects::open(url)?;
    let known = read_unchecked(&folder).await?;
    let description = read_description(&folder).await?;
    let at_weights = |source| Error::teacher(folder.url(), &*known.weights.key, source);
    let layers = description.iter().flat_map(|description| &description.layers);
    let blocks: Vec<LayerPlan> = layers.map(description::Layer::plan).collect();
    teacher::check(|name| known.weights.tensor(name), expected(&known, &blocks)).map_err(at_weights)?;

    let (height, width) = size.or(known.teacher.sample_size()).unwrap_or((64, 64));
    let at_config = |source| Error::teacher(folder.url(), known.denoiser.config, source);
    let found = known.teacher.layers(height, width).map_err(at_config)?;
    let weights = &known.weights;
    let layers = found.iter().map(|layer| {
        let replaced = blocks.iter().find(|block| block.name == layer.name);
        let own = match replaced {
            Some(_) => block::prefix(&layer.name),
            None => block::replaced_prefix(&layer.name),
        };
        InspectedLayer {
            name: layer.name.clone(),
            channels: layer.channels,
            heads: layer.heads,
            map: [layer.height, layer.width],
            replaced: replaced.is_some(),
            kernel_size: replaced
                .map_or_else(|| kernel_size::planned(&known.teacher, layer), |block| block.kernel_size),
            parameters: parameters(weights, |name| name.starts_with(&own)),
        }
    });
    let mut dtypes = BTreeMap::new();
    for (_, tensor) in weights.tensors() {
        *dtypes.entry(tensor.dtype.to_string()).or_default() += tensor.end - tensor.start;
    }
    let all = parameters(weights, |_| true);
    Ok(Inspection {
        url: folder.url().to_owned(),
        class: known.teacher.class(),
        denoiser: known.denoiser.folder,
        converted: description.is_some(),
        parameters: all,
        stored_bytes: dtypes.values().sum(),
        dtypes,
        worker_bytes: all.saturating_mul(4),
        latent: [known.teacher.latent_channels(), height, width],
        text_channels: known.teacher.text_channels(),
        prediction_type: match known.scheduler.prediction_type {
            PredictionType::Epsilon => "epsilon",
            PredictionType::Sample => "sample",
            PredictionType::VPrediction => "v_prediction",
        },
        timesteps: known.scheduler.num_train_timesteps,
        layers: layers.collect(),
    })
}

/// `deltaconv.json`; none in a teacher's folder.
async fn read_description(folder: &Objects) -> Result<Option<Description>, Error> {
    let json = match folder.get(keys::DESCRIPTION, MAX_DESCRIPTION_BYTES).await {
        Ok(json) => json,
        Err(objects::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let broken = |source: description::Error| {
        let (url, reason) = (folder.url().to_owned(), source.to_string());
        Error::Description { url, key: keys::DESCRIPTION, reason }
    };
    Description::parse(&json).map(Some).map_err(broken)
}

/// The tensors of a model with these blocks: the teacher's without the attention that they replace, and the blocks'.
fn expected(known: &Known, blocks: &[LayerPlan]) -> Vec<(String, Vec<usize>)> {
    let replaced: Vec<String> = blocks.iter().map(|block| block::replaced_prefix(&block.name)).collect();
    let mut tensors = known.teacher.tensors();
    tensors.retain(|(name, _)| !replaced.iter().any(|prefix| name.starts_with(prefix)));
    for layer in blocks {
        let prefix = block::prefix(&layer.name);
        tensors.extend(block::tensors(layer).into_iter().map(|(name, shape)| (format!("{prefix}{name}"), shape)));
    }
    tensors
}

fn parameters(weights: &Files, belongs: impl Fn(&str) -> bool) -> u64 {
    let own = weights.tensors().filter(|(name, _)| belongs(name));
    own.map(|(_, tensor)| tensor.shape.iter().map(|n| *n as u64).fold(1, u64::saturating_mul)).sum()
}
