//! A teacher in several files, of which a job keeps some attention.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use deltaconv_proto::safetensors::{self, Dtype, Header, serialize_header};
use serde_json::{Value, json};

use crate::process::{deltaconv, said};
use crate::scaled;
use crate::service::Coordinator;

const WHOLE: &str = "unet/diffusion_pytorch_model.safetensors";
const KEPT: [&str; 2] =
    ["down_blocks.1.attentions.0.transformer_blocks.0", "mid_block.attentions.0.transformer_blocks.0"];

fn bytes<'a>((header, data): &'a (Header, &[u8]), name: &str) -> &'a [u8] {
    let info = &header.tensors[name];
    &data[info.start as usize..info.end as usize]
}

/// Copies the shipped teacher with its weights cut in two files and an index.
fn in_two_files(to: &Path) {
    let from = scaled::teacher();
    for file in ["unet/config.json", "scheduler/scheduler_config.json", "prompts.json"] {
        let to = to.join(file);
        fs::create_dir_all(to.parent().expect("a folder")).expect("made");
        fs::copy(from.join(file), to).expect("copied");
    }
    for file in ["prompt_embeddings.safetensors", "latents.safetensors"] {
        fs::copy(from.join(file), to.join(file)).expect("copied");
    }
    let whole = fs::read(from.join(WHOLE)).expect("read");
    let whole = safetensors::parse(&whole).expect("weights");
    let names: Vec<&String> = whole.0.tensors.keys().collect();
    let mut weight_map = serde_json::Map::new();
    for (number, names) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let file = format!("diffusion_pytorch_model-{:05}-of-00002.safetensors", number + 1);
        let entries =
            names.iter().map(|name| (name.as_str(), whole.0.tensors[*name].dtype, &*whole.0.tensors[*name].shape));
        let mut written = serialize_header(entries, &BTreeMap::new()).expect("a header");
        for name in names {
            written.extend(bytes(&whole, name));
            weight_map.insert((*name).clone(), json!(file));
        }
        fs::write(to.join("unet").join(file), written).expect("written");
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": weight_map}).to_string();
    fs::write(to.join(format!("{WHOLE}.index.json")), index).expect("written");
}

#[test]
fn kept_layers_stay_as_they_are_and_a_teacher_may_come_in_several_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let teacher = folder.path().join("teacher");
    in_two_files(&teacher);
    let out = folder.path().join("out");
    let job_file = scaled::job_file(folder.path(), &teacher, &out);
    let text = fs::read_to_string(&job_file).expect("read");
    fs::write(&job_file, text.replace("[recipe]", "[recipe]\nkeep = ['down_blocks.1', 'mid_block']")).expect("written");

    let coordinator = Coordinator::start(folder.path());
    let planned = said(&coordinator.run(&["submit", "--dry-run", job_file.to_str().expect("UTF-8")]));
    assert_eq!(planned.matches("kept").count(), 2, "{planned}");
    let job = coordinator.submit(&job_file);
    let _worker = coordinator.worker("alone");
    let watched = coordinator.run(&["watch", &job]);
    assert!(watched.status.success(), "{}", said(&watched));

    let inspected = deltaconv().arg("inspect").arg(out.join("output")).args(["-o", "json"]).output().expect("runs");
    let inspected: Value = serde_json::from_slice(&inspected.stdout).expect("JSON");
    for layer in inspected["layers"].as_array().expect("layers") {
        let kept = KEPT.contains(&layer["name"].as_str().expect("a name"));
        assert_eq!(layer["replaced"], !kept, "{layer}");
    }
    let description = fs::read(out.join("output/deltaconv.json")).expect("read");
    let description: Value = serde_json::from_slice(&description).expect("JSON");
    assert_eq!(description["kept"], json!(KEPT));

    let (before, after) = (
        fs::read(scaled::teacher().join(WHOLE)).expect("read"),
        fs::read(out.join("output").join(WHOLE)).expect("read"),
    );
    let (before, after) = (safetensors::parse(&before).expect("weights"), safetensors::parse(&after).expect("weights"));
    for name in before.0.tensors.keys() {
        let stays = !name.contains(".attn1.") || KEPT.iter().any(|layer| name.starts_with(layer));
        assert_eq!(after.0.tensors.contains_key(name), stays, "{name}");
        assert!(!stays || bytes(&before, name) == bytes(&after, name), "{name} changed");
    }
    assert!(after.0.tensors.values().all(|info| info.dtype == Dtype::F16 || info.dtype == Dtype::F32));
    // Less is lost than where nothing is kept, and what is lost without attention is counted of the replaced layers alone.
    let report = fs::read(out.join("report/report.json")).expect("read");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    let floor = |report: &Value| report["attention_removed"]["epsilon_relative_mse"].as_f64().expect("a figure");
    let all = fs::read(scaled::quiet().out.join("report/report.json")).expect("read");
    assert!(floor(&report) < floor(&serde_json::from_slice(&all).expect("JSON")), "{:#}", report["attention_removed"]);
}

