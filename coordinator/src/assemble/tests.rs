use std::collections::BTreeMap;

use deltaconv_proto::objects::Objects;
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::v1::{JobPlan, LayerPlan, ObjectRef};
use deltaconv_proto::{block, digest, keys};

use super::tensors::Tensors;
use super::{Assembled, LayerBlock, assemble};
use crate::plan::fixture::Job;
use crate::plan::plan;
use deltaconv_proto::description::Description;

/// A block whose numbers depend on the layer and on `salt` in its metadata alone.
pub(crate) fn made_up_block(layer: &LayerPlan, salt: &str) -> Vec<u8> {
    let tensors = block::tensors(layer);
    let curve = "[[100, 0.5, 0.6], [200, 0.1, 0.2]]".to_owned();
    let metadata = BTreeMap::from([
        ("relative_error".to_owned(), "0.2".to_owned()),
        ("curve".to_owned(), curve),
        ("salt".to_owned(), salt.to_owned()),
    ]);
    let entries = tensors.iter().map(|(name, shape)| (name.as_str(), Dtype::F32, shape.as_slice()));
    let mut bytes = serialize_header(entries, &metadata).expect("a header");
    for i in 0..layer.parameters {
        let number = (i as f32 * 0.37 + layer.index as f32).sin();
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

/// The job's blocks, written as attempts write them.
pub(crate) async fn write_blocks(objects: &Objects, plan: &JobPlan, attempt: &str) -> Vec<LayerBlock> {
    let attempt = deltaconv_proto::ids::AttemptId::new(attempt).expect("valid");
    let mut blocks = Vec::new();
    for layer in &plan.layers {
        let key = keys::block(0, &layer.name, &attempt);
        let object = objects.put(&key, made_up_block(layer, attempt.as_str())).await.expect("writes");
        blocks.push((layer.clone(), object));
    }
    blocks
}

async fn assembled(job: &Job, attempt: &str) -> (JobPlan, Assembled) {
    let plan = plan(&job.spec).await.expect("plans");
    let objects = Objects::open(&job.spec.output_url).expect("opens");
    let mut blocks = write_blocks(&objects, &plan, attempt).await;
    // The order in which blocks were committed must not matter.
    blocks.rotate_left(3);
    let assembled = assemble(&job.spec, &plan, &blocks).await.expect("assembles");
    (plan, assembled)
}

fn output(job: &Job, file: &str) -> Vec<u8> {
    std::fs::read(job.path("job/output").join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

#[tokio::test]
async fn the_student_is_the_teacher_with_blocks_in_place_of_attention() {
    let job = Job::new();
    let (plan, assembled) = assembled(&job, "a1").await;

    let teacher_bytes = std::fs::read(job.path("teacher/unet/diffusion_pytorch_model.safetensors")).expect("reads");
    let student_bytes = output(&job, "unet/diffusion_pytorch_model.safetensors");
    let teacher = Tensors::parse(&teacher_bytes).expect("a teacher");
    let student = Tensors::parse(&student_bytes).expect("a student");
    let mut frozen = 0;
    for (name, info) in &teacher.header.tensors {
        if name.contains(".attn1.") {
            assert!(!student.header.tensors.contains_key(name), "{name} is still there");
            continue;
        }
        let kept = &student.header.tensors[name];
        assert_eq!((kept.dtype, &kept.shape), (info.dtype, &info.shape), "{name}");
        assert!(student.bytes(name) == teacher.bytes(name), "{name} changed");
        frozen += 1;
    }
    let mut new = 0;
    for layer in &plan.layers {
        let bytes = made_up_block(layer, "a1");
        let trained = Tensors::parse(&bytes).expect("a block");
        for (name, shape) in block::tensors(layer) {
            let published = format!("{}{name}", block::prefix(&layer.name));
            assert_eq!(student.header.tensors[&published].shape, shape);
            assert!(student.bytes(&published) == trained.bytes(&name), "{published} is not the trained one");
            new += 1;
        }
    }
    assert_eq!(student.header.tensors.len(), frozen + new);
    assert_eq!(student.header.metadata, teacher.header.metadata);
    assert!(student.header.tensors.values().all(|info| info.start % info.dtype.size() == 0), "a tensor is unaligned");

    let blocks_bytes = output(&job, "blocks.safetensors");
    let alone = Tensors::parse(&blocks_bytes).expect("blocks");
    assert_eq!(alone.header.tensors.len(), new);
    for name in alone.header.tensors.keys() {
        assert!(alone.bytes(name) == student.bytes(name), "{name}");
    }

    for file in ["unet/config.json", "scheduler/scheduler_config.json", "prompts.json", "prompt_embeddings.safetensors"]
    {
        assert_eq!(output(&job, file), std::fs::read(job.path("teacher").join(file)).expect("reads"), "{file}");
    }
    assert!(!job.path("job/output/latents.safetensors").exists());

    let description: Description = serde_json::from_slice(&output(&job, "deltaconv.json")).expect("a description");
    assert_eq!(description.teacher.digest, digest::of(&teacher_bytes));
    assert_eq!(description.layers.len(), plan.layers.len());
    assert_eq!(assembled.teacher_digest, digest::of(&teacher_bytes));
    assert_eq!(assembled.model_digest, digest::of(&student_bytes));
    assert_eq!(assembled.blocks_digest, digest::of(&blocks_bytes));
    for ObjectRef { key, size, digest } in &assembled.objects {
        let bytes = std::fs::read(job.path("job").join(key)).expect("written");
        assert_eq!((*size, digest), (bytes.len() as u64, &digest::of(&bytes)), "{key}");
    }
    assert_eq!(assembled.objects.last().map(|object| object.key.as_str()), Some("output/deltaconv.json"));
}

#[tokio::test]
async fn the_same_blocks_make_the_same_bytes() {
    let job = Job::new();
    let (plan, first) = assembled(&job, "a1").await;
    let left = job.path("job/output/blocks.safetensors#1");
    std::fs::write(&left, b"half").expect("writes");
    // Other attempts found the same weights, and wrote other metadata.
    let (_, again) = assembled(&job, "b7").await;
    assert_eq!(first, again);
    assert!(!left.exists(), "what a killed upload left is still there");

    let objects = Objects::open(&job.spec.output_url).expect("opens");
    let mut blocks = write_blocks(&objects, &plan, "c1").await;
    let mut changed = made_up_block(&plan.layers[0], "c1");
    let last = changed.len() - 1;
    changed[last] ^= 1;
    blocks[0].1 = objects.put(&blocks[0].1.key, changed).await.expect("writes");
    let other = assemble(&job.spec, &plan, &blocks).await.expect("assembles");
    assert_ne!(other.blocks_digest, first.blocks_digest);
}

#[tokio::test]
async fn what_changed_since_it_was_planned_or_committed_stops_assembly() {
    let job = Job::new();
    let plan = plan(&job.spec).await.expect("plans");
    let objects = Objects::open(&job.spec.output_url).expect("opens");
    let blocks = write_blocks(&objects, &plan, "a1").await;
    let refused = async |blocks: &[LayerBlock]| {
        let message = assemble(&job.spec, &plan, blocks).await.expect_err("assembled").to_string();
        assert!(!job.path("job/output/unet/diffusion_pytorch_model.safetensors").exists(), "half a model is visible");
        assert!(!job.path("job/output/deltaconv.json").exists(), "a model that isn't there is described");
        message
    };

    let message = refused(&blocks[1..]).await;
    assert!(message.contains("down_blocks.0"), "{message}");

    let path = job.path("job").join(&blocks[2].1.key);
    let intact = std::fs::read(&path).expect("reads");
    let mut flipped = intact.clone();
    flipped[5000] ^= 4;
    std::fs::write(&path, flipped).expect("writes");
    let message = refused(&blocks).await;
    assert!(message.contains(&blocks[2].1.key) && message.contains(&blocks[2].1.digest), "{message}");
    std::fs::write(&path, intact).expect("writes");

    job.replace_in_header("unet/diffusion_pytorch_model.safetensors", "\"format\":\"pt\"", "\"format\":\"tf\"");
    let message = refused(&blocks).await;
    assert!(
        message.contains("changed since the job was planned") && message.contains(&plan.header_digest),
        "{message}"
    );
}
