use std::collections::BTreeMap;

use deltaconv_proto::ids::{AttemptId, JobId, TaskId};
use deltaconv_proto::objects::Objects;
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::shard::Contents;
use deltaconv_proto::v1::done::Output;
use deltaconv_proto::v1::task_spec::Kind;
use deltaconv_proto::v1::{
    BlockRef, Bucket, CaptureOutput, CaptureTask, DistillOutput, DistillTask, EvaluateOutput, EvaluateTask,
    FinetuneOutput, FinetuneTask, JobPlan, LayerPlan, Map, ObjectRef, SampleRange, ShardRef, SynthesiseOutput,
    SynthesiseTask, evaluate_task,
};
use deltaconv_proto::{digest, keys};

use super::super::tests::made_up_block;
use super::{Error, Expectation, verify};
use crate::plan::fixture::Job;

struct Case {
    job: Job,
    objects: Objects,
    plan: JobPlan,
    task: TaskId,
    attempt: AttemptId,
    kind: Kind,
    contents: Contents,
}

impl Case {
    async fn new(kind: impl FnOnce(&JobPlan) -> Kind) -> Self {
        let job = Job::new();
        let plan = crate::plan::plan(&job.spec).await.expect("plans");
        let objects = Objects::open(&job.spec.output_url).expect("opens");
        let task = TaskId::of(&JobId::new("tiny-1").expect("valid"), "r0/evaluate/noise-0").expect("valid");
        let attempt = AttemptId::new("e3-1").expect("valid");
        let kind = kind(&plan);
        Self { job, objects, plan, task, attempt, kind, contents: Contents::Activations }
    }

    async fn verify(&self, output: Output) -> Result<(), Error> {
        let Self { plan, task, attempt, kind, .. } = self;
        verify(&self.objects, &output, &Expectation { plan, contents: self.contents, task, attempt, kind }).await
    }

    async fn refused(&self, output: Output, parts: &[&str]) {
        let error = self.verify(output).await.expect_err(&format!("accepted: {parts:?}"));
        let message = error.to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
        assert!(error.is_of_output(), "{message}");
    }
}

#[tokio::test]
async fn what_a_layers_replacement_costs_is_told_where_it_was_asked_for() {
    let distill = |plan: &JobPlan| {
        let layer = Some(plan.layers[2].clone());
        Kind::Distill(DistillTask { layer, alone: true, ..DistillTask::default() })
    };
    let case = Case::new(distill).await;
    let layer = &case.plan.layers[2];
    let key = keys::block(0, &layer.name, &case.attempt);
    let object = case.objects.put(&key, made_up_block(layer, "x")).await.expect("writes");
    let told = |alone_error| {
        let block = Some(object.clone());
        Output::Distill(DistillOutput { block, relative_error: 0.2, alone_error, ..DistillOutput::default() })
    };
    case.verify(told(Some(0.01))).await.expect("a block");
    case.refused(told(None), &["this layer alone", "absent"]).await;
    case.refused(told(Some(f64::NAN)), &["this layer alone", "NaN"]).await;
    case.refused(told(Some(-1.0)), &["this layer alone", "-1"]).await;
}