#[test]
fn layers_that_cant_be_learned_keep_their_attention_and_everything_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let job_file = scaled::job_file(folder.path(), &scaled::teacher(), &out);
    let text = fs::read_to_string(&job_file).expect("read");
    // One step that goes far too far, from where nothing is known yet.
    let keep = "[recipe]\nstart = 'random'\nsolve = false\nlearning_rate = 1.0\nkeep = ['down_blocks', 'up_blocks.2']";
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).expect("a line");
    let text = text.replace(line("steps ="), "steps = 1").replace(line("warmup_steps ="), "warmup_steps = 0");
    fs::write(&job_file, text.replace("[recipe]", keep)).expect("written");

    let coordinator = Coordinator::start(folder.path());
    let job = coordinator.submit(&job_file);
    let _worker = coordinator.worker("alone");
    let watched = coordinator.run(&["watch", &job]);
    assert!(watched.status.success(), "{}", said(&watched));
    let report = fs::read(out.join("report/report.json")).expect("read");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    let unlearned = report["stay_attention"].as_array().expect("a list");
    let lost: Vec<&str> = unlearned.iter().filter_map(|of| of["layer"].as_str()).collect();
    assert_eq!((lost.len(), report["epsilon_relative_mse"].as_f64()), (3, Some(0.0)), "{lost:?}");
    for said in [said(&watched), said(&coordinator.run(&["status", &job])), said(&coordinator.run(&["report", &job]))] {
        let told = said.lines().filter(|line| line.contains("stays attention")).count();
        assert_eq!(told, lost.len(), "{said}");
    }

    // Their attention is as it was.
    let description: Value =
        serde_json::from_slice(&fs::read(out.join("output/deltaconv.json")).expect("read")).expect("JSON");
    let kept: Vec<&str> = description["kept"].as_array().expect("kept").iter().filter_map(Value::as_str).collect();
    assert!(kept.len() == 7 && lost.iter().all(|name| kept.contains(name)), "{kept:?}");
    assert_eq!(description["layers"].as_array().map(Vec::len), Some(0));
    let whole = |path: &Path| fs::read(path.join(WHOLE)).expect("read");
    let (before, after) = (whole(&scaled::teacher()), whole(&out.join("output")));
    let (before, after) = (safetensors::parse(&before).expect("weights"), safetensors::parse(&after).expect("weights"));
    let of_lost = before.0.tensors.keys().filter(|name| lost.iter().any(|layer| name.starts_with(layer)));
    assert!(of_lost.clone().count() > 4 * lost.len());
    for name in of_lost {
        assert_eq!(bytes(&before, name), bytes(&after, name), "{name}");
    }
}

#[test]
fn the_costliest_layers_stay_attention_where_a_job_says_how_many() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let job_file = scaled::job_file(folder.path(), &scaled::teacher(), &out);
    let text = fs::read_to_string(&job_file).expect("read");
    let keep = "[recipe]\nkeep = ['down_blocks.0', 'up_blocks.2']\nkeep_costliest = 2\nstart = 'ridge'\nsolve = true";
    fs::write(&job_file, text.replace("[recipe]", keep)).expect("written");

    let coordinator = Coordinator::start(folder.path());
    let job = coordinator.submit(&job_file);
    let _worker = coordinator.worker("alone");
    let watched = coordinator.run(&["watch", &job]);
    assert!(watched.status.success(), "{}", said(&watched));
    assert_eq!(
        said(&watched).matches("stays attention: its replacement alone costs 0.").count(),
        2,
        "{}",
        said(&watched)
    );
    let report = fs::read(out.join("report/report.json")).expect("read");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    let names = |value: &Value, field: &str| -> Vec<String> {
        let all = value.as_array().expect("a list").iter();
        all.map(|one| one[field].as_str().expect("a name").to_owned()).collect()
    };
    let (staying, replaced) = (names(&report["stay_attention"], "layer"), names(&report["layers"], "name"));
    assert_eq!((staying.len(), replaced.len()), (2, 2));
    assert!(replaced.iter().all(|name| !staying.contains(name) && !name.starts_with("up_blocks.2")));
    let description: Value =
        serde_json::from_slice(&fs::read(out.join("output/deltaconv.json")).expect("read")).expect("JSON");
    assert_eq!(names(&description["layers"], "name"), replaced);
    assert_eq!(description["kept"].as_array().map(Vec::len), Some(5));
    // Two blocks do less harm than seven.
    let all = fs::read(scaled::quiet().out.join("report/report.json")).expect("read");
    let all: Value = serde_json::from_slice(&all).expect("JSON");
    let found = |of: &Value| of["epsilon_relative_mse"].as_f64().expect("a number");
    // And what training started from is of the same layers, and was made better.
    let started = &report["ridge_only"];
    assert!(found(&report) < found(started) && found(started) < found(&report["attention_removed"]), "{report:#}");
    let told = said(&coordinator.run(&["report", &job]));
    assert!(told.contains("ridge only") && told.contains(&format!("{:.5}", found(started))), "{told}");
    for layer in report["layers"].as_array().expect("layers") {
        let [before, after] = ["before", "after"].map(|of| layer["solved"][of].as_f64().expect("a number"));
        assert_eq!(layer["relative_error"].as_f64(), Some(before.min(after)), "{layer}");
    }
    assert!(found(&report) < found(&all) && found(&report["attention_removed"]) < found(&all["attention_removed"]));
}
