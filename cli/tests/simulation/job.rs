//! The jobs that are simulated, as small as jobs get, and what their tasks write.

use deltaconv_proto::ids::{AttemptId, TaskId};
use deltaconv_proto::v1::{self, task_spec};
use deltaconv_proto::{digest, keys};

use crate::world::World;

/// A job that takes further steps as the dice have it.
pub(crate) fn draw(world: &World, number: u64) -> (v1::JobSpec, v1::JobPlan) {
    let latents = 20;
    let synthesis = v1::Synthesis { latents, ..v1::Synthesis::default() };
    let finetune = v1::Finetune { steps: 10, batch: 2, learning_rate: 1e-3, features: 0.1 };
    let recipe = v1::Recipe {
        samples: 2 * world.draw(1..6) as u32,
        held_out_samples: 2,
        shard_samples: 2,
        steps: 30,
        batch: 2,
        rounds: u32::from(world.chance(0.3)),
        round_steps: 20,
        teacher_share: 0.5,
        finetune: world.chance(0.3).then_some(finetune),
        ..v1::Recipe::default()
    };
    let spec = v1::JobSpec {
        name: "tiny".into(),
        output_url: format!("file:///out/{number}"),
        recipe: Some(recipe),
        evaluation: Some(v1::Evaluation { samples: 2, prompts: 2, ddim_steps: 2, guidance: 2.0 }),
        data: world.chance(0.3).then(|| v1::Data { synthesis: Some(synthesis), ..v1::Data::default() }),
        retention: world.chance(0.5).then(|| "results".into()),
        ..v1::JobSpec::default()
    };
    let layers = world.draw(1..6) as u32;
    let layer = |index: u32| v1::LayerPlan { index, name: format!("layer{index}"), ..v1::LayerPlan::default() };
    (spec, v1::JobPlan { latents, layers: (0..layers).map(layer).collect(), ..v1::JobPlan::default() })
}

/// Steps that a task takes.
pub(crate) fn steps(kind: &task_spec::Kind) -> u64 {
    match kind {
        task_spec::Kind::Synthesise(_) => 4,
        task_spec::Kind::Capture(_) => 6,
        task_spec::Kind::Distill(task) => u64::from(task.steps),
        task_spec::Kind::Finetune(_) => 30,
        task_spec::Kind::Evaluate(_) => 5,
    }
}

/// Where a task goes on.
pub(crate) fn resume(kind: &task_spec::Kind) -> Option<&v1::Checkpoint> {
    match kind {
        task_spec::Kind::Distill(task) => task.resume.as_ref(),
        task_spec::Kind::Finetune(task) => task.resume.as_ref(),
        task_spec::Kind::Synthesise(_) | task_spec::Kind::Capture(_) | task_spec::Kind::Evaluate(_) => None,
    }
}

/// Any object.
pub(crate) fn object(key: &str) -> v1::ObjectRef {
    v1::ObjectRef { key: key.into(), size: 100, digest: digest::of(key.as_bytes()) }
}

/// What the attempt says when it is done. Each output counts as one sample, so that records tell how often a task's was
/// accepted.
pub(crate) fn done(kind: &task_spec::Kind, task: &TaskId, attempt: &AttemptId) -> v1::Done {
    let output = match kind {
        task_spec::Kind::Synthesise(synthesise) => {
            let key = keys::latents(&synthesise.range.unwrap_or_default(), attempt);
            v1::done::Output::Synthesise(v1::SynthesiseOutput { latents: Some(object(&key)) })
        }
        task_spec::Kind::Capture(capture) => {
            let key = |layer: &str| keys::shard(capture.round, layer, &capture.range.unwrap_or_default(), attempt);
            let shard = |layer: &String| v1::ShardRef { layer: layer.clone(), object: Some(object(&key(layer))) };
            v1::done::Output::Capture(v1::CaptureOutput { shards: capture.layers.iter().map(shard).collect() })
        }
        task_spec::Kind::Distill(distill) => {
            let layer = distill.layer.as_ref().map_or("", |layer| &layer.name);
            let block = Some(object(&keys::block(distill.round, layer, attempt)));
            let output = v1::DistillOutput { block, relative_error: 0.1, ..v1::DistillOutput::default() };
            v1::done::Output::Distill(output)
        }
        task_spec::Kind::Finetune(finetune) => {
            let block = |of: &v1::BlockRef| {
                let object = Some(object(&keys::finetuned(&of.layer, attempt)));
                v1::BlockRef { object, ..of.clone() }
            };
            let blocks = finetune.blocks.iter().map(block).collect();
            v1::done::Output::Finetune(v1::FinetuneOutput { blocks, ..v1::FinetuneOutput::default() })
        }
        task_spec::Kind::Evaluate(_) => {
            let part = Some(object(&keys::evaluation(task, attempt)));
            v1::done::Output::Evaluate(v1::EvaluateOutput { part })
        }
    };
    v1::Done { samples: 1, output: Some(output), ..v1::Done::default() }
}

/// Whether all that was written is this attempt's.
pub(crate) fn is_of(done: &v1::Done, attempt: &AttemptId) -> bool {
    let objects: Vec<&v1::ObjectRef> = match &done.output {
        None => return false,
        Some(v1::done::Output::Synthesise(output)) => output.latents.iter().collect(),
        Some(v1::done::Output::Capture(output)) => {
            output.shards.iter().filter_map(|shard| shard.object.as_ref()).collect()
        }
        Some(v1::done::Output::Distill(output)) => output.block.iter().collect(),
        Some(v1::done::Output::Finetune(output)) => {
            output.blocks.iter().filter_map(|block| block.object.as_ref()).collect()
        }
        Some(v1::done::Output::Evaluate(output)) => output.part.iter().collect(),
    };
    objects.iter().all(|object| object.key.contains(attempt.as_str()))
}
