//! JOB.toml, and the one place that holds the defaults of a job.

use std::collections::BTreeMap;
use std::path::Path;

use deltaconv_proto::v1;
use serde::Deserialize;

use crate::error::Error;
use crate::preset::{FINETUNE, Preset};
use crate::said::{self, said};
use crate::{byte_size, location};

/// A job as an operator writes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobFile {
    /// Default: the file's name.
    name: Option<String>,
    /// Path relative to the file, or URL.
    teacher: String,
    /// Path relative to the file, or URL.
    output: String,
    /// What may lie under the output at one time; default: no limit.
    max_storage: Option<StorageValue>,
    #[serde(default)]
    retention: Retention,
    /// Whose it is; default: the user who submits it.
    owner: Option<String>,
    /// Jobs of a higher one are given workers first.
    #[serde(default)]
    priority: i32,
    /// Workers at a time; default: no limit.
    #[serde(default)]
    max_workers: u32,
    #[serde(default)]
    requires: RequiresTable,
    #[serde(default)]
    data: DataTable,
    #[serde(default)]
    recipe: RecipeTable,
    #[serde(default)]
    evaluation: EvaluationTable,
}

/// Bytes, or a text with their unit.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a positive number of bytes, or one with its unit such as \"200 GiB\"")]
enum StorageValue {
    Bytes(u64),
    Text(String),
}

impl StorageValue {
    /// `path`: the job file, `key`: where in it.
    fn bytes(self, key: &str, path: &Path) -> Result<u64, Error> {
        let text = match self {
            Self::Bytes(bytes) => bytes.to_string(),
            Self::Text(text) => text,
        };
        let not_a_size = |reason| Error::JobFile { path: path.into(), reason: format!("{key} = {text:?}: {reason}") };
        byte_size::parse(&text).map_err(not_a_size)
    }
}

/// `[requires]`: what a worker must have to be given the job's tasks.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RequiresTable {
    /// Of the device; default: any.
    memory: Option<StorageValue>,
    /// Default: any.
    precision: Option<Precision>,
    /// Default: any.
    device: Option<RequiredDevice>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Precision {
    F32,
    Bf16,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RequiredDevice {
    Cpu,
    Cuda,
}

impl RequiresTable {
    /// `path`: the job file. None where nothing is required, so that a job that says so is the same as one that doesn't.
    fn message(self, path: &Path) -> Result<Option<v1::Requirements>, Error> {
        let memory_bytes = self.memory.map(|value| value.bytes("requires.memory", path)).transpose()?.unwrap_or(0);
        let precision = match self.precision {
            None => "",
            Some(Precision::F32) => "f32",
            Some(Precision::Bf16) => "bf16",
        };
        let device = match self.device {
            None => "",
            Some(RequiredDevice::Cpu) => "cpu",
            Some(RequiredDevice::Cuda) => v1::Device::CUDA,
        };
        let requires = v1::Requirements { memory_bytes, precision: precision.into(), device: device.into() };
        Ok(Some(requires).filter(|requires| *requires != v1::Requirements::default()))
    }
}

/// `retention`: what stays of a job that is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Retention {
    #[default]
    All,
    Results,
}

impl Retention {
    /// The default is left out, so that a job that says it is the same as one that doesn't.
    fn message(self) -> Option<String> {
        match self {
            Self::All => None,
            Self::Results => Some("results".to_owned()),
        }
    }
}

/// `[data]`: where samples come from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct DataTable {
    /// Path relative to the file, or URL; default: the teacher's folder.
    pub(crate) url: Option<String>,
    pub(crate) seed: u64,
    pub(crate) held_out_latents: u32,
    synthesis: Option<SynthesisTable>,
    images: Option<ImagesTable>,
}

impl Default for DataTable {
    fn default() -> Self {
        Self { url: None, seed: 0, held_out_latents: 48, synthesis: None, images: None }
    }
}

/// `[data.synthesis]`: no data set; the teacher samples latents from prompts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SynthesisTable {
    /// Path relative to the file, or URL, of a text file with a prompt on each line.
    prompts: String,
    #[serde(default = "SynthesisTable::latents")]
    latents: u32,
    #[serde(default = "SynthesisTable::solver")]
    solver: String,
    #[serde(default = "SynthesisTable::steps")]
    steps: u32,
    #[serde(default = "SynthesisTable::guidance")]
    guidance: f64,
    /// Height and width in pixels; default: those that the teacher was trained at.
    size: Option<[u32; 2]>,
    /// Instead of one size: those that latents are sampled at, in turn.
    buckets: Option<BucketsValue>,
}

