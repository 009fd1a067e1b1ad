//! `deltaconv report`.

use std::process::ExitCode;

use comfy_table::Table;
use deltaconv_proto::v1::StaysAttention;
use serde::Deserialize;

use crate::args::OfJob;
use crate::client::Client;
use crate::error::Error;
use crate::{duration, output, stage, table};

pub(crate) async fn run(arguments: OfJob) -> Result<ExitCode, Error> {
    let OfJob { job, connection, output } = arguments;
    let json = Client::connect(&connection).await?.report(&job).await?;
    match output.data() {
        Some(data) => {
            // It has a version of its own.
            data.print_written(json.trim_end());
        }
        None => {
            let report: Report = serde_json::from_str(&json).map_err(|source| Error::Report { job, source })?;
            output::print(&report.describe());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is shown of `report.json`.
#[derive(Debug, Deserialize)]
struct Report {
    job: String,
    teacher_class: String,
    #[serde(flatten)]
    student: Measures,
    attention_removed: Measures,
    ridge_only: Option<Measures>,
    rounds: Vec<Measures>,
    finetune: Option<Finetune>,
    noise_samples: u64,
    samples: Samples,
    layers: Vec<Layer>,
    #[serde(default)]
    stay_attention: Vec<StaysAttention>,
    multiply_accumulates: Option<Operations>,
    latency: Option<Latency>,
    stages: Vec<Stage>,
    recipe: Recipe,
}

#[derive(Debug, Deserialize)]
struct Recipe {
    inter_ratio: f64,
}

/// Of the replaced layers, in one sample's pass.
#[derive(Debug, Deserialize)]
struct Operations {
    attention: u64,
    blocks: u64,
}

/// Of a sample in a pass through the whole model.
#[derive(Debug, Deserialize)]
struct Latency {
    teacher_seconds: f64,
    student_seconds: f64,
    batches: u64,
}

#[derive(Debug, Deserialize)]
struct Measures {
    epsilon_relative_mse: f64,
    epsilon_relative_mse_by_timestep_quarter: [Option<f64>; 4],
    psnr_db: f64,
    psnr_median_db: f64,
}

/// Training of all blocks together.
#[derive(Debug, Deserialize)]
struct Finetune {
    steps: u64,
    error_before: f64,
    error_after: f64,
    story: String,
}

#[derive(Debug, Deserialize)]
struct Samples {
    prompts: Vec<String>,
    ddim_steps: u32,
    guidance: f64,
}

#[derive(Debug, Deserialize)]
struct Layer {
    name: String,
    relative_error: f64,
    alone: Option<Alone>,
    residual_drift: Option<f64>,
    #[serde(default)]
    steps: u64,
    #[serde(default)]
    setbacks: u64,
    solved: Option<Solved>,
    kernel_size: u32,
    width: u32,
    height: u32,
    map_width: u32,
    /// Inner width of the block over the channels.
    inter_ratio: Option<f64>,
    parameters: u64,
}

/// Errors before and after a regression at the training's end.
#[derive(Debug, Deserialize)]
struct Solved {
    before: f64,
    after: f64,
}

#[derive(Debug, Deserialize)]
struct Alone {
    epsilon_relative_mse: f64,
    #[serde(default)]
    epsilon_relative_mse_by_timestep_quarter: [Option<f64>; 4],
}

#[derive(Debug, Default, Deserialize)]
struct Stage {
    stage: String,
    round: u32,
    seconds: f64,
    busy_seconds: f64,
    /// Those of workers with a GPU.
    #[serde(default)]
    gpu_seconds: f64,
    #[serde(default)]
    written_bytes: u64,
    samples: u64,
    tasks: u32,
}

impl Stage {
    /// What comes of two, under one name.
    fn add(mut self, other: &Self) -> Self {
        self.seconds += other.seconds;
        self.busy_seconds += other.busy_seconds;
        self.gpu_seconds += other.gpu_seconds;
        self.written_bytes = self.written_bytes.saturating_add(other.written_bytes);
        self.samples += other.samples;
        self.tasks += other.tasks;
        self
    }
}

fn counted(count: usize, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

impl Finetune {
    fn describe(&self) -> String {
        let Self { steps, error_before, error_after, story } = self;
        let kept = if error_after < error_before { "" } else { "; the blocks stayed as they were" };
        let story = if story.is_empty() { String::new() } else { format!("; it ended early: {story}") };
        format!(
            "all blocks trained together in {steps} steps: error of the predicted noise {error_before:.5} before and \
             {error_after:.5} after, on held-out samples of that training{story}{kept}"
        )
    }
}

impl Layer {
    /// That its block is wider than the recipe's blocks are, if it is.
    fn widened(&self, planned: f64) -> Option<String> {
        let found = self.inter_ratio.filter(|found| *found > planned)?;
        Some(format!(
            "{} was widened after the first round: its block's inner width is {found} of its channels instead of {planned}",
            self.name
        ))
    }
}

impl Report {
    fn describe(&self) -> String {
        let Self { job, teacher_class, layers, samples, .. } = self;
        let head = format!(
            "{job}: {} layers of {teacher_class} replaced by blocks\nerrors of the predicted noise on {} held-out samples, \
             over the teacher's mean square; pictures of {}, {} DDIM steps, guidance {}",
            layers.len(),
            self.noise_samples,
            counted(samples.prompts.len(), "prompt", "prompts"),
            samples.ddim_steps,
            samples.guidance,
        );
        let staying = |StaysAttention { layer, reason }: &StaysAttention| format!("{layer} stays attention: {reason}");
        let mut parts = vec![head];
        parts.extend(self.stay_attention.iter().map(staying));
        parts.extend(self.layers.iter().filter_map(|layer| layer.widened(self.recipe.inter_ratio)));
        parts.push(table::text(&self.measures()));
        parts.extend(self.finetune.as_ref().map(Finetune::describe));
        parts.push(table::text(&self.layers()));
        parts.extend(self.by_quarter().as_ref().map(table::text));
        parts.extend(self.costs());
        parts.push(table::text(&self.stages()));
        parts.join("\n\n")
    }

    fn measures(&self) -> Table {
        let quarters = ["1st quarter", "2nd", "3rd", "4th"];
        let [first, second, third, fourth] = quarters;
        let mut listing =
            table::table(["predicted noise", "error", first, second, third, fourth, "psnr mean", "median"]);
        let mut add = |name: String, measures: &Measures| {
            let errors = measures.epsilon_relative_mse_by_timestep_quarter;
            let errors = std::iter::once(Some(measures.epsilon_relative_mse)).chain(errors);
            let errors = errors.map(|error| error.map_or("–".to_owned(), |error| format!("{error:.5}")));
            let decibels = [measures.psnr_db, measures.psnr_median_db];
            let decibels = decibels.map(|psnr| format!("{psnr:.2} dB"));
            listing.add_row(std::iter::once(name).chain(errors).chain(decibels));
        };
        add("attention removed".to_owned(), &self.attention_removed);
        if let Some(measures) = &self.ridge_only {
            add("ridge only".to_owned(), measures);
        }
        for (round, measures) in self.rounds.iter().enumerate() {
            add(format!("student of round {round}"), measures);
        }
        let student = if self.finetune.is_some() { "student, end to end" } else { "student" };
        add(student.to_owned(), &self.student);
        table::numbers(&mut listing, &[1, 2, 3, 4, 5, 6, 7]);
        listing
    }

    fn layers(&self) -> Table {
        let columns = [
            "layer",
            "map",
            "channels",
            "kernel",
            "parameters",
            "steps",
            "error",
            "unsolved",
            "alone",
            "drift",
            "setbacks",
        ];
        let mut listing = table::table(columns);
        let or_dash = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.5}"));
        for layer in &self.layers {
            listing.add_row([
                layer.name.clone(),
                format!("{}×{}", layer.height, layer.map_width),
                layer.width.to_string(),
                layer.kernel_size.to_string(),
                layer.parameters.to_string(),
                if layer.steps == 0 { "–".to_owned() } else { layer.steps.to_string() },
                format!("{:.5}", layer.relative_error),
                or_dash(
                    layer.solved.as_ref().filter(|solved| solved.after < solved.before).map(|solved| solved.before),
                ),
                or_dash(layer.alone.as_ref().map(|alone| alone.epsilon_relative_mse)),
                or_dash(layer.residual_drift),
                if layer.setbacks == 0 { "–".to_owned() } else { layer.setbacks.to_string() },
            ]);
        }
        table::numbers(&mut listing, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        listing
    }

    /// What each layer's replacement alone costs, by quarters of the timesteps; none where that wasn't measured.
    fn by_quarter(&self) -> Option<Table> {
        let measured = self.layers.iter().filter_map(|layer| Some((layer, layer.alone.as_ref()?)));
        let mut listing = table::table(["replaced alone", "error", "1st quarter", "2nd", "3rd", "4th"]);
        for (layer, alone) in measured {
            let errors = alone.epsilon_relative_mse_by_timestep_quarter.into_iter();
            let errors = std::iter::once(Some(alone.epsilon_relative_mse)).chain(errors);
            let errors = errors.map(|error| error.map_or("–".to_owned(), |error| format!("{error:.5}")));
            listing.add_row(std::iter::once(layer.name.clone()).chain(errors));
        }
        table::numbers(&mut listing, &[1, 2, 3, 4, 5]);
        (!listing.is_empty()).then_some(listing)
    }

    /// What a sample costs in the teacher and in the student.
    fn costs(&self) -> Option<String> {
        let operations = self.multiply_accumulates.as_ref().map(|Operations { attention, blocks }| {
            let [attention, blocks] = [*attention, *blocks].map(|count| table::operations(count as f64));
            format!(
                "multiply-accumulates of the replaced layers in one sample: {attention} as attention, {blocks} as blocks"
            )
        });
        let latency = self.latency.as_ref().map(|Latency { teacher_seconds, student_seconds, batches }| {
            let [teacher, student] = [teacher_seconds, student_seconds].map(|seconds| seconds * 1e3);
            format!(
                "a sample's pass through the whole model: teacher {teacher:.2} ms, student {student:.2} ms, median of \
                 {} on the workers that evaluated",
                counted(*batches as usize, "batch", "batches")
            )
        });
        let lines: Vec<String> = operations.into_iter().chain(latency).collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    fn stages(&self) -> Table {
        let mut listing =
            table::table(["stage", "tasks", "samples", "time", "workers' time", "of it on GPUs", "written"]);
        let mut add = |name: String, of: &Stage| {
            let [seconds, busy, gpu] = [of.seconds, of.busy_seconds, of.gpu_seconds].map(duration::spell);
            let (tasks, samples) = (of.tasks.to_string(), of.samples.to_string());
            listing.add_row([name, tasks, samples, seconds, busy, gpu, table::bytes(of.written_bytes)]);
        };
        for of in &self.stages {
            add(stage::name(&of.stage, of.round), of);
        }
        add("total".to_owned(), &self.stages.iter().fold(Stage::default(), Stage::add));
        table::numbers(&mut listing, &[1, 2, 3, 4, 5, 6]);
        listing
    }
}
