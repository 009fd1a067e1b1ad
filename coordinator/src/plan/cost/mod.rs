//! What a model's layers cost as attention and as blocks, in multiply-accumulates of one sample's forward pass.
//!
//! Counted are the products of matrices and the depthwise convolutions, one for each pair of numbers that are multiplied
//! and summed. Not counted, at either side: biases, softmax, gates, pooling, resizing, the means and sums over maps; in
//! a block they are a few operations a number where the products are hundreds.

mod published;
#[cfg(test)]
mod tests;

use deltaconv_proto::block;
use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::teacher::{Layer, Teacher};
use deltaconv_proto::v1::LayerPlan;
use serde::Serialize;

pub use published::{Published, Row as PublishedRow};

use super::spec::invalid;
use super::teacher::{MAX_CONFIG_BYTES, read_config};
use super::{Error, kernel_size};

/// The decoder of the latents, which says how many pixels one of them stands for.
const VAE: &str = "vae/config.json";
/// Width and height of what the literature calls 4K.
pub const FOUR_K: (usize, usize) = (4096, 2160);
/// And 16K.
pub const SIXTEEN_K: (usize, usize) = (15360, 8640);
/// Of a resolution, far above any picture.
const MAX_SIDE: usize = 1 << 20;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Options {
    /// Pictures' width and height in pixels. None: the size that the model was trained at, twice and four times that,
    /// 4096×2160 and 15360×8640; of a model whose latents are pixels, that size and twice, four and eight times that.
    pub resolutions: Vec<(usize, usize)>,
    /// Pixels along one side of a latent; by default what the VAE's configuration says, and 1 where there is no VAE.
    pub pixels_per_latent: Option<usize>,
    /// Inner width of the blocks over C.
    pub inter_ratio: f64,
    /// Scales of their pyramid, 1 first.
    pub scales: Vec<f64>,
}

/// What a model's layers cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Costs {
    /// The model's folder.
    pub url: String,
    /// Class of the denoiser.
    pub class: &'static str,
    /// Where it lies in the folder.
    pub denoiser: &'static str,
    /// Pixels along one side of a latent.
    pub pixels_per_latent: usize,
    /// Inner width of the blocks over C.
    pub inter_ratio: f64,
    /// Scales of their pyramid.
    pub scales: Vec<f64>,
    /// The layers in forward order.
    pub layers: Vec<CostedLayer>,
    /// What they cost at each resolution.
    pub resolutions: Vec<Resolution>,
    /// What was published for this model.
    pub published: Option<Published>,
}

/// A layer, at any resolution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CostedLayer {
    /// diffusers' module path.
    pub name: String,
    /// C.
    pub channels: usize,
    /// Attention heads.
    pub heads: usize,
    /// K of the block that is planned by default.
    pub kernel_size: u32,
    /// H and W of its map at the size that the model was trained at.
    pub map: [usize; 2],
}

/// All layers' costs at one resolution.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Resolution {
    /// Width and height of the picture.
    pub pixels: [usize; 2],
    /// Height and width of the latents.
    pub latent: [usize; 2],
    /// By layer, in forward order.
    pub layers: Vec<LayerCost>,
    /// Of all layers as attention.
    pub attention: u128,
    /// Of all layers as blocks.
    pub block: u128,
    /// How many times cheaper the blocks are.
    pub ratio: f64,
}

/// One layer's cost, in multiply-accumulates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerCost {
    /// H and W of its map.
    pub map: [usize; 2],
    /// As attention.
    pub attention: Attention,
    /// As a block.
    pub block: Block,
}

/// What attention over L = H·W positions costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Attention {
    /// To queries, keys and values, and from the heads to the output: 4·L·C².
    pub projections: u128,
    /// Scores, and values weighted by them: 2·L²·C.
    pub products: u128,
}

/// What a block costs over the same positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Block {
    /// conv_up L·C·d, conv_out L·(n·d/2)·C for n scales, and conv_pool C².
    pub linears: u128,
    /// K²·d·⌊H·s⌋·⌊W·s⌋ for each scale s.
    pub depthwise: u128,
}

impl Attention {
    /// Over a map of `height` × `width`.
    pub fn of(channels: usize, [height, width]: [usize; 2]) -> Self {
        let (c, l) = (channels as u128, height as u128 * width as u128);
        Self { projections: 4 * l * c * c, products: 2 * l * l * c }
    }

    /// All of it.
    pub fn total(self) -> u128 {
        self.projections + self.products
    }
}

impl Block {
    /// Over a map of `height` × `width`.
    pub fn of(channels: usize, map: [usize; 2], kernel_size: u32, inter_ratio: f64, scales: &[f64]) -> Self {
        let [c, l] = [channels, map[0] * map[1]].map(|n| n as u128);
        let inner = block::inner(channels as u32, inter_ratio) as u128;
        let gated = inner / 2 * scales.len() as u128;
        let pooled = scales.iter().map(|scale| positions(map, *scale)).sum::<u128>();
        Self {
            linears: l * c * inner + l * gated * c + c * c,
            depthwise: u128::from(kernel_size).pow(2) * inner * pooled,
        }
    }

    /// Of a layer as it is planned, over its map: of a job with several sizes, that of the first.
    pub fn planned(layer: &LayerPlan) -> Self {
        let map = [layer.height, layer.width].map(|side| side as usize);
        Self::of(layer.channels as usize, map, layer.kernel_size, layer.inter_ratio, &layer.scales)
    }

