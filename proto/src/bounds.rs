//! What a job's spec and plan may say, whoever made them: a coordinator reads them from its state, from snapshots and manifests,
//! and a worker is told them. Planning is far stricter; within these bounds counting doesn't overflow, and what is counted fits in
//! memory.

use std::collections::BTreeSet;

use crate::code::Code;
use crate::v1::evaluate_task::Part;
use crate::v1::task_spec::Kind;
use crate::v1::{JobPlan, JobSpec, LayerPlan, Recipe, SampleRange, ShardOfRange};

/// Of samples, latents and prompts; steps have a hundred times as many.
const MOST: u32 = 1 << 24;
const MAX_STEPS: u32 = 1 << 30;
const MAX_LAYERS: usize = 1 << 13;
const MAX_CHANNELS: u32 = 1 << 18;
/// Of a map, of latents, and of pictures.
const MAX_SIDE: u32 = 1 << 17;
const MAX_KERNEL: u32 = 255;
const MAX_SCALES: usize = 16;
const MAX_INTER_RATIO: f64 = 16.0;
const MAX_BUCKETS: usize = 64;
const MAX_ROUNDS: u32 = 64;

/// A number that no job has.
#[derive(Debug, thiserror::Error)]
#[error("the job's {what} is {found}, and {most} is the most")]
pub struct Error {
    what: &'static str,
    found: String,
    most: String,
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        Code::VersionsDiffer
    }
}

/// Whether the numbers of a job are such as jobs have.
///
/// # Errors
/// The first that isn't.
pub fn check(spec: &JobSpec, plan: &JobPlan) -> Result<(), Error> {
    if let Some(recipe) = &spec.recipe {
        check_recipe(recipe)?;
    }
    if let Some(evaluation) = spec.evaluation {
        within("evaluation.samples", evaluation.samples, MOST)?;
        within("evaluation.prompts", evaluation.prompts, MOST)?;
        within("evaluation.ddim_steps", evaluation.ddim_steps, MOST)?;
    }
    for (what, found, most) in [
        ("number of latents", plan.latents, MOST),
        ("number of prompts", plan.prompts, MOST),
        ("latents' channels", plan.latent_channels, MAX_CHANNELS),
        ("latents' height", plan.latent_height, MAX_SIDE),
        ("latents' width", plan.latent_width, MAX_SIDE),
        ("pictures' height", plan.picture_height, MAX_SIDE),
        ("pictures' width", plan.picture_width, MAX_SIDE),
    ] {
        within(what, found, most)?;
    }
    within("number of layers", plan.layers.len(), MAX_LAYERS)?;
    within("number of sizes", plan.buckets.len(), MAX_BUCKETS)?;
    for bucket in &plan.buckets {
        for side in [bucket.latent_height, bucket.latent_width, bucket.picture_height, bucket.picture_width] {
            within("side of a size", side, MAX_SIDE)?;
        }
    }
    plan.layers.iter().try_for_each(check_layer)?;
    let names: BTreeSet<&str> = plan.layers.iter().map(|layer| layer.name.as_str()).collect();
    within("number of layers of one name", 1 + plan.layers.len() - names.len(), 1)
}

fn check_layer(layer: &LayerPlan) -> Result<(), Error> {
    within("layer's channels", layer.channels, MAX_CHANNELS)?;
    within("kernel size", layer.kernel_size, MAX_KERNEL)?;
    let maps = layer.maps.iter().flat_map(|map| [map.height, map.width]);
    [layer.height, layer.width].into_iter().chain(maps).try_for_each(|side| within("side of a map", side, MAX_SIDE))?;
    within("number of maps", layer.maps.len(), MAX_BUCKETS)?;
    within("number of scales", layer.scales.len(), MAX_SCALES)?;
    layer.scales.iter().try_for_each(|scale| within("scale", *scale, 1.0))?;
    within("inter_ratio", layer.inter_ratio, MAX_INTER_RATIO)
}

