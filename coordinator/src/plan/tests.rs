use std::collections::BTreeMap;

use deltaconv_proto::block;
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::v1::{Finetune, JobSpec, StagePlan};

use super::fixture::Job;
use super::{check_output, claim_output, plan};

const FINETUNE: Finetune = Finetune { steps: 100, batch: 8, learning_rate: 1e-3, features: 0.1 };

#[tokio::test]
async fn the_shipped_teacher_is_planned() {
    let mut job = Job::new();
    let planned = plan(&job.spec).await.expect("plans");
    let layers: Vec<(&str, u32, u32, u32)> =
        planned.layers.iter().map(|l| (l.name.as_str(), l.channels, l.height, l.kernel_size)).collect();
    let in_block = |block: &str, i: u32| format!("{block}.attentions.{i}.transformer_blocks.0");
    let expected = [
        (in_block("down_blocks.0", 0), 64, 32, 7),
        (in_block("down_blocks.1", 0), 128, 16, 11),
        (in_block("mid_block", 0), 128, 8, 5),
        (in_block("up_blocks.1", 0), 128, 16, 11),
        (in_block("up_blocks.1", 1), 128, 16, 11),
        (in_block("up_blocks.2", 0), 64, 32, 7),
        (in_block("up_blocks.2", 1), 64, 32, 7),
    ];
    let expected: Vec<_> = expected.iter().map(|(name, c, h, k)| (name.as_str(), *c, *h, *k)).collect();
    assert_eq!(layers, expected);
    assert!(planned.layers.iter().all(|l| l.gate == block::SCALED && l.parameters == block::parameters(l)));
    assert_eq!((planned.latents, planned.prompts, planned.latent_channels), (384, 37, 3));
    // 100 samples and 20 held-out ones in shards of 32.
    assert_eq!((planned.capture_tasks, planned.distill_tasks, planned.evaluate_tasks), (5, 7, 2 + 4));
    // Input and output in f16.
    let numbers: u64 = planned.layers.iter().map(|l| u64::from(l.channels * l.height * l.width)).sum();
    let least = 120 * numbers * 4;
    assert!((least..least * 11 / 10).contains(&planned.capture_bytes), "{}", planned.capture_bytes);

    let stages: Vec<(&str, u32)> = planned.stages.iter().map(|stage| (stage.stage.as_str(), stage.tasks)).collect();
    assert_eq!(stages, [("capture", 5), ("distill", 7), ("assemble", 0), ("evaluate", 6)]);
    let [capture, distill, assemble, evaluate] = &planned.stages[..] else { panic!("{stages:?}") };
    let size = |file: &str| std::fs::metadata(job.path("teacher").join(file)).expect("a file").len();
    let denoiser = size(WEIGHTS);
    let data = size("latents.safetensors") + size("prompt_embeddings.safetensors");
    assert_eq!((capture.written_bytes, capture.read_bytes), (planned.capture_bytes, denoiser + data));
    // Each shard once.
    assert_eq!(distill.read_bytes, capture.written_bytes);
    let blocks: u64 = planned.layers.iter().map(|layer| 4 * layer.parameters).sum();
    // Checkpoints of five copies, and the block itself.
    assert!((6 * blocks..6 * blocks * 11 / 10).contains(&distill.written_bytes), "{}", distill.written_bytes);
    let copied =
        ["unet/config.json", "scheduler/scheduler_config.json", "prompts.json", "prompt_embeddings.safetensors"];
    let copied: u64 = copied.into_iter().map(size).sum();
    assert_eq!(assemble.written_bytes, planned.output_bytes + copied);
    assert!(assemble.read_bytes > denoiser + 2 * blocks + copied);
    // Pictures of 8 prompts by three models, in f32.
    let pictures = 8 * 3 * 3 * 32 * 32 * 4;
    assert!((pictures..pictures * 11 / 10).contains(&evaluate.written_bytes), "{}", evaluate.written_bytes);
    assert_eq!(planned.stored_bytes, planned.stages.iter().map(|stage| stage.written_bytes).sum::<u64>());

    job.recipe().store = Some("inputs".to_owned());
    let of_inputs = plan(&job.spec).await.expect("plans");
    let [capture, distill] = [0, 1].map(|stage: usize| &of_inputs.stages[stage]);
    assert!((least / 2..least * 11 / 20).contains(&capture.written_bytes), "{}", capture.written_bytes);
    // Four projections of each layer, three of them without biases, in f16.
    let attention: u64 =
        planned.layers.iter().map(|layer| u64::from(layer.channels)).map(|c| 2 * (4 * c * c + c)).sum();
    assert_eq!(distill.read_bytes, capture.written_bytes + attention);

    // What trainings start from is written, kept in checkpoints, and compared.
    job.recipe().start = Some("ridge".to_owned());
    let by_ridge = plan(&job.spec).await.expect("plans");
    job.recipe().start = None;
    let blocks: u64 = planned.layers.iter().map(|layer| 4 * layer.parameters).sum();
    let more = |stage: usize, of: fn(&StagePlan) -> u64| of(&by_ridge.stages[stage]) - of(&of_inputs.stages[stage]);
    let added = more(1, |distill| distill.written_bytes);
    assert!((2 * blocks..2 * blocks * 101 / 100).contains(&added), "{added}");
    let (drawn, read) = (more(3, |evaluate| evaluate.written_bytes), more(3, |evaluate| evaluate.read_bytes));
    assert!((pictures / 3..pictures / 3 * 11 / 10).contains(&drawn), "{drawn}");
    assert!((blocks + drawn..(blocks + drawn) * 101 / 100).contains(&read), "{read}");

    // Later rounds need outputs, and read the blocks before.
    (job.recipe().rounds, job.recipe().round_steps) = (1, 60);
    let again = plan(&job.spec).await.expect("plans");
    let stages: Vec<_> = again.stages.iter().map(|stage| (stage.stage.as_str(), stage.round)).collect();
    let steps = [("capture", 0), ("distill", 0), ("capture", 1), ("distill", 1), ("assemble", 0), ("evaluate", 0)];
    assert_eq!(stages, steps);
    assert_eq!(again.stages[..2], of_inputs.stages[..2]);
    // The first layer's inputs stay the teacher's: it is recorded and trained once.
    let first = u64::from(planned.layers[0].channels * planned.layers[0].height * planned.layers[0].width);
    let later = again.stages[2].written_bytes;
    let expected = planned.capture_bytes / numbers * (numbers - first);
    assert!((expected * 99 / 100..expected * 101 / 100).contains(&later), "{later} instead of {expected}");
    assert_eq!(again.capture_bytes, later + of_inputs.capture_bytes);
    assert_eq!((again.stages[1].tasks, again.stages[3].tasks), (7, 6));
    let after = again.stages[3].read_bytes;
    let blocks: u64 = planned.layers[1..].iter().map(|layer| 4 * layer.parameters + 512).sum();
    assert_eq!(after - later, blocks);
    (job.recipe().store, job.recipe().teacher_share) = (None, 0.5);
    let mixed = plan(&job.spec).await.expect("plans");
    let training = later * 100 / 120;
    let added = mixed.stages[3].read_bytes - after;
    assert!((training * 99 / 100..training * 101 / 100).contains(&added), "{added} instead of {training}");

    job.recipe().kernel_sizes.clear();
    let planned = plan(&job.spec).await.expect("plans");
    assert_eq!(planned.layers[2].kernel_size, 9, "the 8×8 map gets a kernel as wide as itself");
}

