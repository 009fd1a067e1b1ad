//! What a spec may say, whatever its teacher and data are.
//!
//! The limits keep a typing error from making a job of years or petabytes; none is near what a conversion needs.

use std::fmt::Display;
use std::ops::RangeInclusive;

use deltaconv_proto::Brief;
use deltaconv_proto::ids::JobId;
use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::shard::Contents;
use deltaconv_proto::teacher::SOLVERS;
use deltaconv_proto::v1::{Data, Evaluation, Images, JobSpec, Recipe, Synthesis};

use super::Error;

/// The retention that removes what a job was made from once it is done.
pub(crate) const RESULTS: &str = "results";
/// All that there are.
const RETENTIONS: [&str; 2] = ["all", RESULTS];
/// Of the learning rate, after its warm-up.
const SCHEDULES: [&str; 2] = ["cosine", Recipe::CONSTANT];
/// What a training starts from.
const STARTS: [&str; 3] = ["random", Recipe::RIDGE, Recipe::ATTENTION];
/// Of the steps of rounds after the first one.
const BUDGETS: [&str; 2] = ["even", Recipe::GAIN];
const MAX_SAMPLES: u32 = 1 << 24;
const MAX_URL_BYTES: usize = 2048;
/// Each distill task lists the shards of all ranges; so many fit a message.
pub(super) const MAX_SHARDS: u64 = 10_000;
/// Schemes of stores that nothing can be written to.
const ONLY_READ: [&str; 3] = ["hf://", "http://", "https://"];
/// Rounds after the first one; each records and trains everything again.
const MAX_ROUNDS: u32 = 8;
/// Scales beyond these pool to next to nothing.
const MAX_SCALES: usize = 4;

/// A spec whose parts are there and whose values are sane, with its folders opened.
pub(crate) struct Checked<'a> {
    pub(super) data: &'a Data,
    pub(super) recipe: &'a Recipe,
    pub(super) evaluation: &'a Evaluation,
    pub(super) teacher_folder: Objects,
    pub(super) source: Source<'a>,
}

/// Where the latents come from.
pub(crate) enum Source<'a> {
    /// A folder of them.
    Ready(Objects),
    /// The teacher samples them.
    Synthesis(&'a Synthesis),
    /// The teacher's VAE encodes them.
    Images(Objects, &'a Images),
}

pub(super) fn invalid(field: impl Into<String>, value: impl Display, expected: impl Into<String>) -> Error {
    // Both may come from anyone: a layer's name stands in a field's.
    let (field, value) = (Brief(&field.into()).to_string(), Brief(&value).to_string());
    Error::Spec { field, value, expected: expected.into() }
}

/// Checks everything that needs nothing but the spec.
pub(crate) fn check(spec: &JobSpec) -> Result<Checked<'_>, Error> {
    let absent = |field: &str| invalid(field, "absent", "the job file needs this section");
    let data = spec.data.as_ref().ok_or_else(|| absent("data"))?;
    let recipe = spec.recipe.as_ref().ok_or_else(|| absent("recipe"))?;
    let evaluation = spec.evaluation.as_ref().ok_or_else(|| absent("evaluation"))?;

    name(&spec.name)?;
    let teacher_folder = open("teacher_url", &spec.teacher_url)?;
    let source = match (&data.synthesis, &data.images) {
        (None, None) => Source::Ready(open("data.url", &data.url)?),
        (Some(_), Some(_)) => {
            return Err(invalid(
                "data",
                "synthesis and images",
                "one of them: latents come from prompts or from images",
            ));
        }
        _ if !data.url.is_empty() => {
            let expected = "nothing where data.synthesis or data.images says how latents are made";
            return Err(invalid("data.url", &data.url, expected));
        }
        (Some(synthesis), None) => {
            check_synthesis(synthesis)?;
            Source::Synthesis(synthesis)
        }
        (None, Some(images)) => Source::Images(open("data.images.url", &images.url)?, images),
    };
    if ONLY_READ.iter().any(|scheme| spec.output_url.starts_with(scheme)) {
        let expected = "a folder that can be written: the hub and web servers are only read";
        return Err(invalid("output_url", &spec.output_url, expected));
    }
    let output = open("output_url", &spec.output_url)?;
    let mut sources = vec![("teacher_url", &teacher_folder)];
    match &source {
        Source::Ready(folder) => sources.push(("data.url", folder)),
        Source::Images(folder, _) => sources.push(("data.images.url", folder)),
        Source::Synthesis(_) => {}
    }
    for (field, source) in sources {
        // Assembly copies the teacher's folder: below it, it would copy its own output.
        if output.url() == source.url() || output.url().starts_with(&format!("{}/", source.url())) {
            let expected = format!("it lies in {field} = {}, which a job doesn't write to", source.url());
            return Err(invalid("output_url", &spec.output_url, expected));
        }
    }
    check_recipe(recipe)?;
    check_evaluation(evaluation)?;
    if let Some(retention) = spec.retention.as_deref().filter(|retention| !RETENTIONS.contains(retention)) {
        return Err(invalid("retention", format!("{retention:?}"), format!("one of {}", RETENTIONS.join(", "))));
    }
    integer("data.held_out_latents", data.held_out_latents, 1..=MAX_SAMPLES)?;
    Ok(Checked { data, recipe, evaluation, teacher_folder, source })
}

