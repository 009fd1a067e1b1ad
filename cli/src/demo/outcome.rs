//! What the demo achieved and where it lies.

use std::path::Path;

use deltaconv_proto::v1;
use serde::{Deserialize, Serialize};

use crate::commands::status;
use crate::{duration, stage};

/// The end of a demo, kept so that it can be told again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Outcome {
    job_id: String,
    layers: usize,
    seconds: f64,
    stages: Vec<StageSeconds>,
    figures: v1::Figures,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StageSeconds {
    stage: String,
    seconds: f64,
    samples: u64,
}

/// An outcome and where it lies, as `-o json` writes it.
#[derive(Serialize)]
pub(super) struct Told<'a> {
    #[serde(flatten)]
    outcome: &'a Outcome,
    output: String,
    report: String,
    samples: String,
}

impl Outcome {
    /// From the last status of a job that is done.
    pub(super) fn of(status: &v1::JobStatus) -> Option<Self> {
        let figures = status.figures.clone()?;
        let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1000.0;
        let stage = |stage: &v1::StageStatus| StageSeconds {
            stage: stage::name(&stage.stage, stage.round),
            seconds: seconds(stage.started_unix_ms, stage.finished_unix_ms),
            samples: stage.samples,
        };
        let summary = status.summary.clone().unwrap_or_default();
        Some(Self {
            job_id: summary.job_id,
            layers: status.layers.len(),
            seconds: seconds(summary.created_unix_ms, summary.finished_unix_ms),
            stages: status.stages.iter().map(stage).collect(),
            figures,
        })
    }

    /// For programs.
    pub(super) fn told(&self, folder: &Path) -> Told<'_> {
        let at = |below: &str| folder.join(below).display().to_string();
        Told {
            outcome: self,
            output: at("output"),
            report: at("report/report.html"),
            samples: at("report/samples.png"),
        }
    }

    /// For people.
    pub(super) fn describe(&self, teacher: &str, folder: &Path) -> String {
        let stage = |stage: &StageSeconds| format!("{} {}", stage.stage, duration::spell(stage.seconds));
        let stages: Vec<String> = self.stages.iter().map(stage).collect();
        let told = self.told(folder);
        format!(
            "{teacher} converted: {} attention layers replaced by blocks in {}\n\
             time by stage                 {}\n\
             {}\n\n\
             converted model  {}\n\
             report           {}\n\
             samples          {}",
            self.layers,
            duration::spell(self.seconds),
            stages.join(", "),
            status::figures(&self.figures),
            told.output,
            told.report,
            told.samples,
        )
    }
}
