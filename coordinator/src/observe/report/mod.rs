//! What a conversion achieved: `report.json` for scripts; `samples.png`, `loss.svg` and `report.html` for people.

mod canvas;
mod error;
mod figures;
mod html;
mod json;
mod loss;
mod number;
mod part;
mod psnr;
mod samples;
#[cfg(test)]
mod tests;
mod ticks;
mod training;

use deltaconv_proto::objects::Objects;
use deltaconv_proto::teacher::Scheduler;
use deltaconv_proto::v1::{
    DistillOutput, Figures, FinetuneOutput, JobPlan, JobSpec, LayerPlan, ObjectRef, StaysAttention,
};
use deltaconv_proto::{images, keys, prompts, safetensors};
use serde::Serialize;

pub use error::Error;
pub use part::{ByLayer, Noise, Part, PartError, Pictures};
pub use training::{Point, Training};

use crate::assemble;
use crate::plan::data::{PROMPTS, Prompts};
use crate::plan::teacher::SCHEDULER;
use deltaconv_proto::description::Description;

/// One step of the job, as it went.
#[derive(Clone, Debug, Serialize)]
pub struct StageFigures {
    /// "synthesise", "capture", "distill", "finetune", "assemble" or "evaluate".
    pub stage: String,
    /// Of a stage that is repeated.
    pub round: u32,
    /// From its first lease to its last commit.
    pub seconds: f64,
    /// Sum over the attempts that were committed.
    pub busy_seconds: f64,
    /// Of them, those of workers with a GPU.
    pub gpu_seconds: f64,
    /// Of the objects that were accepted.
    pub written_bytes: u64,
    /// Samples that went through it.
    pub samples: u64,
    /// Its tasks.
    pub tasks: u32,
}

/// What a report is made of.
#[derive(Clone, Copy, Debug)]
pub struct ReportInput<'a> {
    /// The job as submitted.
    pub spec: &'a JobSpec,
    /// Its plan.
    pub plan: &'a JobPlan,
    /// What assembly wrote, with keys under the job's prefix.
    pub output: &'a [ObjectRef],
    /// The committed block of every layer.
    pub blocks: &'a [(LayerPlan, DistillOutput)],
    /// The committed parts of the evaluation, in the order of [`crate::plan::evaluation_parts`].
    pub evaluation: &'a [ObjectRef],
    /// The job's stages in order.
    pub stages: &'a [StageFigures],
    /// The layers that the plan would replace and that stay attention.
    pub staying: &'a [StaysAttention],
    /// What came of training the blocks together, of a job that did.
    pub finetuned: Option<&'a FinetuneOutput>,
}

/// The report for scripts, written last: where it stands, the rest does.
pub(crate) const JSON: &str = "report.json";
/// Pictures of teacher and student.
pub(crate) const SAMPLES: &str = "samples.png";

/// Most bytes of the data's prompts.
const MAX_BYTES: u64 = 16 << 20;

/// Writes the report under the job's prefix, `report.json` last, and returns its main figures.
///
/// # Errors
/// An object that is missing or broken, or figures that can't be computed from the parts.
pub async fn write(input: ReportInput<'_>) -> Result<Figures, Error> {
    let objects = Objects::open(&input.spec.output_url)?;
    let description = read_description(&objects, &input).await?;
    let mut prompts = read_prompts(input.spec).await?;
    let timesteps = read_timesteps(&objects, &input).await?;

    let mut measured = figures::Measured::new(timesteps, input.blocks.len());
    let mut pictures = Vec::new();
    for object in input.evaluation {
        let bytes = objects.get_verified(object).await?;
        // Numbers are read, compared and drawn off the async threads, which that would hold too long.
        let read =
            tokio::task::spawn_blocking(move || read_part(&bytes, measured, pictures, &prompts).map(|r| (r, prompts)));
        let read = read.await.map_err(|e| Error::Interrupted(e.to_string()))?;
        ((measured, pictures), prompts) = read.map_err(|source| Error::Part { key: object.key.clone(), source })?;
    }
    let compared = measured.compared()?;
    let layers = read_layers(&objects, &input).await?;
    let report = json::Report::new(&input, &description, &compared, &pictures, &layers)?;

    let rendered = tokio::task::spawn_blocking(move || render(&report, &pictures, &layers)).await;
    let rendered = rendered.map_err(|e| Error::Interrupted(e.to_string()))??;
    for (name, bytes) in rendered.files {
        objects.put(&format!("{}/{name}", keys::REPORT), bytes).await?;
    }
    Ok(rendered.figures)
}

