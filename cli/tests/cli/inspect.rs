//! Models looked at before and after their conversion, of both classes.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::process::{deltaconv, said};
use crate::scaled;

fn inspect(model: &Path) -> Value {
    let output = deltaconv().arg("inspect").arg(model).args(["-o", "json"]).output().expect("runs");
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn layers<'a>(model: &'a Value, field: &str) -> Vec<&'a Value> {
    model["layers"].as_array().expect("layers").iter().map(|layer| &layer[field]).collect()
}

#[test]
fn a_pixart_demo_converts_every_layer() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("pixart");
    // 40 steps leave blocks whose gate is a sigmoid about where they began.
    let output = scaled::demo_of(&out, 2, 80).args(["--teacher", "tiny-pixart"]).output().expect("runs");
    assert!(output.status.success(), "{}", said(&output));
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let figures = &told["figures"];
    assert!(figures["epsilon_relative_mse"].as_f64() < figures["removed_epsilon_relative_mse"].as_f64(), "{told:#}");

    let student = inspect(&out.join("output"));
    assert_eq!(student["class"], "PixArtTransformer2DModel");
    assert_eq!(student["converted"], true);
    assert_eq!(layers(&student, "replaced"), [&Value::Bool(true); 8]);
    let description = fs::read(out.join("output/deltaconv.json")).expect("a description");
    let description: Value = serde_json::from_slice(&description).expect("JSON");
    assert_eq!(description["layers"][0]["gate"], "sigmoid");
    let teacher = inspect(&scaled::teacher().with_file_name("tiny-pixart"));
    assert_eq!(teacher["converted"], false);
    assert_eq!(layers(&teacher, "name"), layers(&student, "name"));
    assert_eq!(layers(&teacher, "kernel_size"), layers(&student, "kernel_size"));
}

#[test]
fn a_student_is_told_from_its_teacher() {
    let (teacher, student) = (inspect(&scaled::teacher()), inspect(&scaled::quiet().out.join("output")));
    assert_eq!((&teacher["converted"], &student["converted"]), (&Value::Bool(false), &Value::Bool(true)));
    assert_eq!(layers(&teacher, "replaced"), [&Value::Bool(false); 7]);
    assert_eq!(layers(&student, "replaced"), [&Value::Bool(true); 7]);
}

#[test]
fn a_damaged_student_is_refused_with_what_is_wrong() {
    let copy = tempfile::tempdir().expect("a folder");
    let output = scaled::quiet().out.join("output");
    for file in ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"] {
        let to = copy.path().join(file);
        fs::create_dir_all(to.parent().expect("a folder")).expect("made");
        fs::copy(output.join(file), to).expect("copied");
    }
    let refused = || {
        let output = deltaconv().arg("inspect").arg(copy.path()).output().expect("runs");
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        said(&output)
    };
    // Without its description it is a teacher that lacks its attention.
    assert!(refused().contains("no tensor `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight`"));
    let description = fs::read_to_string(output.join("deltaconv.json")).expect("read");
    let rewrite = |from: &str, to: &str| {
        fs::write(copy.path().join("deltaconv.json"), description.replacen(from, to, 1)).expect("written");
    };
    rewrite("\"format_version\": 1", "\"format_version\": 7");
    assert!(refused().contains("format_version is 7"));
    rewrite("\"kernel_size\": 7", "\"kernel_size\": 9");
    assert!(refused().contains("conv_spatial.weight` has shape [7, 7, 32]; the configuration makes it [9, 9, 32]"));
}
