//! Jobs without a data set, on whole pipelines: text encoders, denoiser and VAE of small sizes with random weights.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use deltaconv_proto::safetensors;
use serde_json::{Value, json};

use crate::faults::copy;
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

/// A picture of its number's colour, as a PNG.
fn png_of(number: usize, (height, width): (usize, usize)) -> Vec<u8> {
    let colour = [number * 12 % 256, number * 40 % 256, 255 - number * 9 % 256].map(|level| level as u8);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    let pixels: Vec<u8> =
        (0..height * width).flat_map(|i| if i % width < number { [255; 3] } else { colour }).collect();
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
        for (ending, bytes) in [("png", png_of(number, (40, 70))), ("txt", caption.into_bytes())] {
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
    let spec = fs::read_to_string(folder.path().join("one/out/spec.json")).expect("a spec");
    assert!(!spec.contains("buckets"), "a job of one size is what it was before there were buckets: {spec}");
}

/// The tensors of every object of the first job in `folder` that lies below `key`, by name, with their shapes.
fn tensors(folder: &Path, key: &str) -> Vec<BTreeMap<String, Vec<usize>>> {
    let mut objects: Vec<_> = fs::read_dir(folder.join("out").join(key))
        .expect("objects")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    objects.sort();
    let read = |path: &PathBuf| {
        let bytes = fs::read(path).expect("read");
        let (header, _) = safetensors::parse(&bytes).expect("a safetensors object");
        header.tensors.into_iter().map(|(name, info)| (name, info.shape)).collect()
    };
    objects.iter().map(read).collect()
}

#[test]
fn images_are_sorted_into_buckets_by_their_aspect_ratio() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    pipeline(&model, "sdxl", "sdxl");
    let files = folder.path().join("files");
    fs::create_dir(&files).expect("made");
    // Three in four are wider than high.
    let is_high = |number: usize| number % 4 == 1;
    for number in 0..20 {
        let size = if is_high(number) { (70, 40 + number) } else { (40, 70 + number) };
        fs::write(files.join(format!("{number:03}.png")), png_of(number, size)).expect("written");
        fs::write(files.join(format!("{number:03}.txt")), format!("picture {number}")).expect("written");
    }
    let data = "[data.images]\nurl = '../files'\nbuckets = [[64, 96], [64, 64], [96, 64]]\n";
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let status = convert(&one, &model, data, &["alone"]);
    let again = convert(&two, &model, data, &["first", "second"]);
    assert_eq!(service::digest(&status), service::digest(&again));
    assert!(status["figures"]["epsilon_relative_mse"].as_f64().is_some_and(f64::is_finite), "{status:#}");

    let [latents] = &tensors(&one, "rounds/0/latents")[..] else { panic!("20 images are one part") };
    assert_eq!((&latents["latents.0"], &latents["latents.2"]), (&vec![15, 4, 8, 12], &vec![5, 4, 12, 8]));
    assert!(!latents.contains_key("latents.1") && !latents.contains_key("latents"), "{latents:?}");
    let layer = status["layers"][0]["name"].as_str().expect("a layer").to_owned();
    let shards = tensors(&one, &format!("rounds/0/activations/{layer}"));
    let rows = |shard: &BTreeMap<String, Vec<usize>>, name: &str| shard.get(name).map_or(0, |shape| shape[0]);
    for name in ["timestep.0", "timestep.2"] {
        assert!(shards.iter().any(|shard| rows(shard, name) > 0), "no sample in {name}: {shards:?}");
    }
    let samples = shards.iter().map(|shard| rows(shard, "timestep.0") + rows(shard, "timestep.2"));
    let samples: Vec<usize> = samples.collect();
    assert_eq!(samples, [8, 8, 4]);
}

#[test]
fn prompts_are_sampled_at_the_buckets_in_turn() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    pipeline(&model, "pixart", "pixart-alpha");
    let one = folder.path().join("one");
    let status = convert(&one, &model, &from_prompts(&one, "buckets = [[32, 32], [24, 40]]"), &["alone"]);
    assert!(status["figures"]["psnr_db"].as_f64().is_some_and(f64::is_finite), "{status:#}");
    for latents in tensors(&one, "rounds/0/latents") {
        let half = latents["prompt"][0] / 2;
        assert_eq!((&latents["latents.0"], &latents["latents.1"]), (&vec![half, 4, 16, 16], &vec![half, 4, 12, 20]));
    }
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
    for (sizes, parts) in [
        ("[[96, 64], [100, 64]]", &["data.synthesis.buckets[1] = [100, 64]", "two multiples of 8"][..]),
        ("[[96, 64], [32768, 64]]", &["buckets[1] = [32768, 64]", "at most 16384"]),
        ("[[96, 64], [0, 64]]", &["buckets[1] = [0, 64]"]),
        ("[[96, 64], [64, 64], [96, 64]]", &["buckets[2] = [96, 64]", "each size once"]),
        ("[[96, 64], [8, 8]]\n[evaluation]\nprompts = 1", &["recipe.scales = [1.0, 0.5]", "no pixel of the 1×1 map"]),
        ("'auto'", &["data.synthesis.buckets = auto", "a list of sizes"]),
        ("[[96, 64]]\nsize = [96, 64]", &["data.synthesis.size = [96, 64]", "data.synthesis.buckets"]),
    ] {
        let message = refused(&format!("buckets = {sizes}"));
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    let many: Vec<[u32; 2]> = (1..=17).map(|number| [96, 32 + 8 * number]).collect();
    assert!(refused(&format!("buckets = {many:?}")).contains("data.synthesis.buckets = 17 sizes"));
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
