use std::fs;
use std::path::Path;

use tempfile::TempDir;
use url::Url;

use super::{Attention, Block, Costs, Options, costs};

const SD15: &str = r#"{"_class_name": "UNet2DConditionModel", "sample_size": 64, "cross_attention_dim": 768,
    "block_out_channels": [320, 640, 1280, 1280], "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]}"#;
const VAE: &str = r#"{"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512]}"#;

/// A folder with a UNet's configuration and nothing else, but for the VAE's.
fn folder(unet: &str, vae: Option<&str>) -> (TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    };
    write("unet/config.json", unet);
    vae.into_iter().for_each(|vae| write("vae/config.json", vae));
    let url = Url::from_file_path(folder.path()).expect("absolute").to_string();
    (folder, url)
}

fn options(resolutions: &[(usize, usize)]) -> Options {
    Options { resolutions: resolutions.to_vec(), pixels_per_latent: None, inter_ratio: 0.5, scales: vec![1.0, 0.5] }
}

async fn sd15() -> Costs {
    let (_folder, url) = folder(SD15, Some(VAE));
    costs(&url, &options(&[])).await.expect("costs")
}

#[test]
fn one_layer_by_hand() {
    // 4 · 4096 · 320² and 2 · 4096² · 320.
    let attention = Attention { projections: 1_677_721_600, products: 10_737_418_240 };
    assert_eq!(Attention::of(320, [64, 64]), attention);
    // 2 · 4096 · 320 · 160 + 320², and 7² · 160 · (64² + 32²).
    let block = Block { linears: 419_532_800, depthwise: 40_140_800 };
    assert_eq!(Block::of(320, [64, 64], 7, 0.5, &[1.0, 0.5]), block);
    // Pooled maps are rounded down: 5 · 7 positions and 2 · 3.
    assert_eq!(Block::of(4, [5, 7], 3, 0.5, &[1.0, 0.5]).depthwise, 9 * 2 * (35 + 6));
}

#[tokio::test]
async fn stable_diffusion_costs_what_its_sixteen_layers_cost() {
    let costs = sd15().await;
    assert_eq!((costs.pixels_per_latent, costs.layers.len()), (8, 16));
    let rows: Vec<_> = costs.resolutions.iter().map(|r| (r.pixels, r.attention, r.block)).collect();
    assert_eq!(
        rows,
        [
            ([512, 512], 86_832_578_560, 6_978_304_000),
            ([1024, 1024], 1_082_298_204_160, 27_876_044_800),
            ([2048, 2048], 16_088_679_055_360, 111_467_008_000),
            ([4096, 2160], 70_644_620_328_960, 235_660_697_600),
            ([15360, 8640], 15_709_971_824_640_000, 3_526_505_804_800),
        ]
    );
}

#[tokio::test]
async fn the_published_figures_follow_from_one_layer_but_for_one() {
    let published = sd15().await.published.expect("Stable Diffusion 1.5");
    let off = |given: f64, reproduced: u128| reproduced as f64 / given - 1.0;
    let [first, rest @ ..] = published.rows.as_slice() else { panic!("no rows") };
    // Half a unit of the last published digit.
    for (row, half) in published.rows.iter().zip([0.005e9, 0.5e9, 0.05e12, 0.005e15]) {
        assert!((row.attention_reproduced as f64 - row.attention).abs() <= half, "{row:?}");
    }
    for row in rest {
        assert!(off(row.block, row.block_reproduced).abs() < 1.2e-3, "{row:?}");
    }
    assert!((0.112..0.113).contains(&off(first.block, first.block_reproduced)), "{first:?}");
    let [.., last] = rest else { panic!("no rows") };
    let ratio = last.attention_reproduced as f64 / last.block_reproduced as f64;
    assert!((ratio - 6929.0).abs() < 1.0, "{ratio}");
}

#[tokio::test]
async fn resolutions_follow_the_model() {
    let (_folder, url) = folder(SD15, None);
    let pixels = |costs: &Costs| costs.resolutions.iter().map(|r| r.pixels[0]).collect::<Vec<_>>();
    let as_pixels = costs(&url, &options(&[])).await.expect("costs");
    assert_eq!((as_pixels.pixels_per_latent, pixels(&as_pixels)), (1, vec![64, 128, 256, 512]));
    let told = Options { pixels_per_latent: Some(8), ..options(&[]) };
    assert_eq!(costs(&url, &told).await.expect("costs").resolutions, sd15().await.resolutions);

    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/teachers/tiny-pixart");
    let tiny = Url::from_file_path(fs::canonicalize(tiny).expect("there")).expect("absolute").to_string();
    let tiny = costs(&tiny, &options(&[])).await.expect("costs");
    assert_eq!((pixels(&tiny), tiny.published), (vec![32, 64, 128, 256], None));
}

#[tokio::test]
async fn what_cannot_be_costed_is_refused() {
    let (_folder, url) = folder(SD15, Some(VAE));
    for size in [(516, 512), (0, 512), (8, 1 << 21)] {
        let message = costs(&url, &options(&[size])).await.expect_err("refused").to_string();
        assert!(message.contains(&format!("resolution = {}x{}", size.0, size.1)), "{message}");
    }
    let (_folder, url) = folder(SD15, Some("{}"));
    let message = costs(&url, &options(&[])).await.expect_err("refused").to_string();
    assert!(message.contains("vae/config.json") && message.contains("block_out_channels"), "{message}");
}
