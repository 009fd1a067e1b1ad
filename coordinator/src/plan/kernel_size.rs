//! The kernel size of a layer's block, from what is known of the model or, failing that, from the layer's map.

use deltaconv_proto::teacher::{Layer, Plan, Stage, Teacher};

/// Kernel sizes by block, in forward order; 0 where the block has no attention.
#[derive(Debug, PartialEq, Eq)]
struct Published {
    /// Channels of each block on the way down.
    channels: &'static [usize],
    down: &'static [u32],
    mid: u32,
    up: &'static [u32],
}

/// Stable Diffusion 1.5 (arXiv 2504.21292): on the way down 7 belongs to the finest map, on the way up 11 does.
const SD15: Published =
    Published { channels: &[320, 640, 1280, 1280], down: &[7, 9, 5, 0], mid: 3, up: &[0, 5, 9, 11] };

/// SDXL (arXiv 2504.21292), whose finest blocks have no attention.
const SDXL: Published = Published { channels: &[320, 640, 1280], down: &[0, 9, 7], mid: 9, up: &[9, 13, 0] };

/// PixArt-α and -Σ (arXiv 2504.21292), by their channels.
const PIXART: u32 = 13;
const PIXART_CHANNELS: usize = 1152;

/// The kernel size of a layer's block where the job doesn't override it.
pub(super) fn planned(teacher: &Teacher, layer: &Layer) -> u32 {
    let published = match teacher {
        Teacher::UNet(config) => {
            let blocks = config.plan();
            [SD15, SDXL].into_iter().find(|p| p.is_of(&blocks)).and_then(|p| p.of(&layer.name))
        }
        Teacher::PixArt(config) => (config.inner() == PIXART_CHANNELS).then_some(PIXART),
        // Other classes have no published sizes here.
        _ => None,
    };
    published.unwrap_or_else(|| by_map(layer.height.min(layer.width)))
}

/// Whether the model is Stable Diffusion 1.x, by its channels and layers.
pub(super) fn is_sd15(teacher: &Teacher) -> bool {
    matches!(teacher, Teacher::UNet(config) if SD15.is_of(&config.plan()))
}

impl Published {
    /// Whether the model has these channels, and attention where these sizes are.
    fn is_of(&self, blocks: &Plan) -> bool {
        let matches = |stages: &[Stage], sizes: &[u32]| {
            stages.len() == sizes.len()
                && stages.iter().zip(sizes).all(|(stage, &size)| stage.transformers.is_empty() == (size == 0))
        };
        let channels = blocks.down.iter().map(|stage| stage.channels);
        channels.eq(self.channels.iter().copied())
            && matches(&blocks.down, self.down)
            && matches(&blocks.up, self.up)
            && blocks.mid.as_ref().is_some_and(|mid| !mid.transformers.is_empty())
    }

    fn of(&self, layer: &str) -> Option<u32> {
        let mut path = layer.split('.');
        let sizes = match path.next()? {
            "down_blocks" => self.down,
            "up_blocks" => self.up,
            "mid_block" => return Some(self.mid),
            _ => return None,
        };
        sizes.get(path.next()?.parse::<usize>().ok()?).copied().filter(|size| *size > 0)
    }
}

/// The kernel size for a map whose attention mass isn't known from its header.
///
/// Measured on small models: the small maps hold most of the error and can afford a kernel as wide as themselves, while
/// on large ones a step's time grows with K² and the error hardly falls beyond 7.
fn by_map(shorter_side: usize) -> u32 {
    match shorter_side {
        24.. => 7,
        12..24 => 11,
        // The largest odd number up to side + 1.
        side => (side + 1 - side % 2).max(3) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(channels: &str, down: &str, up: &str) -> Teacher {
        let layout = |text: &str, attention: &str, plain: &str| {
            let of = |c| if c == 'A' { format!("\"{attention}\"") } else { format!("\"{plain}\"") };
            text.chars().map(of).collect::<Vec<_>>().join(",")
        };
        let json = format!(
            r#"{{"_class_name": "UNet2DConditionModel", "block_out_channels": [{channels}], "attention_head_dim": 8,
                "cross_attention_dim": 768, "down_block_types": [{}], "up_block_types": [{}]}}"#,
            layout(down, "CrossAttnDownBlock2D", "DownBlock2D"),
            layout(up, "CrossAttnUpBlock2D", "UpBlock2D"),
        );
        Teacher::parse(json.as_bytes()).expect("a config")
    }

    fn sizes(teacher: &Teacher, height: usize, width: usize) -> Vec<(String, u32)> {
        let layers = teacher.layers(height, width).expect("layers");
        let block = |layer: &Layer| layer.name.split(".attentions").next().unwrap().to_owned();
        let mut sizes: Vec<_> = layers.iter().map(|layer| (block(layer), planned(teacher, layer))).collect();
        sizes.dedup();
        sizes
    }

    fn expected(sizes: &[(&str, u32)]) -> Vec<(String, u32)> {
        sizes.iter().map(|(block, size)| ((*block).to_owned(), *size)).collect()
    }

    #[test]
    fn published_models_get_their_published_sizes() {
        let sd15 = config("320, 640, 1280, 1280", "AAA-", "-AAA");
        let found = sizes(&sd15, 64, 64);
        let down = [("down_blocks.0", 7), ("down_blocks.1", 9), ("down_blocks.2", 5)];
        let up = [("mid_block", 3), ("up_blocks.1", 5), ("up_blocks.2", 9), ("up_blocks.3", 11)];
        assert_eq!(found, expected(&[&down[..], &up[..]].concat()));

        let sdxl = config("320, 640, 1280", "-AA", "AA-");
        let blocks =
            [("down_blocks.1", 9), ("down_blocks.2", 7), ("mid_block", 9), ("up_blocks.0", 9), ("up_blocks.1", 13)];
        assert_eq!(sizes(&sdxl, 128, 128), expected(&blocks));
    }

    #[test]
    fn pixart_gets_its_published_size() {
        let sized = |heads: usize| {
            let json = format!(
                r#"{{"_class_name": "PixArtTransformer2DModel", "num_attention_heads": {heads}, "caption_channels": null}}"#
            );
            let teacher = Teacher::parse(json.as_bytes()).expect("a config");
            planned(&teacher, &teacher.layers(128, 128).expect("layers")[0])
        };
        assert_eq!((sized(16), sized(8)), (13, 7));
    }

    #[test]
    fn a_model_that_only_resembles_a_published_one_is_sized_by_its_maps() {
        let other = config("320, 640, 1280, 1280", "AAAA", "AAAA");
        assert_eq!(planned(&other, &other.layers(64, 64).expect("layers")[0]), 7);
        assert_eq!(sizes(&other, 64, 64)[3], ("down_blocks.3".to_owned(), 9));
    }

    #[test]
    fn kernels_are_odd_and_as_wide_as_small_maps() {
        let found: Vec<u32> = [1, 2, 3, 4, 7, 8, 11, 12, 16, 23, 24, 64].map(by_map).to_vec();
        assert_eq!(found, [3, 3, 3, 5, 7, 9, 11, 11, 11, 11, 7, 7]);
    }
}
