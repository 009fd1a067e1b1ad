//! Jobs without a data set, on whole pipelines: text encoders, denoiser and VAE of small sizes with random weights.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::process::{deltaconv, said};
use crate::scaled;
use crate::service::{self, Coordinator};

/// Puts a pipeline together from the parts that golden tests compare with diffusers'.
fn pipeline(to: &Path, parts: &str, denoiser: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/tests/golden");
    copy(&golden.join("pipelines").join(parts), to);
    copy(&golden.join("teachers").join(denoiser), to);
    copy(&scaled::teacher().join("scheduler"), &to.join("scheduler"));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copied");
        }
    }
}

/// 20 latents of three prompts, with a line that says their size or none.
fn from_prompts(folder: &Path, size: &str) -> String {
    fs::create_dir_all(folder).expect("made");
    fs::write(folder.join("prompts.txt"), "a photo of a cat\n\n  a dog in the snow\nmountains\n").expect("written");
    format!("[data.synthesis]\nprompts = 'prompts.txt'\nlatents = 20\nsteps = 2\nguidance = 2.0\n{size}\n")
}

/// Converts the model with this data and these workers, and answers with the job's last status.
fn convert(folder: &Path, model: &Path, data: &str, workers: &[&str]) -> Value {
    fs::create_dir_all(folder).expect("made");
    let job = format!(
        "name = 'small'\nteacher = '{}'\noutput = 'out'\n\
         [data]\nheld_out_latents = 4\n{data}\n\
         [recipe]\nsamples = 16\nheld_out_samples = 4\nshard_samples = 8\nsteps = 3\nbatch = 4\nwarmup_steps = 1\n\
         [evaluation]\nsamples = 4\nprompts = 2\nddim_steps = 2\n",
        model.display()
    );
    fs::write(folder.join("job.toml"), job).expect("written");
    let coordinator = Coordinator::start(folder);
    let planned = said(&coordinator.run(&["submit", "--dry-run", folder.join("job.toml").to_str().expect("UTF-8")]));
    assert!(planned.contains("20 latents"), "{planned}");
    let job = coordinator.submit(&folder.join("job.toml"));
    let _workers: Vec<_> = workers.iter().map(|name| coordinator.worker(name)).collect();
    coordinator.done(&job)
}

/// How many tasks made latents.
fn synthesised(status: &Value) -> usize {
    service::tasks_in(status, "synthesise", "committed").len()
}

#[test]
fn an_sdxl_is_converted_from_prompts_alone_and_draws() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    pipeline(&model, "sdxl", "sdxl");
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let status = convert(&one, &model, &from_prompts(&one, "size = [96, 64]"), &["alone"]);
    let again = convert(&two, &model, &from_prompts(&two, "size = [96, 64]"), &["first", "second"]);
    assert_eq!((synthesised(&status), status["stages"][0]["stage"].as_str()), (2, Some("synthesise")));
    assert_eq!(service::digest(&status), service::digest(&again));
    assert!(status["figures"]["psnr_db"].as_f64().is_some_and(f64::is_finite), "{status:#}");

    let output = folder.path().join("one/out/output");
    assert!(output.join("text_encoder_2/model.safetensors").exists() && output.join("vae/config.json").exists());
    let draw = |model: &Path, file: &str, arguments: &[&str]| {
        let file = folder.path().join(file);
        let mut command = deltaconv();
        command.arg("sample").arg(model).args(["--prompt", "a cat", "--prompt", "a dog", "--steps", "2"]);
        let drawn = command.args(arguments).args(["-o", "json", "--out"]).arg(&file).output().expect("runs");
        assert!(drawn.status.success(), "{}", said(&drawn));
        let told: Value = serde_json::from_slice(&drawn.stdout).expect("JSON");
        assert_eq!((&told["height"], &told["width"]), (&json!(96), &json!(64)), "{told}");
        let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(file).expect("a picture")));
        let mut reader = decoder.read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        let info = reader.next_frame(&mut pixels).expect("pixels");
        // Two rows and three columns, with gaps around them.
        assert_eq!((info.height, info.width), (2 * 100 + 4, 3 * 68 + 4));
        pixels
    };
    let common = ["--size", "96x64", "--count", "3"];
    let student = draw(&output, "student.png", &common);
    assert_eq!(student, draw(&output, "again.png", &common), "the same seed draws the same");
    assert_ne!(student, draw(&model, "teacher.png", &common), "the teacher draws something else");
    let euler = [&common[..], &["--solver", "euler", "--seed", "7", "--negative", "snow"]].concat();
    assert_ne!(student, draw(&output, "euler.png", &euler));
}

