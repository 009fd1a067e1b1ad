//! `report.json`. Its names are a contract: scripts read them.

use deltaconv_proto::v1::{Figures, FinetuneOutput, LayerPlan, ObjectRef, Recipe, StaysAttention};
use serde::Serialize;

use super::figures::{Compared, Comparison, Latency, OfLayer};
use super::samples::Pair;
use super::training::{Solved, Training};
use super::{Error, Layer, ReportInput, StageFigures};
use crate::assemble;
use crate::plan::cost;
use deltaconv_proto::description::Description;

/// Changes when a name or its meaning does.
const FORMAT_VERSION: u32 = 1;
/// Points of a curve: a report of 200 layers stays below a megabyte by them.
const CURVE: usize = 64;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) format_version: u32,
    pub(super) job: String,
    pub(super) teacher_url: String,
    pub(super) teacher_class: String,
    pub(super) seed: u64,
    #[serde(flatten)]
    pub(super) student: Measures,
    pub(super) attention_removed: Measures,
    /// The student that the first round started from, of jobs where regressions gave that.
    pub(super) ridge_only: Option<Measures>,
    /// The student of each round before the last, and of that one where its blocks were trained further together.
    pub(super) rounds: Vec<Round>,
    /// What that did, on its own held-out samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) finetune: Option<Finetune>,
    pub(super) noise_samples: u64,
    /// Those of them on which the layers' `alone` and `residual_drift` were measured.
    pub(super) layer_samples: u64,
    pub(super) samples: Samples,
    pub(super) layers: Vec<LayerEntry>,
    /// Layers that were to be replaced and stay attention.
    pub(super) stay_attention: Vec<StaysAttention>,
    /// Of the replaced layers, in one sample's pass at the size of `layers`.
    pub(super) multiply_accumulates: Operations,
    /// Of a sample's pass through the whole model, as the evaluation had it.
    pub(super) latency: Option<Latency>,
    pub(super) stages: Vec<StageFigures>,
    pub(super) digests: Digests,
    pub(super) recipe: Recipe,
}

#[derive(Debug, Serialize)]
pub(super) struct Measures {
    pub(super) epsilon_relative_mse: f64,
    pub(super) epsilon_relative_mse_by_timestep_quarter: [Option<f64>; 4],
    pub(super) psnr_db: f64,
    pub(super) psnr_median_db: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Round {
    pub(super) round: usize,
    #[serde(flatten)]
    pub(super) measures: Measures,
}

/// Training of all blocks together.
#[derive(Debug, Serialize)]
pub(super) struct Finetune {
    /// That were taken.
    pub(super) steps: u64,
    /// Errors of the predicted noise. Where the second is not less, the blocks stayed as they were.
    pub(super) error_before: f64,
    pub(super) error_after: f64,
    /// Why it ended early, if it did.
    pub(super) story: String,
}

/// The teacher with one layer replaced.
#[derive(Debug, Serialize)]
pub(super) struct Alone {
    pub(super) epsilon_relative_mse: f64,
    pub(super) epsilon_relative_mse_by_timestep_quarter: [Option<f64>; 4],
}

#[derive(Debug, Serialize)]
pub(super) struct Samples {
    /// By picture, in the order of samples.png.
    pub(super) prompts: Vec<String>,
    /// By picture.
    pub(super) psnr_db: Vec<f64>,
    pub(super) ddim_steps: u32,
    pub(super) guidance: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct LayerEntry {
    pub(super) name: String,
    pub(super) relative_error: f64,
    /// What its replacement alone costs the predicted noise.
    pub(super) alone: Option<Alone>,
    /// The student's residual stream before it: squared difference from the teacher's over the teacher's mean square.
    pub(super) residual_drift: Option<f64>,
    /// Of its block's last training, as many as it took.
    pub(super) steps: u64,
    /// Its curve: steps, training error, and held-out error where it was measured.
    pub(super) curve: Vec<(u64, f32, Option<f32>)>,
    /// How often training diverged and went back.
    pub(super) setbacks: usize,
    /// What a regression at its end came to.
    pub(super) solved: Option<Solved>,
    pub(super) kernel_size: u32,
    /// Channels of the layer's input and output.
    pub(super) width: u32,
    /// Height of its map.
    pub(super) height: u32,
    pub(super) map_width: u32,
    /// Inner width of its block over the channels: where that is more than the recipe's, it was widened after the first round.
    pub(super) inter_ratio: f64,
    pub(super) parameters: u64,
    pub(super) multiply_accumulates: Operations,
}

/// Multiply-accumulates as [`crate::plan::cost`] counts them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Operations {
    pub(super) attention: u64,
    pub(super) blocks: u64,
}

impl Operations {
    fn of(plan: &LayerPlan) -> Self {
        let (channels, map) = (plan.channels as usize, [plan.height as usize, plan.width as usize]);
        let block = cost::Block::planned(plan);
        let count = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
        Self { attention: count(cost::Attention::of(channels, map).total()), blocks: count(block.total()) }
    }