fn check_synthesis(synthesis: &Synthesis) -> Result<(), Error> {
    if synthesis.prompts_url.len() > MAX_URL_BYTES {
        return Err(invalid(
            "data.synthesis.prompts",
            &synthesis.prompts_url,
            format!("at most {MAX_URL_BYTES} bytes"),
        ));
    }
    objects::parse_url(&synthesis.prompts_url)
        .map_err(|source| Error::Url { field: "data.synthesis.prompts", source: Box::new(source) })?;
    integer("data.synthesis.latents", synthesis.latents, 2..=1 << 20)?;
    integer("data.synthesis.steps", synthesis.steps, 1..=1000)?;
    number("data.synthesis.guidance", synthesis.guidance, 0.0..=100.0)?;
    if !SOLVERS.contains(&synthesis.solver.as_str()) {
        let expected = format!("one of {}", SOLVERS.join(", "));
        return Err(invalid("data.synthesis.solver", format!("{:?}", synthesis.solver), expected));
    }
    Ok(())
}

/// A job's id is its name and a number, and its tasks' ids start with that.
fn name(name: &str) -> Result<(), Error> {
    let is_part_of_ids = JobId::new(format!("{name}-1")).is_ok() && !name.contains('/');
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !is_part_of_ids {
        return Err(invalid("name", format!("{name:?}"), "1 to 64 characters of a-z, A-Z, 0-9, '.', '_', '-'"));
    }
    Ok(())
}

pub(super) fn open(field: &'static str, url: &str) -> Result<Objects, Error> {
    if url.len() > MAX_URL_BYTES {
        return Err(invalid(field, url, format!("at most {MAX_URL_BYTES} bytes")));
    }
    Objects::open(url).map_err(|source| Error::Url { field, source: Box::new(source) })
}

fn check_recipe(recipe: &Recipe) -> Result<(), Error> {
    integer("recipe.samples", recipe.samples, 1..=MAX_SAMPLES)?;
    integer("recipe.held_out_samples", recipe.held_out_samples, 1..=MAX_SAMPLES)?;
    integer("recipe.shard_samples", recipe.shard_samples, 1..=65_536)?;
    integer("recipe.steps", recipe.steps, 1..=100_000_000)?;
    integer("recipe.batch", recipe.batch, 1..=65_536)?;
    if recipe.batch > recipe.samples {
        let expected = format!("at most recipe.samples = {}, or a batch would hold a sample twice", recipe.samples);
        return Err(invalid("recipe.batch", recipe.batch, expected));
    }
    if recipe.warmup_steps > recipe.steps {
        return Err(invalid("recipe.warmup_steps", recipe.warmup_steps, at_most("recipe.steps", recipe.steps)));
    }
    integer("recipe.rounds", recipe.rounds, 0..=MAX_ROUNDS)?;
    if recipe.rounds > 0 {
        check_rounds(recipe)?;
    }
    if let Some(finetune) = &recipe.finetune {
        integer("recipe.finetune.steps", finetune.steps, 1..=100_000_000)?;
        integer("recipe.finetune.batch", finetune.batch, 1..=65_536)?;
        number("recipe.finetune.learning_rate", finetune.learning_rate, f64::MIN_POSITIVE..=1.0)?;
        number("recipe.finetune.features", finetune.features, 0.0..=1e3)?;
    }
    number("recipe.learning_rate", recipe.learning_rate, f64::MIN_POSITIVE..=1.0)?;
    number("recipe.weight_decay", recipe.weight_decay, 0.0..=1.0)?;
    number("recipe.clip_norm", recipe.clip_norm, 0.0..=1e6)?;
    number("recipe.ema_decay", recipe.ema_decay, 0.0..=0.999_999_9)?;
    number("recipe.empty_prompt_fraction", recipe.empty_prompt_fraction, 0.0..=1.0)?;
    number("recipe.inter_ratio", recipe.inter_ratio, 1e-3..=2.0)?;
    scales(&recipe.scales)?;
    let stores = Contents::NAMED.map(|(name, _)| name);
    if let Some(store) = recipe.store.as_deref().filter(|store| !stores.contains(store)) {
        return Err(invalid("recipe.store", format!("{store:?}"), format!("one of {}", stores.join(", "))));
    }
    if let Some(schedule) = recipe.schedule.as_deref().filter(|schedule| !SCHEDULES.contains(schedule)) {
        let expected = format!("one of {}", SCHEDULES.join(", "));
        return Err(invalid("recipe.schedule", format!("{schedule:?}"), expected));
    }
    if let Some(start) = recipe.start.as_deref().filter(|start| !STARTS.contains(start)) {
        return Err(invalid("recipe.start", format!("{start:?}"), format!("one of {}", STARTS.join(", "))));
    }
    if let Some(budget) = recipe.budget.as_deref().filter(|budget| !BUDGETS.contains(budget)) {
        return Err(invalid("recipe.budget", format!("{budget:?}"), format!("one of {}", BUDGETS.join(", "))));
    }
    if let Some(loss) = recipe.loss.as_deref().filter(|loss| !Recipe::LOSSES.contains(loss)) {
        return Err(invalid("recipe.loss", format!("{loss:?}"), format!("one of {}", Recipe::LOSSES.join(", "))));
    }
    if let Some(delta) = recipe.huber_delta {
        number("recipe.huber_delta", delta, 1e-6..=1e6)?;
    }
    for (layer, &size) in &recipe.kernel_sizes {
        if !(1..=31).contains(&size) || size.is_multiple_of(2) {
            return Err(invalid(format!("recipe.kernel_sizes.{layer:.200}"), size, "an odd number from 1 to 31"));
        }
    }
    let shards = shards_of_layer(recipe);
    if shards > MAX_SHARDS {
        let expected = format!("it has a block trained on {shards} shards, and {MAX_SHARDS} are the most");
        return Err(invalid("recipe.shard_samples", recipe.shard_samples, expected));
    }
    Ok(())
}