/// Adds a part to what was measured and to the pictures so far.
fn read_part(
    bytes: &[u8],
    mut measured: figures::Measured,
    mut pictures: Vec<samples::Pair>,
    prompts: &[String],
) -> Result<(figures::Measured, Vec<samples::Pair>), PartError> {
    match Part::parse(bytes)? {
        Part::Noise(noise) => measured.add_noise(&noise)?,
        Part::Pictures(part) => {
            measured.add_pictures(&part);
            pictures.extend(samples::pairs(&part, prompts));
        }
    }
    Ok((measured, pictures))
}

/// One layer's plan with how its block's training went.
#[derive(Debug)]
struct Layer {
    plan: LayerPlan,
    relative_error: f64,
    training: Training,
}

struct Rendered {
    files: [(&'static str, Vec<u8>); 4],
    figures: Figures,
}

/// Draws the pictures and writes the pages. Takes long enough to need a thread of its own.
fn render(report: &json::Report, pictures: &[samples::Pair], layers: &[Layer]) -> Result<Rendered, Error> {
    let png = samples::png(pictures)?;
    let svg = loss::svg(layers);
    let html = html::page(report, &png, &svg);
    let mut json = serde_json::to_vec_pretty(report).map_err(Error::Json)?;
    json.push(b'\n');
    let files = [(SAMPLES, png), ("loss.svg", svg.into_bytes()), ("report.html", html.into_bytes()), (JSON, json)];
    Ok(Rendered { files, figures: report.figures() })
}

async fn read_description(objects: &Objects, input: &ReportInput<'_>) -> Result<Description, Error> {
    let object = json::written(input.output, &assemble::description_key())?;
    let bytes = objects.get_verified(object).await?;
    serde_json::from_slice(&bytes).map_err(|source| Error::File { key: object.key.clone(), source })
}

async fn read_prompts(spec: &JobSpec) -> Result<Vec<String>, Error> {
    let Some(data) = &spec.data else { return Ok(Vec::new()) };
    if let Some(synthesis) = &data.synthesis {
        return Ok(prompts::Prompts::read(&synthesis.prompts_url).await?.texts);
    }
    if let Some(images) = &data.images {
        let index = images::Index::read(&images.url, images.count as usize).await?;
        return Ok(index.images.into_iter().map(|image| image.caption).collect());
    }
    let bytes = Objects::open(&data.url)?.get(PROMPTS, MAX_BYTES).await?;
    let Prompts { prompts } =
        serde_json::from_slice(&bytes).map_err(|source| Error::File { key: PROMPTS.to_owned(), source })?;
    Ok(prompts)
}

/// Timesteps of the noise schedule, from the converted model's copy of its configuration.
async fn read_timesteps(objects: &Objects, input: &ReportInput<'_>) -> Result<usize, Error> {
    let key = format!("{}/{SCHEDULER}", keys::OUTPUT);
    let json = objects.get_verified(json::written(input.output, &key)?).await?;
    let scheduler = Scheduler::parse(&json).map_err(|source| Error::Scheduler { key, source })?;
    Ok(scheduler.num_train_timesteps)
}

async fn read_layers(objects: &Objects, input: &ReportInput<'_>) -> Result<Vec<Layer>, Error> {
    let mut layers = Vec::with_capacity(input.blocks.len());
    for (plan, output) in input.blocks {
        let object = output.block.as_ref().ok_or_else(|| Error::NoBlock { layer: plan.name.clone() })?;
        // Whole, though its header would do: that alone has no digest.
        let bytes = objects.get_verified(object).await?;
        let (header, _) =
            safetensors::parse(&bytes).map_err(|source| Error::Block { key: object.key.clone(), source })?;
        let training = Training::parse(&header.metadata)
            .map_err(|source| Error::Part { key: object.key.clone(), source })?
            .thinned(loss::DRAWN);
        layers.push(Layer { plan: plan.clone(), relative_error: output.relative_error, training });
    }
    layers.sort_by_key(|layer| layer.plan.index);
    Ok(layers)
}