    fn sum(all: impl Iterator<Item = Self>) -> Self {
        all.fold(Self::default(), |a, b| Self {
            attention: a.attention.saturating_add(b.attention),
            blocks: a.blocks.saturating_add(b.blocks),
        })
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Digests {
    pub(super) teacher: String,
    pub(super) blocks: String,
    pub(super) model: String,
}

impl Report {
    pub(super) fn new(
        input: &ReportInput<'_>,
        description: &Description,
        compared: &Compared,
        pictures: &[Pair],
        layers: &[Layer],
    ) -> Result<Self, Error> {
        let spec = input.spec;
        let evaluation = spec.evaluation.unwrap_or_default();
        let starts_by_ridge = spec.recipe.as_ref().is_some_and(Recipe::starts_by_ridge);
        let (started, rounds) = compared.earlier.split_at(usize::from(starts_by_ridge).min(compared.earlier.len()));
        let digest = |key: String| written(input.output, &key).map(|object| object.digest.clone());
        Ok(Self {
            format_version: FORMAT_VERSION,
            job: spec.name.clone(),
            teacher_url: spec.teacher_url.clone(),
            teacher_class: input.plan.teacher_class.clone(),
            seed: spec.data.as_ref().map_or(0, |data| data.seed),
            student: Measures::new(&compared.student),
            attention_removed: Measures::new(&compared.removed),
            ridge_only: started.first().map(Measures::new),
            rounds: rounds.iter().enumerate().map(Round::new).collect(),
            finetune: input.finetuned.map(Finetune::new),
            noise_samples: compared.noise_samples,
            layer_samples: compared.layer_samples,
            samples: Samples {
                prompts: pictures.iter().map(|pair| pair.prompt.clone()).collect(),
                psnr_db: compared.student.psnr_each_db.clone(),
                ddim_steps: evaluation.ddim_steps,
                guidance: evaluation.guidance,
            },
            layers: layers
                .iter()
                .enumerate()
                .map(|(i, layer)| LayerEntry::new(layer, compared.layers.get(i)))
                .collect(),
            stay_attention: input.staying.to_vec(),
            multiply_accumulates: Operations::sum(layers.iter().map(|layer| Operations::of(&layer.plan))),
            latency: compared.latency,
            stages: input.stages.to_vec(),
            digests: Digests {
                teacher: description.teacher.digest.clone(),
                blocks: digest(assemble::blocks_key())?,
                model: digest(assemble::model_key(input.plan))?,
            },
            recipe: spec.recipe.clone().unwrap_or_default(),
        })
    }

    pub(super) fn figures(&self) -> Figures {
        Figures {
            epsilon_relative_mse: self.student.epsilon_relative_mse,
            psnr_db: self.student.psnr_db,
            removed_epsilon_relative_mse: self.attention_removed.epsilon_relative_mse,
            removed_psnr_db: self.attention_removed.psnr_db,
            blocks_digest: self.digests.blocks.clone(),
            stay_attention: self.stay_attention.clone(),
        }
    }
}

/// The object of the output with this key.
pub(super) fn written<'a>(output: &'a [ObjectRef], key: &str) -> Result<&'a ObjectRef, Error> {
    output.iter().find(|object| object.key == key).ok_or_else(|| Error::NotWritten { key: key.to_owned() })
}

impl Measures {
    fn new(comparison: &Comparison) -> Self {
        Self {
            epsilon_relative_mse: comparison.epsilon_relative_mse,
            epsilon_relative_mse_by_timestep_quarter: comparison.by_timestep_quarter,
            psnr_db: comparison.psnr_db,
            psnr_median_db: comparison.psnr_median_db,
        }
    }
}

impl Finetune {
    fn new(output: &FinetuneOutput) -> Self {
        let FinetuneOutput { steps, error_before, error_after, story, .. } = output;
        Self { steps: *steps, error_before: *error_before, error_after: *error_after, story: story.clone() }
    }
}

impl Round {
    fn new((round, comparison): (usize, &Comparison)) -> Self {
        Self { round, measures: Measures::new(comparison) }
    }
}

impl LayerEntry {
    fn new(layer: &Layer, found: Option<&OfLayer>) -> Self {
        Self {
            name: layer.plan.name.clone(),
            relative_error: layer.relative_error,
            alone: found.map(|OfLayer { alone, .. }| Alone {
                epsilon_relative_mse: alone.epsilon_relative_mse,
                epsilon_relative_mse_by_timestep_quarter: alone.by_timestep_quarter,
            }),
            residual_drift: found.map(|found| found.drift),
            steps: layer.training.curve.last().map_or(0, |point| point.step),
            curve: curve(&layer.training),
            setbacks: layer.training.setbacks.len(),
            solved: layer.training.solved,
            kernel_size: layer.plan.kernel_size,
            width: layer.plan.channels,
            height: layer.plan.height,
            map_width: layer.plan.width,
            inter_ratio: layer.plan.inter_ratio,
            parameters: layer.plan.parameters,
            multiply_accumulates: Operations::of(&layer.plan),
        }
    }
}

fn curve(training: &Training) -> Vec<(u64, f32, Option<f32>)> {
    let thinned = training.clone().thinned(CURVE).curve;
    thinned.into_iter().map(|point| (point.step, point.loss as f32, point.held_out.map(|error| error as f32))).collect()
}