    /// All of it.
    pub fn total(self) -> u128 {
        self.linears + self.depthwise
    }
}

/// Positions of a map that was pooled to a scale.
fn positions(map: [usize; 2], scale: f64) -> u128 {
    map.iter().map(|side| (*side as f64 * scale) as u128).product()
}

/// What the layers of the model in a folder cost. Reads configurations only.
///
/// # Errors
/// What is wrong with the folder, or with a resolution.
pub async fn costs(url: &str, options: &Options) -> Result<Costs, Error> {
    let folder = Objects::open(url)?;
    let (denoiser, teacher) = read_config(&folder).await?;
    let pixels_per_latent = match options.pixels_per_latent {
        Some(given) => given,
        None => read_pixels_per_latent(&folder).await?,
    };
    let at_config = |source| Error::teacher(folder.url(), denoiser.config, source);
    let trained = teacher.sample_size().unwrap_or((64, 64));
    let layers = teacher.layers(trained.0, trained.1).map_err(at_config)?;
    if layers.is_empty() {
        return Err(Error::NoLayers { url: folder.url().to_owned() });
    }
    let layers: Vec<CostedLayer> = layers.iter().map(|layer| costed(&teacher, layer)).collect();

    let mut resolutions = Vec::new();
    for pixels in resolutions_or_default(&options.resolutions, trained, pixels_per_latent) {
        let latent = latent(pixels, pixels_per_latent)?;
        let at_size = teacher.layers(latent[0], latent[1]).map_err(at_config)?;
        let maps = at_size.iter().map(|layer| [layer.height, layer.width]);
        let cost = |(layer, map): (&CostedLayer, [usize; 2])| LayerCost {
            map,
            attention: Attention::of(layer.channels, map),
            block: Block::of(layer.channels, map, layer.kernel_size, options.inter_ratio, &options.scales),
        };
        let costs: Vec<LayerCost> = layers.iter().zip(maps).map(cost).collect();
        let attention: u128 = costs.iter().map(|cost| cost.attention.total()).sum();
        let block: u128 = costs.iter().map(|cost| cost.block.total()).sum();
        resolutions.push(Resolution {
            pixels: [pixels.0, pixels.1],
            latent,
            layers: costs,
            attention,
            block,
            ratio: attention as f64 / block as f64,
        });
    }
    Ok(Costs {
        url: folder.url().to_owned(),
        class: teacher.class(),
        denoiser: denoiser.folder,
        pixels_per_latent,
        inter_ratio: options.inter_ratio,
        scales: options.scales.clone(),
        layers,
        resolutions,
        published: kernel_size::is_sd15(&teacher).then(Published::sd15),
    })
}

fn costed(teacher: &Teacher, layer: &Layer) -> CostedLayer {
    CostedLayer {
        name: layer.name.clone(),
        channels: layer.channels,
        heads: layer.heads,
        kernel_size: kernel_size::planned(teacher, layer),
        map: [layer.height, layer.width],
    }
}

fn resolutions_or_default(
    given: &[(usize, usize)],
    (height, width): (usize, usize),
    pixels_per_latent: usize,
) -> Vec<(usize, usize)> {
    if !given.is_empty() {
        return given.to_vec();
    }
    let times = |n: usize| (width * pixels_per_latent * n, height * pixels_per_latent * n);
    if pixels_per_latent == 1 {
        return [1, 2, 4, 8].map(times).to_vec();
    }
    let area = |(width, height): (usize, usize)| width * height;
    let mut resolutions = [1, 2, 4].map(times).to_vec();
    resolutions.retain(|resolution| area(*resolution) < area(FOUR_K));
    resolutions.extend([FOUR_K, SIXTEEN_K]);
    resolutions
}

/// Height and width of a picture's latents.
fn latent((width, height): (usize, usize), pixels_per_latent: usize) -> Result<[usize; 2], Error> {
    let fits = |side: usize| (1..=MAX_SIDE).contains(&side) && side.is_multiple_of(pixels_per_latent);
    if pixels_per_latent == 0 || !fits(width) || !fits(height) {
        let expected = format!("sides of 1 to {MAX_SIDE} pixels, multiples of the {pixels_per_latent} of one latent");
        return Err(invalid("resolution", format!("{width}x{height}"), expected));
    }
    Ok([height, width].map(|side| side / pixels_per_latent))
}

/// diffusers' VAEs halve a picture's sides between each two of their blocks.
async fn read_pixels_per_latent(folder: &Objects) -> Result<usize, Error> {
    #[derive(serde::Deserialize)]
    struct Vae {
        block_out_channels: Vec<u64>,
    }
    let json = match folder.get(VAE, MAX_CONFIG_BYTES).await {
        Ok(json) => json,
        Err(objects::Error::NotFound { .. }) => return Ok(1),
        Err(error) => return Err(error.into()),
    };
    let vae: Vae = serde_json::from_slice(&json).map_err(|source| {
        let source = deltaconv_proto::teacher::Error::Json(source);
        Error::teacher(folder.url(), VAE, source)
    })?;
    match vae.block_out_channels.len() {
        blocks @ 1..=8 => Ok(1 << (blocks - 1)),
        blocks => Err(invalid("block_out_channels", format!("{blocks} blocks in {}/{VAE}", folder.url()), "1 to 8")),
    }
}