/// `[data.images]`: images with captions, which the teacher's VAE encodes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImagesTable {
    /// Path relative to the file, or URL, of a folder of images with captions or of WebDataset shards.
    url: String,
    /// The first so many; 0 for all.
    #[serde(default)]
    count: u32,
    /// Height and width in pixels to which images are scaled and cropped; default: those that the teacher was trained at.
    size: Option<[u32; 2]>,
    /// Instead of one size: those that images are sorted into by their aspect ratio.
    buckets: Option<BucketsValue>,
}

/// `buckets`: a list of sizes, or the word that has the planner find them.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a list of heights and widths in pixels, [[1024, 1024], [832, 1216]], or \"auto\""
)]
enum BucketsValue {
    Sizes(Vec<[u32; 2]>),
    Word(Auto),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Auto {
    Auto,
}

impl BucketsValue {
    /// `field`: what the list is the value of.
    fn message(self, field: &str, path: &Path) -> Result<v1::Buckets, Error> {
        let sizes = match self {
            Self::Sizes(sizes) if sizes.is_empty() => {
                let reason = format!("{field} = [] is not valid: expected at least one size, or \"auto\"");
                return Err(Error::JobFile { path: path.into(), reason });
            }
            Self::Sizes(sizes) => sizes,
            Self::Word(Auto::Auto) => Vec::new(),
        };
        let size = |[height, width]: [u32; 2]| v1::PictureSize { height, width };
        Ok(v1::Buckets { sizes: sizes.into_iter().map(size).collect() })
    }
}

impl ImagesTable {
    /// `path`, `folder`: the job file, and where it lies.
    fn message(self, path: &Path, folder: &Path) -> Result<v1::Images, Error> {
        let [height, width] = self.size.unwrap_or_default();
        let buckets = self.buckets.map(|buckets| buckets.message("data.images.buckets", path)).transpose()?;
        Ok(v1::Images { url: location::url(&self.url, folder)?, count: self.count, height, width, buckets })
    }
}

impl SynthesisTable {
    fn latents() -> u32 {
        512
    }

    fn solver() -> String {
        "dpm-solver++".to_owned()
    }

    fn steps() -> u32 {
        20
    }

    fn guidance() -> f64 {
        4.5
    }

    /// `path`, `folder`: the job file, and where it lies.
    fn message(self, path: &Path, folder: &Path) -> Result<v1::Synthesis, Error> {
        let [height, width] = self.size.unwrap_or_default();
        let prompts_url = location::url(&self.prompts, folder)?;
        let buckets = self.buckets.map(|buckets| buckets.message("data.synthesis.buckets", path)).transpose()?;
        let Self { latents, solver, steps, guidance, .. } = self;
        Ok(v1::Synthesis { prompts_url, latents, solver, steps, guidance, height, width, buckets })
    }
}

/// `[recipe]`: what is recorded and how every block is trained, where that departs from the preset.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RecipeTable {
    preset: Preset,
    samples: Option<u32>,
    held_out_samples: Option<u32>,
    shard_samples: Option<u32>,
    steps: Option<u32>,
    batch: Option<u32>,
    learning_rate: Option<f64>,
    warmup_steps: Option<u32>,
    weight_decay: Option<f64>,
    clip_norm: Option<f64>,
    ema_decay: Option<f64>,
    empty_prompt_fraction: Option<f64>,
    inter_ratio: Option<f64>,
    scales: Option<Vec<f64>>,
    kernel_sizes: Option<BTreeMap<String, u32>>,
    keep: Option<Vec<String>>,
    keep_costliest: Option<u32>,
    finetune: Option<FinetuneTable>,
    rounds: Option<u32>,
    round_steps: Option<u32>,
    teacher_share: Option<f64>,
    store: Option<String>,
    schedule: Option<String>,
    start: Option<String>,
    solve: Option<bool>,
    budget: Option<String>,
    widen: Option<f64>,
    loss: Option<String>,
    huber_delta: Option<f64>,
}

