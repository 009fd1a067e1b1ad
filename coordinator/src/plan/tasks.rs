//! How a job's samples are cut into tasks.

use deltaconv_proto::v1::evaluate_task::Part;
use deltaconv_proto::v1::{JobPlan, JobSpec, Recipe, SampleRange};

/// Held-out samples of one part of the evaluation.
const NOISE_SAMPLES: u32 = 32;
/// Latents that one task samples: each takes the denoiser through all steps.
const SAMPLED: u32 = 16;
/// Images that one task encodes.
const ENCODED: u32 = 64;
/// Prompts of one part of the evaluation: each takes the denoiser through all DDIM steps, twice.
const PICTURE_PROMPTS: u32 = 2;

/// The ranges of samples that capture tasks record, in sample order. No range holds both training and held-out
/// samples, so that a shard is either read by training or not.
pub fn capture_ranges(spec: &JobSpec) -> Vec<SampleRange> {
    let Some(recipe) = &spec.recipe else { return Vec::new() };
    let end = recipe.samples.saturating_add(recipe.held_out_samples);
    let mut ranges = cut(0, recipe.samples, recipe.shard_samples);
    ranges.extend(cut(recipe.samples, end, recipe.shard_samples));
    ranges
}

/// Whether rounds after the first train on what the first one recorded of this range, too.
pub fn is_mixed_in(spec: &JobSpec, range: &SampleRange) -> bool {
    spec.recipe.as_ref().is_some_and(|recipe| recipe.is_mixed_in(range))
}

/// The ranges of latents that synthesise tasks make, in order; none for a job with ready latents.
pub fn synthesis_ranges(spec: &JobSpec, plan: &JobPlan) -> Vec<SampleRange> {
    match &spec.data {
        Some(data) if data.synthesis.is_some() => cut(0, plan.latents, SAMPLED),
        Some(data) if data.images.is_some() => cut(0, plan.latents, ENCODED),
        _ => Vec::new(),
    }
}

/// The parts of the evaluation, one task each.
pub fn evaluation_parts(spec: &JobSpec) -> Vec<Part> {
    let Some(evaluation) = &spec.evaluation else { return Vec::new() };
    let noise = cut(0, evaluation.samples, NOISE_SAMPLES).into_iter().map(Part::Noise);
    let pictures = cut(0, evaluation.prompts, PICTURE_PROMPTS).into_iter().map(Part::Pictures);
    noise.chain(pictures).collect()
}

/// How many tasks a job has, without making them.
pub(crate) fn count_tasks(spec: &JobSpec, plan: &JobPlan) -> u64 {
    let pieces = |samples: u32, most: u32| u64::from(samples.div_ceil(most.max(1)));
    let recipe = spec.recipe.clone().unwrap_or_default();
    let captures = pieces(recipe.samples, recipe.shard_samples) + pieces(recipe.held_out_samples, recipe.shard_samples);
    let of_rounds = (1 + u64::from(recipe.rounds)) * (captures + plan.layers.len() as u64);
    let evaluation = spec.evaluation.unwrap_or_default();
    let parts = pieces(evaluation.samples, NOISE_SAMPLES) + pieces(evaluation.prompts, PICTURE_PROMPTS);
    pieces(plan.latents, SAMPLED) + of_rounds + parts + 1
}

/// How many students come before the job's last one and are compared beside it: that of each earlier round, and of the last one
/// where its blocks are trained further together; and in front the one that the first round started from, where regressions
/// gave that.
pub fn earlier_students(spec: &JobSpec) -> u32 {
    let count = |of: bool| u32::from(of);
    let of = |recipe: &Recipe| count(recipe.starts_by_ridge()) + recipe.rounds + count(recipe.finetune.is_some());
    spec.recipe.as_ref().map_or(0, of)
}

fn cut(start: u32, end: u32, most: u32) -> Vec<SampleRange> {
    // A most of 0 is refused when a spec is checked; here it must not loop for ever.
    let most = most.max(1);
    let mut ranges = Vec::new();
    let mut from = start;
    while from < end {
        let to = from.saturating_add(most).min(end);
        ranges.push(SampleRange { start: from, end: to });
        from = to;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use deltaconv_proto::v1::{Evaluation, Recipe};

    use super::*;

    #[test]
    fn ranges_cover_every_sample_once_and_never_mix_training_with_held_out() {
        let recipe = Recipe { samples: 100, held_out_samples: 33, shard_samples: 32, ..Recipe::default() };
        let ranges = capture_ranges(&JobSpec { recipe: Some(recipe), ..JobSpec::default() });
        let bounds: Vec<(u32, u32)> = ranges.iter().map(|r| (r.start, r.end)).collect();
        assert_eq!(bounds, [(0, 32), (32, 64), (64, 96), (96, 100), (100, 132), (132, 133)]);
    }

    #[test]
    fn the_evaluation_is_cut_into_noise_and_pictures() {
        let evaluation = Evaluation { samples: 70, prompts: 3, ..Evaluation::default() };
        let parts = evaluation_parts(&JobSpec { evaluation: Some(evaluation), ..JobSpec::default() });
        let range = |start, end| SampleRange { start, end };
        let noise = [range(0, 32), range(32, 64), range(64, 70)].map(Part::Noise);
        let pictures = [range(0, 2), range(2, 3)].map(Part::Pictures);
        assert_eq!(parts, [&noise[..], &pictures[..]].concat());
    }
}