/// What is changed, and what the message must contain.
type Case = (fn(&mut Job), &'static [&'static str]);

async fn all_refused(cases: &[Case]) {
    for (change, expected) in cases {
        let mut job = Job::new();
        change(&mut job);
        let message = plan(&job.spec).await.expect_err(&format!("accepted: {expected:?}")).to_string();
        for part in *expected {
            assert!(message.contains(part), "{message:?} doesn't contain {part:?}");
        }
        assert!(!job.path("job").exists(), "planning wrote something");
    }
}

#[tokio::test]
async fn specs_that_no_job_can_have_are_refused_by_field_and_value() {
    let cases: &[Case] = &[
        (|j| j.spec.recipe = None, &["recipe = absent"]),
        (|j| j.spec.name = "a/b".to_owned(), &["name = \"a/b\"", "a-z"]),
        (|j| j.spec.name.clear(), &["name = \"\""]),
        (|j| j.spec.teacher_url = "nowhere".to_owned(), &["teacher_url", "nowhere", "file:///"]),
        (|j| j.spec.output_url = "ftp://host/x".to_owned(), &["output_url", "ftp://host/x"]),
        (|j| j.spec.output_url = "hf://owner/name".to_owned(), &["output_url", "hf://owner/name", "only read"]),
        (|j| j.spec.output_url = "https://host/a".to_owned(), &["output_url", "https://host/a", "only read"]),
        (|j| j.spec.output_url = format!("{}/out", j.spec.teacher_url), &["output_url", "/teacher/out", "teacher_url"]),
        (|j| j.recipe().samples = 0, &["recipe.samples = 0", "1 to"]),
        (|j| j.recipe().samples = u32::MAX, &["recipe.samples = 4294967295"]),
        (|j| j.recipe().held_out_samples = 0, &["recipe.held_out_samples = 0"]),
        (|j| j.recipe().shard_samples = 0, &["recipe.shard_samples = 0"]),
        (
            |j| (j.recipe().samples, j.recipe().shard_samples) = (20_000, 1),
            &["recipe.shard_samples = 1", "20020 shards", "10000"],
        ),
        (|j| j.recipe().batch = 101, &["recipe.batch = 101", "recipe.samples = 100"]),
        (|j| j.recipe().steps = 0, &["recipe.steps = 0"]),
        (|j| j.recipe().warmup_steps = 601, &["recipe.warmup_steps = 601", "recipe.steps = 600"]),
        (|j| j.recipe().learning_rate = f64::NAN, &["recipe.learning_rate = NaN"]),
        (|j| j.recipe().learning_rate = 0.0, &["recipe.learning_rate = 0", "above 0"]),
        (|j| j.recipe().clip_norm = f64::INFINITY, &["recipe.clip_norm = inf"]),
        (|j| j.recipe().ema_decay = 1.0, &["recipe.ema_decay = 1"]),
        (|j| j.recipe().empty_prompt_fraction = 1.5, &["recipe.empty_prompt_fraction = 1.5"]),
        (|j| j.recipe().inter_ratio = 0.51, &["recipe.inter_ratio = 0.51", "down_blocks.1", "65", "even"]),
        (|j| j.recipe().store = Some("outputs".to_owned()), &["recipe.store = \"outputs\"", "activations, inputs"]),
        (|j| j.recipe().schedule = Some("linear".to_owned()), &["recipe.schedule = \"linear\"", "cosine, constant"]),
        (|j| j.recipe().start = Some("zeros".to_owned()), &["recipe.start = \"zeros\"", "random, ridge"]),
        (|j| j.recipe().budget = Some("error".to_owned()), &["recipe.budget = \"error\"", "even, gain"]),
        (|j| j.recipe().rounds = 9, &["recipe.rounds = 9", "0 to 8"]),
        (|j| j.recipe().rounds = 1, &["recipe.round_steps = 0"]),
        (
            |j| (j.recipe().rounds, j.recipe().round_steps, j.recipe().widen) = (1, 50, Some(1.5)),
            &["recipe.widen = 1.5", "0 to 1"],
        ),
        (
            |j| {
                (j.recipe().rounds, j.recipe().round_steps, j.recipe().widen) = (1, 50, Some(0.01));
                j.recipe().inter_ratio = 2.0;
            },
            &["recipe.inter_ratio = 2", "recipe.widen"],
        ),
        (
            |j| (j.recipe().rounds, j.recipe().round_steps) = (1, 10),
            &["recipe.warmup_steps = 20", "recipe.round_steps = 10"],
        ),
        (
            |j| (j.recipe().rounds, j.recipe().round_steps, j.recipe().teacher_share) = (1, 50, 0.6),
            &["recipe.teacher_share = 0.6", "0.5"],
        ),
        (
            |j| {
                (j.recipe().rounds, j.recipe().round_steps, j.recipe().teacher_share) = (1, 50, 0.5);
                j.recipe().store = Some("inputs".to_owned());
            },
            &["recipe.teacher_share = 0.5", "recipe.store"],
        ),
        (|j| j.recipe().scales = vec![0.5, 1.0], &["recipe.scales = [0.5, 1.0]", "1.0 first"]),
        (|j| j.recipe().scales = vec![1.0, 0.1], &["recipe.scales = [1.0, 0.1]", "8×8", "mid_block"]),
        (|j| j.recipe().scales.clear(), &["recipe.scales = []"]),
        (
            |j| j.recipe().kernel_sizes = [("mid_block".to_owned(), 5)].into(),
            &["recipe.kernel_sizes.mid_block = 5", "no layer", "mid_block.attentions.0.transformer_blocks.0"],
        ),
        (
            |j| j.recipe().kernel_sizes = [("mid_block.attentions.0.transformer_blocks.0".to_owned(), 6)].into(),
            &["transformer_blocks.0 = 6", "odd", "31"],
        ),
        (
            |j| j.recipe().keep = vec!["mid".to_owned()],
            &["recipe.keep = \"mid\"", "no layer", "mid_block.attentions.0"],
        ),
        (
            |j| j.recipe().keep = vec!["mid_block".to_owned()],
            &["recipe.kernel_sizes.mid_block.attentions.0.transformer_blocks.0 = 5", "recipe.keep"],
        ),
        (
            |j| {
                j.recipe().kernel_sizes.clear();
                j.recipe().keep = ["down_blocks", "mid_block", "up_blocks"].map(str::to_owned).to_vec();
            },
            &["recipe.keep = ", "all 7 layers"],
        ),
        (|j| j.recipe().finetune = Some(Finetune { steps: 0, ..FINETUNE }), &["recipe.finetune.steps = 0", "from 1"]),
        (
            |j| j.recipe().finetune = Some(Finetune { learning_rate: f64::NAN, ..FINETUNE }),
            &["recipe.finetune.learning_rate = NaN", "above 0"],
        ),
        (|j| j.recipe().keep_costliest = Some(7), &["recipe.keep_costliest = 7", "less than the 7 layers"]),
        (|j| j.spec.retention = Some("some".to_owned()), &["retention = \"some\"", "all, results"]),
        (|j| j.evaluation().samples = 3, &["evaluation.samples = 3"]),
        (|j| j.evaluation().prompts = 37, &["evaluation.prompts = 37", "36"]),
        (|j| j.evaluation().ddim_steps = 0, &["evaluation.ddim_steps = 0"]),
        (|j| j.evaluation().guidance = f64::NAN, &["evaluation.guidance = NaN"]),
        (
            |j| j.spec.data.as_mut().expect("data").held_out_latents = 384,
            &["data.held_out_latents = 384", "384 latents"],
        ),
    ];
    all_refused(cases).await;
}