/// What the rounds after the first one need.
fn check_rounds(recipe: &Recipe) -> Result<(), Error> {
    integer("recipe.round_steps", recipe.round_steps, 1..=100_000_000)?;
    if recipe.warmup_steps > recipe.round_steps {
        let expected = at_most("recipe.round_steps", recipe.round_steps);
        return Err(invalid("recipe.warmup_steps", recipe.warmup_steps, expected));
    }
    // Every range of the first round is mixed in once: more than a half would train less on the student's.
    number("recipe.teacher_share", recipe.teacher_share, 0.0..=0.5)?;
    if let Some(widen) = recipe.widen {
        number("recipe.widen", widen, 0.0..=1.0)?;
        if recipe.inter_ratio > 1.0 {
            let expected = "at most 1 with recipe.widen, which doubles it for some layers, and 2 is the most";
            return Err(invalid("recipe.inter_ratio", recipe.inter_ratio, expected));
        }
    }
    if recipe.teacher_share > 0.0 && Contents::of_recipe(recipe) == Contents::Inputs {
        let expected = "0 with recipe.store = \"inputs\": what the first round recorded has no outputs to mix in";
        return Err(invalid("recipe.teacher_share", recipe.teacher_share, expected));
    }
    Ok(())
}

/// Shards of a layer that a distill task lists.
fn shards_of_layer(recipe: &Recipe) -> u64 {
    let shards = |samples: u32| u64::from(samples.div_ceil(recipe.shard_samples.max(1)));
    let rounds_read = if recipe.rounds > 0 && recipe.teacher_share > 0.0 { 2 } else { 1 };
    rounds_read * shards(recipe.samples) + shards(recipe.held_out_samples)
}

fn scales(scales: &[f64]) -> Result<(), Error> {
    let shown = format!("{scales:?}");
    if !(1..=MAX_SCALES).contains(&scales.len()) {
        return Err(invalid("recipe.scales", shown, format!("1 to {MAX_SCALES} numbers, 1.0 first")));
    }
    let falls = scales.windows(2).all(|pair| pair[0] > pair[1]);
    if scales[0] != 1.0 || !falls || !scales.iter().all(|s| s.is_finite() && *s > 0.0) {
        return Err(invalid("recipe.scales", shown, "1.0 first, then each smaller than the one before and above 0"));
    }
    Ok(())
}

fn check_evaluation(evaluation: &Evaluation) -> Result<(), Error> {
    // Timesteps are stratified, so four samples are the fewest with one in each quarter of them.
    integer("evaluation.samples", evaluation.samples, 4..=65_536)?;
    integer("evaluation.prompts", evaluation.prompts, 1..=64)?;
    integer("evaluation.ddim_steps", evaluation.ddim_steps, 1..=1000)?;
    number("evaluation.guidance", evaluation.guidance, 0.0..=100.0)
}

pub(super) fn at_most(field: &str, value: impl Display) -> String {
    format!("at most {field} = {value}")
}

fn integer(field: &str, value: u32, allowed: RangeInclusive<u32>) -> Result<(), Error> {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(invalid(field, value, format!("a whole number from {} to {}", allowed.start(), allowed.end())))
}

/// NaN is in no range.
fn number(field: &str, value: f64, allowed: RangeInclusive<f64>) -> Result<(), Error> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let start = match *allowed.start() {
        f64::MIN_POSITIVE => "above 0".to_owned(),
        start => format!("from {start}"),
    };
    Err(invalid(field, value, format!("a number {start} to {}", allowed.end())))
}
