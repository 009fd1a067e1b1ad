//! How many bytes each stage of a job will write and read, estimated before it starts.
//!
//! Every task is counted once; an attempt that ends without its output being accepted may leave as much again. What every
//! worker reads for itself, models and data sets, is counted for one worker. What the coordinator reads to check outputs,
//! and the report of a few megabytes, are left out.

use deltaconv_proto::shard::Contents;
use deltaconv_proto::v1::{Evaluation, JobPlan, JobSpec, LayerPlan, Recipe, SampleRange, StagePlan};
use deltaconv_proto::weights::Files;
use deltaconv_proto::{block, keys};

use super::{Error, capture_ranges, data, earlier_students, is_mixed_in, layers, trained_in};

/// Header of a shard or a block.
const HEADER_BYTES: u64 = 512;
/// Weights, their moving average, AdamW's two moments, and the best block so far.
const CHECKPOINT_COPIES: u64 = 5;
/// Models of which pictures are drawn: teacher, student, and the teacher without attention.
const DRAWN: u64 = 3;
/// Numbers that the evaluation writes of the layers and of the time: three a layer of so few samples that it comes to no more.
const OF_LAYERS: u64 = 10;

/// Bytes of the shards of all rounds: input and output of every layer and sample, or inputs alone.
pub(super) fn capture(spec: &JobSpec, layers: &[LayerPlan]) -> u64 {
    let of_round = |round| shards(spec, trained_in(round, layers), round, &capture_ranges(spec));
    (0..=rounds(spec)).map(of_round).fold(0, u64::saturating_add)
}

/// Bytes of one round's shards of these ranges.
fn shards(spec: &JobSpec, layers: &[LayerPlan], round: u32, ranges: &[SampleRange]) -> u64 {
    let samples: u64 = ranges.iter().map(|range| u64::from(range.end - range.start)).sum();
    let of_sample = |layer| layers::sample_bytes(layer, Contents::of(spec, round));
    let of_layer = |layer| samples.saturating_mul(of_sample(layer)) + ranges.len() as u64 * HEADER_BYTES;
    layers.iter().map(of_layer).fold(0, u64::saturating_add)
}

/// Rounds after the first one.
fn rounds(spec: &JobSpec) -> u32 {
    spec.recipe.as_ref().map_or(0, |recipe| recipe.rounds)
}

/// Bytes of one checkpoint of every layer. While a block trains, each checkpoint takes the place of the one before.
pub(super) fn checkpoint(spec: &JobSpec, layers: &[LayerPlan]) -> u64 {
    // What training started from is kept in it, too.
    let copies = CHECKPOINT_COPIES + u64::from(starts_by_ridge(spec));
    layers.iter().map(|layer| copies * blocks(std::slice::from_ref(layer))).sum()
}

fn starts_by_ridge(spec: &JobSpec) -> bool {
    spec.recipe.as_ref().is_some_and(Recipe::starts_by_ridge)
}

/// Bytes of the converted model's denoiser and of the blocks alone.
pub(super) fn output(teacher: &Files, layers: &[LayerPlan]) -> u64 {
    student(teacher, layers) + blocks(layers)
}

/// Bytes of files of weights, headers included.
pub(super) fn weights(files: &Files) -> u64 {
    files.files.iter().map(|file| file.file_len).sum()
}

/// The converted model's denoiser: the teacher's without what is replaced, and the blocks.
fn student(teacher: &Files, layers: &[LayerPlan]) -> u64 {
    let all: u64 = teacher.tensors().map(|(_, tensor)| tensor.end - tensor.start).sum();
    let headers: u64 = teacher.files.iter().map(|file| file.header.header_len).sum();
    headers + all - replaced(teacher, layers) + blocks(layers)
}

/// The teacher's attention that blocks take the place of.
fn replaced(teacher: &Files, layers: &[LayerPlan]) -> u64 {
    let prefixes: Vec<String> = layers.iter().map(|layer| block::replaced_prefix(&layer.name)).collect();
    let replaced = teacher.tensors().filter(|(name, _)| prefixes.iter().any(|prefix| name.starts_with(prefix)));
    replaced.map(|(_, tensor)| tensor.end - tensor.start).sum()
}

fn blocks(layers: &[LayerPlan]) -> u64 {
    layers.iter().map(|layer| layer.parameters * 4 + HEADER_BYTES).sum()
}

/// What the evaluation's tasks write: numbers of 8 bytes a sample, four, one for each earlier student and [`OF_LAYERS`], and in
/// f32 the picture that each of [`DRAWN`] and of these students draws of a prompt.
fn evaluation(spec: &JobSpec, plan: &JobPlan) -> u64 {
    let Evaluation { samples, prompts, .. } = spec.evaluation.unwrap_or_default();
    let picture = u64::from(plan.picture_height) * u64::from(plan.picture_width) * 3 * 4;
    let headers = u64::from(plan.evaluate_tasks) * HEADER_BYTES;
    let earlier = u64::from(earlier_students(spec));
    let numbers = u64::from(samples) * (4 + earlier + OF_LAYERS) * 8;
    numbers + picture.saturating_mul(u64::from(prompts) * (DRAWN + earlier)) + headers
}

/// What the estimates are made from, beside the spec and the plan.
pub(super) struct Read<'a> {
    /// The denoiser's weights.
    pub(super) denoiser: &'a Files,
    /// The VAE's; a teacher of pixels has none.
    pub(super) vae: Option<&'a Files>,
    pub(super) data: &'a data::Known,
    /// Bytes of the teacher's files that go into the output as they are.
    pub(super) copied: u64,
}