const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

#[tokio::test]
async fn teachers_that_cant_be_converted_are_refused() {
    let remove = |job: &Job, file: &str| std::fs::remove_file(job.path("teacher").join(file)).expect("removes");
    let job = Job::new();
    remove(&job, "unet/config.json");
    let message = plan(&job.spec).await.expect_err("refused").to_string();
    assert!(
        message
            .starts_with(&format!("no unet/config.json or transformer/config.json under {}: ", job.spec.teacher_url)),
        "{message}"
    );

    let cases: &[Case] = &[
        (
            |j| j.replace("unet/config.json", "UNet2DConditionModel", "UNet3DModel"),
            &["unet/config.json", "UNet3DModel"],
        ),
        (|j| j.replace("unet/config.json", "\"act_fn\": \"silu\"", "\"act_fn\": \"tanh\""), &["act_fn", "tanh"]),
        (|j| j.replace("unet/config.json", "\"act_fn\"", "\"act_function\""), &["act_function", "silu"]),
        (
            |j| j.replace("unet/config.json", "\"out_channels\": 3", "\"out_channels\": 6"),
            &["[6, 64, 3, 3]", "[3, 64, 3, 3]"],
        ),
        (|j| j.rewrite("unet/config.json", |bytes| bytes[..100].to_vec()), &["unet/config.json", "JSON"]),
        (
            |j| std::fs::remove_file(j.path("teacher").join(WEIGHTS)).expect("removes"),
            &["no unet/diffusion_pytorch_model"],
        ),
        (|j| j.rewrite(WEIGHTS, |bytes| bytes[..5].to_vec()), &[WEIGHTS, "5 bytes"]),
        (|j| j.rewrite(WEIGHTS, |bytes| bytes[..1000].to_vec()), &[WEIGHTS, "1000", "cut off"]),
        (|j| j.rewrite(WEIGHTS, |bytes| bytes[..1_000_000].to_vec()), &[WEIGHTS, "cut off"]),
        (
            |j| j.rewrite(WEIGHTS, |bytes| [&u64::MAX.to_le_bytes(), &bytes[8..]].concat()),
            &[WEIGHTS, "18446744073709551615"],
        ),
        (
            |j| j.replace_in_header(WEIGHTS, "\"conv_in.bias\"", "\"conv_in.bios\""),
            &[WEIGHTS, "no tensor `conv_in.bias`"],
        ),
        (
            |j| j.replace_in_header(WEIGHTS, "[64,3,3,3]", "[64,9,3,1]"),
            &["conv_in.weight", "[64, 9, 3, 1]", "[64, 3, 3, 3]"],
        ),
        (
            |j| std::fs::remove_dir_all(j.path("teacher/scheduler")).expect("removes"),
            &["no scheduler/scheduler_config.json under"],
        ),
        (
            |j| j.replace("scheduler/scheduler_config.json", "\"epsilon\"", "\"flow\""),
            &["scheduler/scheduler_config.json", "flow"],
        ),
    ];
    all_refused(cases).await;
}