#[tokio::test]
async fn blocks_that_were_trained_together_are_those_of_all_layers_or_none() {
    let given = |plan: &JobPlan| {
        let block = |layer: &LayerPlan| BlockRef { layer: layer.name.clone(), ..BlockRef::default() };
        Kind::Finetune(FinetuneTask { blocks: plan.layers[1..3].iter().map(block).collect(), resume: None })
    };
    let case = Case::new(given).await;
    let mut blocks = Vec::new();
    for layer in &case.plan.layers[1..3] {
        let key = keys::finetuned(&layer.name, &case.attempt);
        let object = case.objects.put(&key, made_up_block(layer, "x")).await.expect("writes");
        blocks.push(BlockRef { layer: layer.name.clone(), object: Some(object), ..BlockRef::default() });
    }
    let output = |blocks: &[BlockRef], error_after| {
        let blocks = blocks.to_vec();
        Output::Finetune(FinetuneOutput { blocks, error_before: 0.02, error_after, ..FinetuneOutput::default() })
    };
    case.verify(output(&blocks, 0.01)).await.expect("all blocks");
    case.verify(output(&[], 0.02)).await.expect("none");
    case.refused(output(&blocks, f64::NAN), &["error after training", "NaN"]).await;
    case.refused(output(&blocks[..1], 0.01), &[&blocks[1].layer]).await;
    case.refused(output(&[&blocks[..], &blocks[..1]].concat(), 0.01), &["expected one of each"]).await;
    let lacking = BlockRef { object: None, ..blocks[0].clone() };
    case.refused(output(&[lacking, blocks[1].clone()], 0.01), &["no object", "finetune/blocks"]).await;
    let key = keys::block(0, &blocks[0].layer, &case.attempt);
    let elsewhere = ObjectRef { key: key.clone(), ..blocks[0].object.clone().expect("an object") };
    let moved = BlockRef { object: Some(elsewhere), ..blocks[0].clone() };
    case.refused(output(&[moved, blocks[1].clone()], 0.01), &[&key, "finetune/blocks"]).await;

    let (key, layer) = (keys::finetuned(&blocks[0].layer, &case.attempt), &case.plan.layers[1]);
    let mut bytes = made_up_block(layer, "x");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let object = Some(case.objects.put(&key, bytes).await.expect("writes"));
    let broken = BlockRef { object, ..blocks[0].clone() };
    case.refused(output(&[broken, blocks[1].clone()], 0.01), &["conv_pool.bias", "NaN"]).await;
}

#[tokio::test]
async fn what_a_training_started_from_is_a_block_where_it_was_asked_for_and_nothing_elsewhere() {
    let distill = |plan: &JobPlan| {
        let layer = Some(plan.layers[2].clone());
        Kind::Distill(DistillTask { layer, start_by_ridge: true, ..DistillTask::default() })
    };
    let case = Case::new(distill).await;
    let layer = &case.plan.layers[2];
    let key = keys::block(0, &layer.name, &case.attempt);
    let block = case.objects.put(&key, made_up_block(layer, "x")).await.expect("writes");
    let key = keys::start(&layer.name, &case.attempt);
    let start = case.objects.put(&key, made_up_block(layer, "y")).await.expect("writes");
    let told = |start: Option<&ObjectRef>| {
        let (block, start) = (Some(block.clone()), start.cloned());
        Output::Distill(DistillOutput { block, relative_error: 0.2, start, ..DistillOutput::default() })
    };
    case.verify(told(Some(&start))).await.expect("a block and its start");
    case.refused(told(None), &["no object", &key]).await;
    case.refused(told(Some(&block)), &[&block.key, &key]).await;
    let (unlearned, start) = ("it diverged".to_owned(), Some(start));
    let lost = DistillOutput { unlearned, start: start.clone(), ..DistillOutput::default() };
    case.refused(Output::Distill(lost), &["no object"]).await;

    let mut broken = made_up_block(layer, "z");
    let end = broken.len();
    broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::remove_file(case.job.path("job").join(&key)).expect("removed");
    let broken = case.objects.put(&key, broken).await.expect("writes");
    case.refused(told(Some(&broken)), &[&key, "NaN"]).await;

    let of_others = DistillTask { layer: Some(layer.clone()), ..DistillTask::default() };
    let case = Case { kind: Kind::Distill(of_others), ..case };
    case.verify(told(None)).await.expect("a block");
    case.refused(told(start.as_ref()), &[&key, "nothing of its own"]).await;
}

fn distilled(object: ObjectRef) -> Output {
    Output::Distill(DistillOutput { block: Some(object), relative_error: 0.2, ..DistillOutput::default() })
}