impl RecipeTable {
    fn message(self) -> v1::Recipe {
        let mut recipe = self.preset.recipe();
        set(&mut recipe.samples, self.samples);
        set(&mut recipe.held_out_samples, self.held_out_samples);
        set(&mut recipe.shard_samples, self.shard_samples);
        set(&mut recipe.steps, self.steps);
        set(&mut recipe.batch, self.batch);
        set(&mut recipe.learning_rate, self.learning_rate);
        set(&mut recipe.warmup_steps, self.warmup_steps);
        set(&mut recipe.weight_decay, self.weight_decay);
        set(&mut recipe.clip_norm, self.clip_norm);
        set(&mut recipe.ema_decay, self.ema_decay);
        set(&mut recipe.empty_prompt_fraction, self.empty_prompt_fraction);
        set(&mut recipe.inter_ratio, self.inter_ratio);
        set(&mut recipe.scales, self.scales);
        set(&mut recipe.kernel_sizes, self.kernel_sizes);
        set(&mut recipe.keep, self.keep);
        set(&mut recipe.rounds, self.rounds);
        set(&mut recipe.round_steps, self.round_steps);
        set(&mut recipe.teacher_share, self.teacher_share);
        recipe.store = self.store.or(recipe.store);
        recipe.schedule = self.schedule.or(recipe.schedule);
        recipe.start = self.start.or(recipe.start);
        recipe.solve = self.solve.or(recipe.solve);
        recipe.budget = self.budget.or(recipe.budget);
        recipe.widen = self.widen.or(recipe.widen);
        recipe.loss = self.loss.or(recipe.loss);
        recipe.huber_delta = self.huber_delta.or(recipe.huber_delta);
        // To keep none is the same as not to say so.
        recipe.keep_costliest = self.keep_costliest.or(recipe.keep_costliest).filter(|count| *count > 0);
        let finetune = match self.finetune {
            Some(table) => Some(table.message(recipe.finetune.unwrap_or(FINETUNE))),
            None => recipe.finetune,
        };
        recipe.finetune = finetune.filter(|of| of.steps > 0);
        recipe
    }
}

/// `[recipe.finetune]`: all blocks together, end to end, after the rounds.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FinetuneTable {
    /// 0: none.
    steps: Option<u32>,
    batch: Option<u32>,
    learning_rate: Option<f64>,
    features: Option<f64>,
}

impl FinetuneTable {
    /// What departs from `finetune`.
    fn message(self, mut finetune: v1::Finetune) -> v1::Finetune {
        set(&mut finetune.steps, self.steps);
        set(&mut finetune.batch, self.batch);
        set(&mut finetune.learning_rate, self.learning_rate);
        set(&mut finetune.features, self.features);
        finetune
    }
}

/// Takes what is given in place of what is there.
fn set<T>(value: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *value = given;
    }
}

/// `[evaluation]`: how much the teacher and the student are compared.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EvaluationTable {
    pub(crate) samples: u32,
    pub(crate) prompts: u32,
    pub(crate) ddim_steps: u32,
    pub(crate) guidance: f64,
}

impl Default for EvaluationTable {
    fn default() -> Self {
        Self { samples: 128, prompts: 8, ddim_steps: 20, guidance: 2.0 }
    }
}

/// Reads a job and resolves its paths.
pub(crate) fn read(path: &Path) -> Result<v1::JobSpec, Error> {
    let text = said::read(path).map_err(Error::file("read", path))?;
    parse(&text, path)
}

/// The job that the text of this file says.
pub(crate) fn parse(text: &str, path: &Path) -> Result<v1::JobSpec, Error> {
    job(text, path).map_err(|error| match error {
        Error::JobFile { path, reason } => Error::JobFile { path, reason: said(&reason) },
        other => other,
    })
}

fn job(text: &str, path: &Path) -> Result<v1::JobSpec, Error> {
    let absolute = std::path::absolute(path).map_err(Error::file("find", path))?;
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    let not_a_job = |reason| Error::JobFile { path: path.into(), reason };
    let file: JobFile = toml::from_str(text).map_err(|e| not_a_job(e.to_string()))?;

    let named_by_file = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = file.name.or(named_by_file).unwrap_or_default();
    let teacher_url = location::url(&file.teacher, folder)?;
    let output_url = location::url(&file.output, folder)?;
    let synthesis = file.data.synthesis.map(|table| table.message(path, folder)).transpose()?;
    let images = file.data.images.map(|table| table.message(path, folder)).transpose()?;
    let url = match (&file.data.url, &synthesis, &images) {
        (Some(named), _, _) => location::url(named, folder)?,
        (None, None, None) => teacher_url.clone(),
        (None, _, _) => String::new(),
    };
    let data = v1::Data { url, seed: file.data.seed, held_out_latents: file.data.held_out_latents, synthesis, images };
    let max_storage = file.max_storage.map(|value| value.bytes("max_storage", path)).transpose()?;
    let retention = file.retention.message();
    let spec = spec(name, teacher_url, output_url, data, file.recipe.message(), file.evaluation);
    // Who is whose is a matter of fairness, not of rights.
    let owner = file.owner.or_else(|| std::env::var("USER").ok()).unwrap_or_default();
    let priority = Some(file.priority).filter(|priority| *priority != 0);
    let (max_workers, requires) = (file.max_workers, file.requires.message(path)?);
    Ok(v1::JobSpec { max_storage, retention, owner, priority, max_workers, requires, ..spec })
}

