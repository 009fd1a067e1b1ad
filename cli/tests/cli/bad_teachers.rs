//! Teachers that can't be converted: each is refused when it is submitted, and nothing is written.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::faults::copy;
use crate::process::said;
use crate::scaled;
use crate::service::Coordinator;

const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";
const CONFIG: &str = "unet/config.json";

/// A way to spoil a teacher, and what the message must name.
struct Case {
    name: &'static str,
    spoil: fn(&Path),
    named: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        name: "no config",
        spoil: |teacher| fs::remove_file(teacher.join(CONFIG)).expect("removed"),
        named: &["config.json"],
    },
    Case {
        name: "unsupported class",
        spoil: |teacher| set_config(teacher, "_class_name", json!("UNetSpatioTemporalConditionModel")),
        named: &["UNetSpatioTemporalConditionModel"],
    },
    Case {
        name: "unsupported value",
        spoil: |teacher| set_config(teacher, "class_embed_type", json!("simple_projection")),
        named: &["class_embed_type", "simple_projection"],
    },
    Case {
        name: "unknown field",
        spoil: |teacher| set_config(teacher, "quantum_attention", json!(true)),
        named: &["quantum_attention"],
    },
    Case {
        name: "no weights",
        spoil: |teacher| fs::remove_file(teacher.join(WEIGHTS)).expect("removed"),
        named: &["diffusion_pytorch_model.safetensors"],
    },
    Case {
        name: "truncated header",
        spoil: |teacher| set_weights(teacher, |bytes| bytes.truncate(1000)),
        named: &["diffusion_pytorch_model.safetensors", "1000"],
    },
    Case {
        name: "truncated data",
        spoil: |teacher| set_weights(teacher, |bytes| bytes.truncate(1_000_000)),
        named: &["diffusion_pytorch_model.safetensors", "11667718", "cut off"],
    },
    Case {
        name: "header that lies about its length",
        spoil: |teacher| set_weights(teacher, |bytes| bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes())),
        named: &["diffusion_pytorch_model.safetensors", "18446744073709551615"],
    },
    Case {
        name: "lacking tensor",
        spoil: |teacher| set_header(teacher, "\"conv_in.bias\"", "\"conv_in.bios\""),
        named: &["conv_in.bi"],
    },
    Case {
        name: "wrong shape",
        spoil: |teacher| set_header(teacher, "[64,3,3,3]", "[3,64,3,3]"),
        named: &["conv_in.weight", "3, 64, 3, 3"],
    },
    Case { name: "prompt id out of range", spoil: set_prompt_id, named: &["latents.safetensors", "9999"] },
];

fn set_config(teacher: &Path, field: &str, value: Value) {
    let path = teacher.join(CONFIG);
    let mut config: Value = serde_json::from_slice(&fs::read(&path).expect("a config")).expect("JSON");
    config[field] = value;
    fs::write(&path, config.to_string()).expect("written");
}

fn set_weights(teacher: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let path = teacher.join(WEIGHTS);
    let mut bytes = fs::read(&path).expect("weights");
    change(&mut bytes);
    fs::write(&path, bytes).expect("written");
}

/// Replaces the first `from` in the header by `to`, which is as long.
fn set_header(teacher: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    set_weights(teacher, |bytes| {
        let found = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("in the header");
        bytes[found..found + to.len()].copy_from_slice(to.as_bytes());
    });
}

fn set_prompt_id(teacher: &Path) {
    let path = teacher.join("latents.safetensors");
    let mut bytes = fs::read(&path).expect("latents");
    let header_length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_length]).expect("a header");
    let start = 8 + header_length + header["prompt"]["data_offsets"][0].as_u64().expect("an offset") as usize;
    bytes[start..start + 8].copy_from_slice(&9999_i64.to_le_bytes());
    fs::write(&path, bytes).expect("written");
}

#[test]
fn a_teacher_that_cannot_be_converted_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let mut wrong = Vec::new();
    for (index, case) in CASES.iter().enumerate() {
        let teacher = folder.path().join(format!("teacher-{index}"));
        copy(&scaled::teacher(), &teacher);
        (case.spoil)(&teacher);
        let output: PathBuf = folder.path().join(format!("out-{index}"));
        let job = scaled::job_file(folder.path(), &teacher, &output);

        let refused = coordinator.run(&["submit", job.to_str().expect("UTF-8")]);
        let text = said(&refused);
        let is_named = case.named.iter().all(|value| text.contains(value));
        if refused.status.code() != Some(2) || !is_named || output.exists() {
            wrong.push(format!("{}: {:?} {text}", case.name, refused.status.code()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(coordinator.json(&["jobs"])["jobs"].as_array().map(Vec::len), Some(0));
}