/// Whether what a task is told is such as tasks are told.
///
/// # Errors
/// As [`check`].
pub fn check_task(kind: &Kind, latents: &[ShardOfRange]) -> Result<(), Error> {
    match kind {
        Kind::Synthesise(task) => check_ranges(&task.range)?,
        Kind::Capture(task) => check_ranges(&task.range)?,
        Kind::Distill(task) => {
            within("steps of a training", task.steps, MAX_STEPS)?;
            within("start_inter_ratio", task.start_inter_ratio, MAX_INTER_RATIO)?;
            task.layer.iter().try_for_each(check_layer)?;
            check_ranges(task.shards.iter().filter_map(|shard| shard.range.as_ref()))?;
        }
        Kind::Finetune(_) => {}
        Kind::Evaluate(task) => match &task.part {
            Some(Part::Noise(range) | Part::Pictures(range)) => check_range(range)?,
            None => {}
        },
    }
    check_ranges(latents.iter().filter_map(|part| part.range.as_ref()))
}

fn check_ranges<'a>(ranges: impl IntoIterator<Item = &'a SampleRange>) -> Result<(), Error> {
    ranges.into_iter().try_for_each(check_range)
}

fn check_range(range: &SampleRange) -> Result<(), Error> {
    within("end of a range", range.end, 2 * MOST)?;
    within("begin of a range", range.start, range.end)
}

fn check_recipe(recipe: &Recipe) -> Result<(), Error> {
    for (what, found, most) in [
        ("recipe.samples", recipe.samples, MOST),
        ("recipe.held_out_samples", recipe.held_out_samples, MOST),
        ("recipe.steps", recipe.steps, MAX_STEPS),
        ("recipe.round_steps", recipe.round_steps, MAX_STEPS),
        ("recipe.warmup_steps", recipe.warmup_steps, MAX_STEPS),
        ("recipe.batch", recipe.batch, MOST),
        ("recipe.rounds", recipe.rounds, MAX_ROUNDS),
    ] {
        within(what, found, most)?;
    }
    if let Some(finetune) = recipe.finetune {
        within("recipe.finetune.steps", finetune.steps, MAX_STEPS)?;
        within("recipe.finetune.batch", finetune.batch, MOST)?;
    }
    within("number of scales", recipe.scales.len(), MAX_SCALES)
}

/// NaN and what is below 0 is within nothing.
fn within<T: PartialOrd + Default + Copy + ToString>(what: &'static str, found: T, most: T) -> Result<(), Error> {
    match (T::default()..=most).contains(&found) {
        true => Ok(()),
        false => Err(Error { what, found: found.to_string(), most: most.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_no_job_has_are_refused_by_name() {
        let layer =
            |inter_ratio| LayerPlan { inter_ratio, channels: 320, scales: vec![1.0, 0.5], ..LayerPlan::default() };
        let plan = |layers: &[LayerPlan]| JobPlan { layers: layers.to_vec(), ..JobPlan::default() };
        let recipe = |rounds| JobSpec { recipe: Some(Recipe { rounds, ..Recipe::default() }), ..JobSpec::default() };
        assert!(check(&recipe(8), &plan(&[layer(0.5)])).is_ok());
        for (spec, plan, named) in [
            (recipe(u32::MAX), plan(&[]), "recipe.rounds is 4294967295"),
            (recipe(0), plan(&[layer(f64::NAN)]), "inter_ratio is NaN"),
            (recipe(0), plan(&[layer(-1.0)]), "inter_ratio is -1"),
            (recipe(0), plan(&[layer(0.5), layer(0.5)]), "layers of one name is 2"),
            (recipe(0), JobPlan { prompts: u32::MAX, ..JobPlan::default() }, "number of prompts"),
        ] {
            let error = check(&spec, &plan).expect_err(named).to_string();
            assert!(error.contains(named), "{error}");
        }
        assert!(check_range(&SampleRange { start: 3, end: 2 }).is_err());
    }
}
