use std::collections::BTreeMap;

use deltaconv_proto::ids::{AttemptId, JobId, TaskId};
use deltaconv_proto::objects::Objects;
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::v1::done::Output;
use deltaconv_proto::v1::task_spec::Kind;
use deltaconv_proto::v1::{
    CaptureOutput, CaptureTask, DistillOutput, DistillTask, EvaluateOutput, EvaluateTask, JobPlan, ObjectRef,
    SampleRange, ShardRef, evaluate_task,
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
}

impl Case {
    async fn new(kind: impl FnOnce(&JobPlan) -> Kind) -> Self {
        let job = Job::new();
        let plan = crate::plan::plan(&job.spec).await.expect("plans");
        let objects = Objects::open(&job.spec.output_url).expect("opens");
        let task = TaskId::of(&JobId::new("tiny-1").expect("valid"), "r0/evaluate/noise-0").expect("valid");
        let attempt = AttemptId::new("e3-1").expect("valid");
        let kind = kind(&plan);
        Self { job, objects, plan, task, attempt, kind }
    }

    async fn verify(&self, output: Output) -> Result<(), Error> {
        let Self { plan, task, attempt, kind, .. } = self;
        verify(&self.objects, &output, &Expectation { plan, task, attempt, kind }).await
    }

    async fn refused(&self, output: Output, parts: &[&str]) {
        let error = self.verify(output).await.expect_err(&format!("accepted: {parts:?}"));
        let message = error.to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
        assert!(error.is_of_output(), "{message}");
    }
}

fn distilled(object: ObjectRef) -> Output {
    Output::Distill(DistillOutput { block: Some(object), relative_error: 0.2 })
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
    let not_a_number = DistillOutput { block: Some(object), relative_error: f64::NAN };
    case.refused(Output::Distill(not_a_number), &["relative error", "NaN"]).await;
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
async fn shards_are_checked_by_size_and_header() {
    let range = SampleRange { start: 96, end: 100 };
    let capture = |plan: &JobPlan| {
        let layers = plan.layers[1..3].iter().map(|layer| layer.name.clone()).collect();
        Kind::Capture(CaptureTask { round: 0, range: Some(range), layers })
    };
    let case = Case::new(capture).await;
    let shard = async |layer: usize, map: [usize; 4], dtype: Dtype| {
        let layer = &case.plan.layers[layer];
        let samples = [map[0]];
        let tensors = [("timestep", Dtype::I64, &samples[..]), ("input", dtype, &map), ("output", dtype, &map)];
        let mut bytes = serialize_header(tensors, &BTreeMap::new()).expect("a header");
        bytes.resize(bytes.len() + map[0] * 8 + 2 * map.iter().product::<usize>() * dtype.size() as usize, 0);
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
    let turned = shard(2, [4, 8, 128, 8], Dtype::F16).await;
    case.refused(output(&[&good[0], &turned]), &["[4, 8, 128, 8]", "[4, 8, 8, 128]"]).await;
    let other = shard(2, [4, 8, 8, 128], Dtype::I16).await;
    case.refused(output(&[&good[0], &other]), &["I16", "F16"]).await;
}

#[tokio::test]
async fn evaluation_parts_are_what_was_asked_for() {
    let noise = |_: &JobPlan| {
        let part = evaluate_task::Part::Noise(SampleRange { start: 0, end: 2 });
        Kind::Evaluate(EvaluateTask { part: Some(part) })
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

    let pictures = |_: &JobPlan| {
        let part = evaluate_task::Part::Pictures(SampleRange { start: 0, end: 1 });
        Kind::Evaluate(EvaluateTask { part: Some(part) })
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