/// A job as it is submitted, without limit and keeping everything.
pub(crate) fn spec(
    name: String,
    teacher_url: String,
    output_url: String,
    data: v1::Data,
    mut recipe: v1::Recipe,
    evaluation: EvaluationTable,
) -> v1::JobSpec {
    if recipe.rounds == 0 {
        // Without further rounds, a job that says what they would be is the same as one that doesn't.
        (recipe.round_steps, recipe.teacher_share) = (0, 0.0);
        (recipe.budget, recipe.widen) = (None, None);
    }
    v1::JobSpec {
        name,
        teacher_url,
        output_url,
        data: Some(data),
        recipe: Some(recipe),
        evaluation: Some(v1::Evaluation {
            samples: evaluation.samples,
            prompts: evaluation.prompts,
            ddim_steps: evaluation.ddim_steps,
            guidance: evaluation.guidance,
        }),
        ..v1::JobSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<v1::JobSpec, Error> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tiny.toml");
        std::fs::write(&path, text).expect("written");
        read(&path)
    }

    #[test]
    fn what_is_not_written_has_its_default() {
        let spec = read_text("teacher = '/t'\noutput = 's3://b/o'\n[recipe]\nsteps = 7\n").expect("a job");
        assert_eq!(spec.name, "tiny");
        assert_eq!(spec.teacher_url, "file:///t");
        assert_eq!(spec.output_url, "s3://b/o");
        let data = spec.data.expect("data");
        assert_eq!((data.url.as_str(), data.seed, data.held_out_latents), ("file:///t", 0, 48));
        let recipe = spec.recipe.expect("a recipe");
        assert_eq!((recipe.steps, recipe.samples, recipe.scales), (7, 2048, vec![1.0, 0.5]));
        assert_eq!(spec.evaluation.expect("an evaluation").ddim_steps, 20);
    }

    #[test]
    fn a_preset_is_what_a_recipe_departs_from() {
        let read = |of: &str| {
            let spec = read_text(&format!("teacher = 't'\noutput = 'o'\n[recipe]\n{of}\n"))?;
            Ok::<_, Error>(spec.recipe.expect("a recipe"))
        };
        assert_eq!(read("").expect("a job"), read("preset = 'balanced'").expect("a job"));
        let recipe = read("preset = 'faithful'\nbatch = 32\nrounds = 1\nstore = 'inputs'").expect("a job");
        let faithful = Preset::Faithful.recipe();
        assert_eq!(recipe, v1::Recipe { batch: 32, rounds: 1, store: Some("inputs".to_owned()), ..faithful.clone() });
        // So is its training of all blocks together.
        let finetune = |of: &str| read(of).expect("a job").finetune;
        let longer = finetune("preset = 'faithful'\n[recipe.finetune]\nsteps = 6000");
        assert_eq!(longer, faithful.finetune.map(|of| v1::Finetune { steps: 6000, ..of }));
        assert_eq!(finetune("preset = 'faithful'\n[recipe.finetune]\nsteps = 0"), None);
        assert_eq!(finetune("[recipe.finetune]\nsteps = 10"), Some(v1::Finetune { steps: 10, ..FINETUNE }));
        // What rounds would be says nothing where there are none.
        assert_eq!(read("round_steps = 7").expect("a job"), read("teacher_share = 0.5").expect("a job"));
        assert_eq!(read("round_steps = 7").expect("a job"), read("budget = 'gain'\nwiden = 0.01").expect("a job"));
        assert_eq!(read("rounds = 1\nbudget = 'gain'").expect("a job").budget.as_deref(), Some("gain"));
        assert_eq!(read("preset = 'paper'").expect("a job").schedule.as_deref(), Some("constant"));
        let error = read("preset = 'best'").expect_err("refused").to_string();
        assert!(error.contains("best") && error.contains("faithful"), "{error}");
    }

    #[test]
    fn kernel_sizes_are_given_by_layer() {
        let spec = read_text("teacher = 't'\noutput = 'o'\n[recipe.kernel_sizes]\n\"mid_block.attentions.0\" = 5\n");
        let sizes = spec.expect("a job").recipe.expect("a recipe").kernel_sizes;
        assert_eq!(sizes.get("mid_block.attentions.0"), Some(&5));
    }

    #[test]
    fn buckets_are_a_list_of_sizes_or_left_to_the_planner() {
        let read = |of: &str| {
            let spec = read_text(&format!("teacher = 't'\noutput = 'o'\n[data.images]\nurl = 'i'\n{of}\n"))?;
            Ok::<_, Error>(spec.data.and_then(|data| data.images).expect("images").buckets)
        };
        let sizes = [(96, 64), (64, 96)].map(|(height, width)| v1::PictureSize { height, width });
        assert_eq!(read("").expect("one size"), None);
        assert_eq!(read("buckets = 'auto'").expect("read"), Some(v1::Buckets { sizes: Vec::new() }));
        assert_eq!(read("buckets = [[96, 64], [64, 96]]").expect("read"), Some(v1::Buckets { sizes: sizes.to_vec() }));
        for (text, named) in [
            ("buckets = []", "data.images.buckets = []"),
            ("buckets = 'some'", "or \"auto\""),
            ("buckets = [[96]]", "heights and widths"),
            ("buckets = ['96x64']", "heights and widths"),
        ] {
            let error = read(text).expect_err("refused").to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn storage_is_limited_in_bytes_or_units_and_unlimited_specs_stay_as_they_were() {
        let read = |settings: &str| read_text(&format!("teacher = 't'\noutput = 'o'\n{settings}\n"));
        let settings = |text: &str| read(text).map(|spec| (spec.max_storage, spec.retention)).expect("a job");
        assert_eq!(settings("max_storage = '200 GiB'"), (Some(200 << 30), None));
        assert_eq!(settings("max_storage = 4096\nretention = 'results'"), (Some(4096), Some("results".to_owned())));
        assert_eq!(settings("retention = 'all'"), (None, None));
        let json = serde_json::to_string(&read("").expect("a job")).expect("serialises");
        assert!(!json.contains("max_storage") && !json.contains("retention"), "{json}");
        for (text, named) in [
            ("max_storage = 0", "max_storage = \"0\""),
            ("max_storage = -5", "200 GiB"),
            ("max_storage = '5 gigabytes'", "5 gigabytes"),
            ("max_storage = true", "200 GiB"),
            ("retention = 'some'", "`results`"),
        ] {
            let error = read(text).expect_err("refused").to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn how_workers_are_divided_is_said_beside_the_recipe() {
        let read = |settings: &str| read_text(&format!("teacher = 't'\noutput = 'o'\n{settings}\n"));
        let spec =
            read("owner = 'ann'\npriority = -2\nmax_workers = 4\n[requires]\nmemory = '24 GiB'\nprecision = 'bf16'");
        let spec = spec.expect("a job");
        assert_eq!((spec.owner.as_str(), spec.priority, spec.max_workers), ("ann", Some(-2), 4));
        let expected = v1::Requirements { memory_bytes: 24 << 30, precision: "bf16".into(), device: String::new() };
        assert_eq!(spec.requires, Some(expected));
        let spec = read("priority = 0\n[requires]").expect("a job");
        assert_eq!((spec.priority, spec.requires), (None, None));
        for (text, named) in
            [("[requires]\nmemory = '1 cow'", "requires.memory"), ("[requires]\ndevice = 'tpu'", "tpu")]
        {
            let error = read(text).expect_err("refused").to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_named() {
        for (text, named) in [
            ("teacher = 't'\noutput = 'o'\nstepz = 3\n", "stepz"),
            ("teacher = 't'\noutput = 'o'\n[recipe]\nlerning_rate = 3\n", "lerning_rate"),
            ("teacher = 't'\noutput = 'o'\n[recipe]\nsteps = -3\n", "-3"),
            ("teacher = 't'\noutput = 'o'\n[data]\nbuckets = 'auto'\n", "buckets"),
            ("output = 'o'\n", "teacher"),
        ] {
            let error = read_text(text).expect_err("refused").to_string();
            assert!(error.contains(named) && error.contains("tiny.toml"), "{error}");
        }
    }
}