#[tokio::test]
async fn data_that_doesnt_fit_the_teacher_is_refused() {
    let cases: &[Case] = &[
        (
            |j| std::fs::remove_file(j.path("teacher/latents.safetensors")).expect("removes"),
            &["no latents.safetensors"],
        ),
        (|j| std::fs::remove_file(j.path("teacher/prompts.json")).expect("removes"), &["no prompts.json under"]),
        (
            |j| j.replace_in_header("latents.safetensors", "[384,3,32,32]", "[288,4,32,32]"),
            &["[288, 4, 32, 32]", "latents", "3"],
        ),
        (
            |j| j.replace_in_header("latents.safetensors", "\"prompt\"", "\"prompts\""),
            &["no tensor `prompt`", "I64 [384]"],
        ),
        (
            |j| j.replace_in_header("latents.safetensors", "\"I64\",\"shape\":[384]", "\"U64\",\"shape\":[384]"),
            &["U64"],
        ),
        (
            |j| j.replace_in_header("prompt_embeddings.safetensors", "[37,4,64]", "[37,8,32]"),
            &["[37, 8, 32]", "tokens, 64"],
        ),
        (|j| j.replace("prompts.json", "\"a red square\", ", ""), &["36 prompts", "37 rows"]),
        (|j| j.replace("prompts.json", "\"\"]", "\"last\"]"), &["\"last\"", "empty"]),
        (|j| j.replace("prompts.json", "\"prompts\"", "\"texts\""), &["prompts.json", "prompts"]),
        (
            |j| {
                j.rewrite("latents.safetensors", |mut bytes| {
                    let start = 8 + u64::from_le_bytes(*bytes.first_chunk().expect("a length")) as usize;
                    bytes[start + 8 * 5..start + 8 * 6].copy_from_slice(&37_i64.to_le_bytes());
                    bytes
                });
            },
            &["`prompt`[5] = 37", "0 to 36"],
        ),
    ];
    all_refused(cases).await;
}