#[tokio::test]
async fn a_block_is_exactly_the_published_tensors() {
    let distill = |plan: &JobPlan| {
        Kind::Distill(DistillTask { round: 0, layer: Some(plan.layers[2].clone()), ..DistillTask::default() })
    };
    let case = Case::new(distill).await;
    let layer = &case.plan.layers[2];
    let key = keys::block(0, &layer.name, &case.attempt);
    let good = made_up_block(layer, "x");
    let object = case.objects.put(&key, good.clone()).await.expect("writes");
    case.verify(distilled(object.clone())).await.expect("a block");

    let elsewhere = keys::block(0, &layer.name, &AttemptId::new("e3-2").expect("valid"));
    let other = ObjectRef { key: elsewhere.clone(), ..object.clone() };
    case.refused(distilled(other), &[&elsewhere, &key]).await;
    case.refused(distilled(ObjectRef { digest: "XYZ".to_owned(), ..object.clone() }), &["XYZ", "BLAKE3"]).await;
    case.refused(distilled(ObjectRef { digest: digest::of(b""), ..object.clone() }), &[&digest::of(b"")]).await;
    case.refused(distilled(ObjectRef { size: u64::MAX, ..object.clone() }), &["18446744073709551615"]).await;
    case.refused(distilled(ObjectRef { size: object.size + 1, ..object.clone() }), &["instead of"]).await;
    case.refused(Output::Distill(DistillOutput::default()), &["no object", &key]).await;
    let not_a_number = DistillOutput { block: Some(object), relative_error: f64::NAN, ..DistillOutput::default() };
    case.refused(Output::Distill(not_a_number), &["relative error", "NaN"]).await;
    let unlearned = DistillOutput { unlearned: "it diverged".to_owned(), ..DistillOutput::default() };
    case.verify(Output::Distill(unlearned)).await.expect("a layer that stays attention");
    case.refused(Output::Evaluate(EvaluateOutput::default()), &["evaluate", "distill"]).await;

    let nan = |mut bytes: Vec<u8>| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        bytes
    };
    let renamed = |from: &str, to: &str| {
        let text = good.windows(from.len()).position(|w| w == from.as_bytes()).expect("in the header");
        let mut bytes = good.clone();
        bytes[text..text + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    for (bytes, parts) in [
        (nan(good.clone()), ["conv_pool.bias", "NaN"]),
        (good[..good.len() - 4].to_vec(), ["the tensors end at byte", "cut off"]),
        (renamed("conv_up.bias", "conv_up.byas"), ["conv_up.bias", "[64]"]),
        (renamed("[128,128]", "[64,256]\u{20}"), ["[64, 256]", "[128, 128]"]),
        (renamed("\"0.2\"", "\"inf\""), ["relative_error", "inf"]),
        (renamed("[[100,", "[{100,"), ["curve", "[{100"]),
    ] {
        let object = case.objects.put(&key, bytes).await.expect("writes");
        case.refused(distilled(object), &parts).await;
    }
    std::fs::remove_file(case.job.path("job").join(&key)).expect("removes");
    let gone = ObjectRef { key, size: good.len() as u64, digest: digest::of(&good) };
    case.refused(distilled(gone), &["no object"]).await;
}

#[tokio::test]
async fn of_a_wider_layer_a_block_as_before_is_refused() {
    let wide = |plan: &JobPlan| crate::plan::widened(&plan.layers[2]);
    let distill =
        |plan: &JobPlan| Kind::Distill(DistillTask { round: 1, layer: Some(wide(plan)), ..DistillTask::default() });
    let case = Case::new(distill).await;
    let layer = &case.plan.layers[2];
    let key = keys::block(1, &layer.name, &case.attempt);
    let narrow = case.objects.put(&key, made_up_block(layer, "x")).await.expect("writes");
    case.refused(distilled(narrow), &[&key, "bytes; expected"]).await;
    let wide = case.objects.put(&key, made_up_block(&wide(&case.plan), "x")).await.expect("writes");
    case.verify(distilled(wide)).await.expect("a block");
}

#[tokio::test]
async fn shards_are_checked_by_size_and_header() {
    let range = SampleRange { start: 96, end: 100 };
    let capture = |plan: &JobPlan| {
        let layers = plan.layers[1..3].iter().map(|layer| layer.name.clone()).collect();
        Kind::Capture(CaptureTask { round: 0, range: Some(range), layers, blocks: Vec::new() })
    };
    let case = Case::new(capture).await;
    let shard = async |layer: usize, map: [usize; 4], dtype: Dtype| {
        let layer = &case.plan.layers[layer];
        let [samples, height, width, channels] = map;
        let timesteps = ("timestep".to_owned(), Dtype::I64, vec![samples]);
        let rows = 2 * height * width + 1;
        let activations = (format!("activations_{height}x{width}"), dtype, vec![samples, rows, channels]);
        let bytes = zeros(&[timesteps, activations]);
        let key = keys::shard(0, &layer.name, &range, &case.attempt);
        ShardRef { layer: layer.name.clone(), object: Some(case.objects.put(&key, bytes).await.expect("writes")) }
    };
    let good = [shard(1, [4, 16, 16, 128], Dtype::F16).await, shard(2, [4, 8, 8, 128], Dtype::F16).await];
    let output = |shards: &[&ShardRef]| {
        Output::Capture(CaptureOutput { shards: shards.iter().map(|shard| (*shard).clone()).collect() })
    };
    case.verify(output(&[&good[1], &good[0]])).await.expect("shards");

    case.refused(output(&[&good[0]]), &["down_blocks.1", "mid_block"]).await;
    case.refused(output(&[&good[0], &good[0], &good[1]]), &["expected one of each"]).await;
    case.refused(output(&[]), &["[]"]).await;
    let swapped = ShardRef { layer: good[1].layer.clone(), object: good[0].object.clone() };
    case.refused(output(&[&good[0], &swapped]), &["mid_block", "down_blocks.1"]).await;

    let fewer = shard(2, [3, 8, 8, 128], Dtype::F16).await;
    case.refused(output(&[&good[0], &fewer]), &["bytes", "expected"]).await;
    // As many numbers on another map.
    let turned = shard(2, [4, 4, 16, 128], Dtype::F16).await;
    case.refused(output(&[&good[0], &turned]), &["activations_4x16", "activations_8x8"]).await;
    let other = shard(2, [4, 8, 8, 128], Dtype::I16).await;
    case.refused(output(&[&good[0], &other]), &["I16", "F16"]).await;
    // Half of it is all that a job of inputs stores.
    let case = Case { contents: Contents::Inputs, ..case };
    case.refused(output(&[&good[0], &good[1]]), &["bytes", "expected"]).await;
}

/// A job of two buckets: the first layers' maps are 8×8 in one and 4×16 in the other, latents 32×32 and 16×64.
async fn in_buckets(kind: Kind) -> Case {
    let mut case = Case::new(|_| kind).await;
    let map = |height, width| Map { height, width };
    for layer in &mut case.plan.layers {
        (layer.height, layer.width, layer.channels, layer.maps) = (8, 8, 2, vec![map(8, 8), map(4, 16)]);
    }
    let bucket = |(latent_height, latent_width)| Bucket { latent_height, latent_width, ..Bucket::default() };
    case.plan.buckets = [(32, 32), (16, 64)].map(bucket).to_vec();
    case.plan.synthesise_bytes = 1 << 20;
    case
}

/// An object of zeros, whose header is as long as a shard's: what follows the i64 begins at a multiple of 64 bytes.
fn zeros(tensors: &[(String, Dtype, Vec<usize>)]) -> Vec<u8> {
    let entries = tensors.iter().map(|(name, dtype, shape)| (name.as_str(), *dtype, shape.as_slice()));
    let mut bytes = serialize_header(entries, &BTreeMap::new()).expect("a header");
    let len = |of: &dyn Fn(Dtype) -> bool| -> usize {
        let tensors = tensors.iter().filter(|(_, dtype, _)| of(*dtype));
        tensors.filter_map(|(_, dtype, shape)| dtype.bytes(shape)).sum::<u64>() as usize
    };
    let integers = len(&|dtype| dtype == Dtype::I64);
    bytes.resize((bytes.len() + integers).next_multiple_of(64) - integers, b' ');
    let json = bytes.len() as u64 - 8;
    bytes[..8].copy_from_slice(&json.to_le_bytes());
    bytes.resize(bytes.len() + len(&|_| true), 0);
    bytes
}

#[tokio::test]
async fn a_shard_holds_each_sample_in_one_bucket() {
    let range = SampleRange { start: 96, end: 100 };
    let layers: Vec<String> = {
        let job = Job::new();
        let plan = crate::plan::plan(&job.spec).await.expect("plans");
        plan.layers[1..3].iter().map(|layer| layer.name.clone()).collect()
    };
    let task = CaptureTask { round: 0, range: Some(range), layers, blocks: Vec::new() };
    let case = in_buckets(Kind::Capture(task)).await;
    // Samples by bucket, with the map that their tensors have.
    let shard = async |layer: usize, parts: &[(usize, usize, [usize; 2])]| {
        let tensors = parts.iter().flat_map(|(bucket, samples, [height, width])| {
            let activations = vec![*samples, 2 * height * width + 1, 2];
            [
                (format!("timestep.{bucket}"), Dtype::I64, vec![*samples]),
                (format!("activations_{height}x{width}.{bucket}"), Dtype::F16, activations),
            ]
        });
        let name = &case.plan.layers[layer].name;
        let bytes = zeros(&tensors.collect::<Vec<_>>());
        let object = case.objects.put(&keys::shard(0, name, &range, &case.attempt), bytes).await.expect("writes");
        ShardRef { layer: name.clone(), object: Some(object) }
    };
    let output = |shards: &[&ShardRef]| {
        Output::Capture(CaptureOutput { shards: shards.iter().map(|shard| (*shard).clone()).collect() })
    };
    let both = [(0, 3, [8, 8]), (1, 1, [4, 16])];
    let good = [shard(1, &both).await, shard(2, &both).await];
    case.verify(output(&[&good[0], &good[1]])).await.expect("both");
    let alone = [shard(1, &[(1, 4, [4, 16])]).await, shard(2, &[(1, 4, [4, 16])]).await];
    case.verify(output(&[&alone[0], &alone[1]])).await.expect("one bucket alone");
    shard(1, &both).await;
    for (parts, expected) in [
        (&[(0, 2, [8, 8]), (1, 2, [4, 16])][..], &["[3, 1]", "[2, 2]", "the same in all layers"][..]),
        (
            &[(0, 3, [8, 8]), (1, 1, [16, 4])],
            &["activations_16x4.1 F16 [1, 129, 2]", "activations_4x16.1 F16 [1, 129, 2]"],
        ),
        (&[(0, 3, [8, 8])], &["bytes", "expected"]),
        (&[(0, 3, [8, 8]), (2, 1, [4, 16])], &["4 samples in 2 buckets", "timestep.2"]),
        (&[(0, 3, [8, 8]), (1, 2, [4, 16])], &["4 samples in 2 buckets"]),
    ] {
        case.refused(output(&[&good[0], &shard(2, parts).await]), expected).await;
    }
}

#[tokio::test]
async fn latents_of_several_buckets_are_checked_by_bucket() {
    let range = SampleRange { start: 16, end: 20 };
    let case = in_buckets(Kind::Synthesise(SynthesiseTask { range: Some(range) })).await;
    let key = keys::latents(&range, &case.attempt);
    let output = async |parts: &[(usize, [usize; 4])], of_buckets: usize| {
        let mut tensors = vec![
            ("prompt".to_owned(), Dtype::I64, vec![4]),
            ("prompts".to_owned(), Dtype::I64, vec![5]),
            ("embeddings".to_owned(), Dtype::F16, vec![5, 7, 8]),
        ];
        tensors.extend((of_buckets > 0).then(|| ("bucket".to_owned(), Dtype::I64, vec![of_buckets])));
        tensors.extend(parts.iter().map(|(bucket, shape)| (format!("latents.{bucket}"), Dtype::F16, shape.to_vec())));
        let object = case.objects.put(&key, zeros(&tensors)).await.expect("writes");
        Output::Synthesise(SynthesiseOutput { latents: Some(object) })
    };
    let both = [(0, [1, 3, 32, 32]), (1, [3, 3, 16, 64])];
    case.verify(output(&both, 4).await).await.expect("both");
    case.verify(output(&[(0, [4, 3, 32, 32])], 4).await).await.expect("one bucket alone");
    case.refused(output(&both, 0).await, &["no tensor `bucket`"]).await;
    case.refused(output(&both, 3).await, &["`bucket` is I64 [3]", "[4]"]).await;
    case.refused(output(&[(0, [1, 3, 32, 32]), (1, [4, 3, 16, 64])], 4).await, &["latents.1", "[3, 3, 16, 64]"]).await;
    case.refused(output(&[(0, [1, 3, 32, 32]), (1, [3, 3, 64, 16])], 4).await, &["[3, 3, 64, 16]"]).await;
    case.refused(output(&[(0, [4, 3, 32, 32]), (2, [1, 3, 16, 64])], 4).await, &["latents.2"]).await;
}

#[tokio::test]
async fn evaluation_parts_are_what_was_asked_for() {
    let noise = |_: &JobPlan| {
        let part = evaluate_task::Part::Noise(SampleRange { start: 0, end: 2 });
        Kind::Evaluate(EvaluateTask { part: Some(part), output: Vec::new(), rounds: Vec::new() })
    };
    let case = Case::new(noise).await;
    let key = keys::evaluation(&case.task, &case.attempt);
    let part = async |timesteps: &[i64], sums: &[f64], n: usize| {
        let shape = [n];
        let names = ["energy", "removed_error", "student_error"];
        let tensors = names.map(|name| (name, Dtype::F64, &shape[..]));
        let timestep = [("timestep", Dtype::I64, &shape[..])];
        let mut bytes = serialize_header(tensors.into_iter().chain(timestep), &BTreeMap::new()).expect("a header");
        bytes.extend((0..3).flat_map(|_| sums.iter().flat_map(|number| number.to_le_bytes())));
        bytes.extend(timesteps.iter().flat_map(|number| number.to_le_bytes()));
        let object = case.objects.put(&key, bytes).await.expect("writes");
        Output::Evaluate(EvaluateOutput { part: Some(object) })
    };
    case.verify(part(&[1, 999], &[2.0, 3.0], 2).await).await.expect("a part");
    case.refused(part(&[1, 999], &[2.0, f64::INFINITY], 2).await, &["energy", "inf at 1"]).await;
    case.refused(part(&[1, 999], &[2.0, -1.0], 2).await, &["energy", "-1", "sum of squares"]).await;
    case.refused(part(&[1, -1], &[2.0, 3.0], 2).await, &["timestep", "-1"]).await;
    case.refused(part(&[1, 2, 3], &[2.0, 3.0, 4.0], 3).await, &["number of samples", "3", "2"]).await;

    // Of one sample, what was found of so many layers.
    let of_layers = async |layers: usize, timestep: i64| {
        let (n, one, table) = ([2], [1], [layers, 1]);
        let integers = [("timestep", Dtype::I64, &n[..]), ("layer_timestep", Dtype::I64, &one[..])];
        let sums = ["energy", "removed_error", "student_error"].map(|name| (name, Dtype::F64, &n[..]));
        let energy = [("layer_energy", Dtype::F64, &one[..])];
        let rows = ["alone_error", "stream_energy", "stream_error"].map(|name| (name, Dtype::F64, &table[..]));
        let tensors = integers.into_iter().chain(sums).chain(energy).chain(rows);
        let mut bytes = serialize_header(tensors, &BTreeMap::new()).expect("a header");
        bytes.extend([1, 999, timestep].iter().flat_map(|number: &i64| number.to_le_bytes()));
        bytes.resize(bytes.len() + (7 + 3 * layers) * 8, 0);
        let object = case.objects.put(&key, bytes).await.expect("writes");
        Output::Evaluate(EvaluateOutput { part: Some(object) })
    };
    let layers = case.plan.layers.len();
    case.verify(of_layers(layers, 5).await).await.expect("a part");
    case.refused(of_layers(layers + 1, 5).await, &["number of layers", "8", "7"]).await;
    case.refused(of_layers(layers, -5).await, &["timestep", "-5"]).await;

    let pictures = |_: &JobPlan| {
        let part = evaluate_task::Part::Pictures(SampleRange { start: 0, end: 1 });
        Kind::Evaluate(EvaluateTask { part: Some(part), output: Vec::new(), rounds: Vec::new() })
    };
    let case = Case { kind: pictures(&case.plan), ..case };
    let part = async |prompt: i64, side: usize| {
        let shape = [1, 3, side, side];
        let tensors = ["teacher", "student", "removed"].map(|name| (name, Dtype::F32, &shape[..]));
        let prompts = [("prompt", Dtype::I64, &[1][..])];
        let mut bytes = serialize_header(prompts.into_iter().chain(tensors), &BTreeMap::new()).expect("a header");
        bytes.extend(prompt.to_le_bytes());
        bytes.resize(bytes.len() + 9 * side * side * 4, 0);
        let object = case.objects.put(&key, bytes).await.expect("writes");
        Output::Evaluate(EvaluateOutput { part: Some(object) })
    };
    case.verify(part(36, 32).await).await.expect("pictures of the latents' size");
    case.verify(part(36, 256).await).await.expect("pictures of an autoencoder");
    case.refused(part(37, 32).await, &["prompt", "37", "0 to 36"]).await;
    case.refused(part(0, 48).await, &["48×48", "32×32"]).await;
    case.refused(part(0, 16).await, &["bytes", "expected"]).await;
    case.refused(part(0, 300).await, &["bytes", "expected"]).await;
}
