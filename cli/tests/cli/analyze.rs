//! What a teacher's layers cost and how far their attention reaches.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::process::{deltaconv, said};
use crate::scaled;

fn json(arguments: &[&str], teacher: &Path) -> Value {
    let output = deltaconv().arg("analyze").arg(teacher).args(arguments).args(["-o", "json"]).output().expect("runs");
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn the_shipped_teacher_is_analysed() {
    let folder = tempfile::tempdir().expect("a folder");
    let [svg, sizes] = ["distance.svg", "sizes.toml"].map(|name| folder.path().join(name));
    let arguments = ["--samples", "3", "--svg", svg.to_str().expect("a path"), "--kernel-sizes"];
    let arguments = [&arguments[..], &[sizes.to_str().expect("a path")]].concat();
    let found = json(&arguments, &scaled::teacher());

    let costs = found["resolutions"].as_array().expect("resolutions");
    let sides: Vec<u64> = costs.iter().filter_map(|cost| cost["pixels"][0].as_u64()).collect();
    assert_eq!(sides, [32, 64, 128, 256]);
    for cost in costs {
        let layers = cost["layers"].as_array().expect("layers");
        let sum = |side: &str, parts: [&str; 2]| -> u64 {
            layers.iter().flat_map(|layer| parts.map(|part| layer[side][part].as_u64().expect("a number"))).sum()
        };
        assert_eq!(cost["attention"], sum("attention", ["projections", "products"]));
        assert_eq!(cost["block"], sum("block", ["linears", "depthwise"]));
    }
    assert_eq!(found["published"], Value::Null);

    let profile = &found["profile"];
    let layers = profile["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 7);
    for (layer, costed) in layers.iter().zip(found["layers"].as_array().expect("layers")) {
        assert_eq!((&layer["name"], &layer["planned"]), (&costed["name"], &costed["kernel_size"]));
        let kernel_size = layer["kernel_size"].as_u64().expect("a size");
        let cumulative = |i: u64| layer["cumulative"][i as usize].as_f64();
        assert!(kernel_size % 2 == 1 && cumulative(kernel_size / 2) >= Some(0.8), "{layer}");
        assert!(kernel_size == 1 || cumulative(kernel_size / 2 - 1) < Some(0.8), "{layer}");
    }
    let again = json(&["--samples", "3"], &scaled::teacher());
    assert_eq!(again, found, "the same seed gives the same figures");
    assert_ne!(json(&["--samples", "3", "--seed", "1"], &scaled::teacher())["profile"]["layers"], profile["layers"]);

    assert_eq!(fs::read_to_string(svg).expect("written").matches("<g ").count(), 7);
    let parsed: toml::Table = fs::read_to_string(sizes).expect("written").parse().expect("TOML");
    assert_eq!(serde_json::to_value(&parsed["recipe"]["kernel_sizes"]).expect("JSON"), profile["kernel_sizes"]);
}

#[test]
fn costs_alone_need_no_data() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("unet")).expect("made");
    let config = scaled::teacher().join("unet/config.json");
    fs::copy(config, folder.path().join("unet/config.json")).expect("copied");
    let found = json(&["--resolution", "4K,64x32", "--pixels-per-latent", "8"], folder.path());
    assert_eq!(found["profile"], Value::Null);
    assert_eq!(found["resolutions"][0]["latent"], serde_json::json!([270, 512]));
    assert_eq!(found["resolutions"][1]["latent"], serde_json::json!([4, 8]));

    let refused = |arguments: &[&str], parts: &[&str]| {
        let output = deltaconv().arg("analyze").arg(folder.path()).args(arguments).output().expect("runs");
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        for part in parts {
            assert!(said(&output).contains(part), "{}", said(&output));
        }
    };
    refused(&["--samples", "2"], &["--samples 2 need data", "--data"]);
    refused(&["--svg", "x.svg"], &["--svg", "--data URL"]);
    refused(&["--resolution", "12x0"], &["1024x768"]);
    refused(&["--resolution", "60", "--pixels-per-latent", "8"], &["resolution = 60x60", "multiples of the 8"]);
}