#[tokio::test]
async fn a_job_that_would_store_too_much_is_refused_with_what_takes_the_most() {
    let mut job = Job::new();
    let planned = plan(&job.spec).await.expect("plans").stored_bytes;
    job.spec.max_storage = Some(planned);
    plan(&job.spec).await.expect("as much as is allowed");
    job.spec.max_storage = Some(planned - 1);
    let message = plan(&job.spec).await.expect_err("refused").to_string();
    let (limit, planned) = (format!("({} bytes)", planned - 1), format!("({planned} bytes)"));
    for part in
        [&limit, &planned, &job.spec.output_url, "max_storage", "stage capture", "recipe.samples", "recipe.store"]
    {
        assert!(message.contains(part), "{message:?} doesn't contain {part:?}");
    }

    // The same model, and hardly anything recorded.
    (job.recipe().samples, job.recipe().held_out_samples, job.recipe().batch) = (1, 1, 1);
    job.spec.max_storage = Some(1);
    let message = plan(&job.spec).await.expect_err("refused").to_string();
    assert!(message.contains("stage assemble") || message.contains("stage distill"), "{message}");
}

#[tokio::test]
async fn an_output_belongs_to_one_job() {
    let mut job = Job::new();
    check_output(&job.spec).await.expect("nothing is there");
    for beside in ["state/db", ".tmp/x", "logs/worker-1.log"] {
        let path = job.path("job").join(beside);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, b"x").expect("writes");
    }
    claim_output(&job.spec).await.expect("what lies beside a job is not in the way");
    claim_output(&job.spec).await.expect("the same job goes on");
    let written = std::fs::read(job.path("job/spec.json")).expect("written");
    assert_eq!(serde_json::from_slice::<JobSpec>(&written).expect("a spec"), job.spec);

    job.recipe().steps = 601;
    let message = check_output(&job.spec).await.expect_err("another job").to_string();
    assert!(
        message.contains("recipe.steps is 600 there, 601 here") && message.contains(&job.spec.output_url),
        "{message}"
    );

    std::fs::remove_file(job.path("job/spec.json")).expect("removes");
    std::fs::write(job.path("job/thesis.tex"), b"x").expect("writes");
    let message = check_output(&job.spec).await.expect_err("taken").to_string();
    assert!(message.contains("thesis.tex") && message.contains(&job.spec.output_url), "{message}");
}