#[test]
fn a_pixart_is_converted_from_prompts_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    pipeline(&model, "pixart", "pixart-alpha");
    let one = folder.path().join("one");
    let status = convert(&one, &model, &from_prompts(&one, ""), &["alone"]);
    assert_eq!(synthesised(&status), 2);
    assert!(status["figures"]["epsilon_relative_mse"].as_f64().is_some_and(f64::is_finite), "{status:#}");
}

/// A picture of its number's colour, as a PNG of 40×70 pixels.
fn png_of(number: usize) -> Vec<u8> {
    let colour = [number * 12 % 256, number * 40 % 256, 255 - number * 9 % 256].map(|level| level as u8);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 70, 40);
    encoder.set_color(png::ColorType::Rgb);
    let pixels: Vec<u8> = (0..40 * 70).flat_map(|i| if i % 70 < number { [255; 3] } else { colour }).collect();
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels)).expect("encoded");
    bytes
}

#[test]
fn images_of_a_folder_and_of_shards_make_the_same_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    pipeline(&model, "sdxl", "sdxl");
    let (files, shards) = (folder.path().join("files"), folder.path().join("shards"));
    fs::create_dir(&files).expect("made");
    fs::create_dir(&shards).expect("made");
    let mut shard = tar::Builder::new(fs::File::create(shards.join("000.tar")).expect("made"));
    for number in 0..20 {
        let caption = format!("picture {number}");
        for (ending, bytes) in [("png", png_of(number)), ("txt", caption.into_bytes())] {
            fs::write(files.join(format!("{number:03}.{ending}")), &bytes).expect("written");
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            shard.append_data(&mut header, format!("{number:03}.{ending}"), &*bytes).expect("appended");
        }
    }
    shard.finish().expect("written");
    let data = |of: &str| format!("[data.images]\nurl = '../{of}'\nsize = [96, 64]\n");
    let from_files = convert(&folder.path().join("one"), &model, &data("files"), &["alone"]);
    let from_shards = convert(&folder.path().join("two"), &model, &data("shards"), &["alone"]);
    assert_eq!(synthesised(&from_files), 1);
    assert_eq!(service::digest(&from_files), service::digest(&from_shards));
}

#[test]
fn a_pipeline_that_lacks_a_part_is_refused_before_any_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    pipeline(&model, "sdxl", "sdxl");
    let coordinator = Coordinator::start(folder.path());
    fs::write(folder.path().join("prompts.txt"), "a cat\n").expect("written");
    let job = folder.path().join("job.toml");
    let refused = |more: &str| {
        let text = format!(
            "teacher = 'model'\noutput = 'out'\n[data]\nheld_out_latents = 4\n[data.synthesis]\nprompts = 'prompts.txt'\n{more}"
        );
        fs::write(&job, text).expect("written");
        let output = coordinator.run(&["submit", job.to_str().expect("UTF-8")]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        said(&output)
    };
    assert!(refused("").contains("data.synthesis.size = absent"));
    assert!(refused("size = [100, 64]").contains("two multiples of 8"));
    assert!(refused("size = [96, 64]\nsolver = 'heun'").contains("one of ddim, dpm-solver++, euler"));
    let whole = "size = [96, 64]";
    fs::write(folder.path().join("prompts.txt"), "\n").expect("written");
    assert!(refused(whole).contains("it holds 0 prompts"));
    fs::write(folder.path().join("prompts.txt"), "a cat\n").expect("written");
    fs::rename(model.join("text_encoder_2"), model.join("elsewhere")).expect("moved");
    assert!(refused(whole).contains("no text_encoder_2/config.json"));
    fs::rename(model.join("elsewhere"), model.join("text_encoder_2")).expect("moved");
    fs::rename(model.join("vae"), model.join("elsewhere")).expect("moved");
    assert!(refused(whole).contains("no vae/config.json"));
    assert!(!folder.path().join("out").exists());
}