/// The stages that a job has, in order.
pub(super) fn stages(spec: &JobSpec, plan: &JobPlan, read: &Read<'_>) -> Vec<StagePlan> {
    let Read { denoiser, data, copied, .. } = *read;
    // What outputs are computed from again.
    let attention = |round| match Contents::of(spec, round) {
        Contents::Activations => 0,
        Contents::Inputs => replaced(denoiser, &plan.layers),
    };
    let widest = spec.recipe.as_ref().map_or(plan.layers.clone(), |recipe| layers::widest(recipe, &plan.layers));
    let (blocks, parts) = (blocks(&widest), evaluation(spec, plan));
    // A worker loads the two together.
    let models = weights(denoiser) + read.vae.map_or(0, weights);
    let stage = |stage: &str, tasks: u32, written: &[u64], read: &[u64]| {
        let sum = |bytes: &[u64]| bytes.iter().copied().fold(0, u64::saturating_add);
        StagePlan { stage: stage.to_owned(), tasks, written_bytes: sum(written), read_bytes: sum(read), round: 0 }
    };
    let ranges = capture_ranges(spec);
    let mixed: Vec<SampleRange> = ranges.iter().filter(|range| is_mixed_in(spec, range)).copied().collect();
    let round = |round: u32| {
        let layers = trained_in(round, if round == 0 { &plan.layers } else { &widest });
        let captured = shards(spec, layers, round, &ranges);
        let (before, mixed) = match round {
            0 => (0, 0),
            _ => (blocks, shards(spec, layers, 0, &mixed)),
        };
        let (trained_blocks, captures) = (self::blocks(layers), if layers.is_empty() { 0 } else { plan.capture_tasks });
        // A layer's shards are read once and kept, however often training comes back to a sample.
        let started_from = if round == 0 { 0 } else { trained_blocks };
        let trained = [captured, mixed, attention(round), started_from];
        let starts = if round == 0 && starts_by_ridge(spec) { trained_blocks } else { 0 };
        [
            stage("capture", captures, &[captured], &[models, data.bytes, before]),
            stage("distill", layers.len() as u32, &[checkpoint(spec, layers), trained_blocks, starts], &trained),
        ]
        .map(|stage| StagePlan { round, ..stage })
    };
    let mut stages: Vec<StagePlan> = (0..=rounds(spec)).flat_map(round).collect();
    if spec.recipe.as_ref().is_some_and(|recipe| recipe.finetune.is_some()) {
        let written = [checkpoint(spec, &widest), blocks];
        stages.push(stage(keys::FINETUNE, 1, &written, &[models, data.bytes, blocks]));
    }
    let earlier_blocks = u64::from(earlier_students(spec)) * blocks;
    stages.extend([
        // The blocks go into the model and into a file of their own.
        stage("assemble", 0, &[plan.output_bytes, copied], &[weights(denoiser), 2 * blocks, copied]),
        // The report reads the parts again.
        stage(
            "evaluate",
            plan.evaluate_tasks,
            &[parts],
            &[models, student(denoiser, &widest), earlier_blocks, data.bytes, parts],
        ),
    ]);
    if plan.synthesise_tasks > 0 {
        let made =
            stage("synthesise", plan.synthesise_tasks, &[plan.synthesise_bytes], &[models, data.bytes_to_make_of]);
        stages.insert(0, made);
    }
    stages
}

/// Bytes that lie under the output at most at one time: nothing but former checkpoints is removed before the job ends, so all
/// that is written.
pub(super) fn stored(stages: &[StagePlan]) -> u64 {
    stages.iter().map(|stage| stage.written_bytes).fold(0, u64::saturating_add)
}

/// Refuses a job that would store more than its spec allows.
pub(super) fn check_storage(spec: &JobSpec, stages: &[StagePlan]) -> Result<(), Error> {
    let planned = stored(stages);
    let Some(limit) = spec.max_storage.filter(|limit| planned > *limit) else { return Ok(()) };
    let Some(largest) = stages.iter().max_by_key(|stage| stage.written_bytes) else { return Ok(()) };
    let remedy = match largest.stage.as_str() {
        "synthesise" => "make fewer latents (data.synthesis.latents, data.images.count), or raise max_storage",
        "capture" => {
            "record fewer samples (recipe.samples) or their inputs alone (recipe.store), replace fewer layers (recipe.keep), \
             or raise max_storage"
        }
        "distill" | keys::FINETUNE => {
            "train smaller blocks (recipe.inter_ratio), replace fewer layers (recipe.keep), or raise max_storage"
        }
        "evaluate" => "draw fewer pictures (evaluation.prompts), or raise max_storage",
        _ => "the converted model takes that, whatever the job says, so raise max_storage",
    };
    let (url, stage, written) = (spec.output_url.clone(), largest.stage.clone(), largest.written_bytes);
    Err(Error::Storage { url, planned, limit, stage, written, remedy })
}

/// A number of bytes as people read it, and exactly.
pub(super) fn spell(bytes: u64) -> String {
    let units = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    match units.iter().find(|(_, size)| bytes as f64 >= *size) {
        Some((unit, size)) => format!("{:.1} {unit} ({bytes} bytes)", bytes as f64 / size),
        None => format!("{bytes} bytes"),
    }
}