/// A number that is read as the one beside it would make the job another one than lies there.
#[tokio::test]
async fn numbers_with_many_digits_are_those_of_the_job_when_it_is_submitted_again() {
    let mut job = Job::new();
    for n in 1..=200 {
        job.recipe().learning_rate = f64::from(n) / 7e4;
        claim_output(&job.spec).await.expect("nothing is there");
        claim_output(&job.spec).await.expect("the same job goes on");
        std::fs::remove_file(job.path("job/spec.json")).expect("removes");
    }
}

/// SDXL's UNet takes an embedding of the whole text, which ready data must hold.
#[tokio::test]
async fn data_of_a_model_that_takes_pooled_embeddings_must_have_them() {
    let mut job = Job::new();
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/tests/golden");
    for (from, to) in [("teachers/sdxl/unet", "unet"), ("pipelines/sdxl/vae", "vae")] {
        std::fs::create_dir_all(job.path("teacher").join(to)).expect("made");
        for entry in std::fs::read_dir(golden.join(from)).expect("a folder") {
            let entry = entry.expect("an entry");
            std::fs::copy(entry.path(), job.path("teacher").join(to).join(entry.file_name())).expect("copies");
        }
    }
    let write = |file: &str, tensors: &[(&str, Dtype, &[usize])]| {
        let mut bytes = serialize_header(tensors.iter().copied(), &BTreeMap::new()).expect("a header");
        let data: u64 = tensors.iter().filter_map(|(_, dtype, shape)| dtype.bytes(shape)).sum();
        bytes.resize(bytes.len() + data as usize, 0);
        std::fs::write(job.path("teacher").join(file), bytes).expect("writes");
    };
    write("latents.safetensors", &[("latents", Dtype::F16, &[100, 4, 12, 8]), ("prompt", Dtype::I64, &[100])]);
    std::fs::write(job.path("teacher/prompts.json"), r#"{"prompts": ["a cat", ""]}"#).expect("writes");
    let embeddings = ("embeddings", Dtype::F16, &[2, 77, 20][..]);
    let refused = async |tensors: &[(&str, Dtype, &[usize])]| {
        write("prompt_embeddings.safetensors", tensors);
        plan(&job.spec).await.expect_err("planned").to_string()
    };
    assert!(refused(&[embeddings]).await.contains("no tensor `pooled`: it needs F16, BF16 or F32 [2, 10]"));
    assert!(refused(&[embeddings, ("pooled", Dtype::F16, &[2, 12])]).await.contains("`pooled` is F16 [2, 12]"));
    let pooled = ("pooled", Dtype::F16, &[2, 10][..]);
    let mask = ("attention_mask", Dtype::F16, &[2, 76][..]);
    assert!(refused(&[embeddings, pooled, mask]).await.contains("`attention_mask` is F16 [2, 76]"));
    write("prompt_embeddings.safetensors", &[embeddings, pooled]);
    job.recipe().kernel_sizes.clear();
    job.evaluation().prompts = 1;
    let planned = plan(&job.spec).await.expect("plans");
    assert_eq!((planned.picture_height, planned.picture_width, planned.prompts), (96, 64, 2));
}
