//! `deltaconv.json`: what a converted model is, for whoever loads it.

use crate::brief::Brief;
use crate::code::Code;
use crate::v1::{JobPlan, LayerPlan};
use serde::{Deserialize, Serialize};

/// Changes when a reader of the former one would misread the model.
pub const FORMAT_VERSION: u32 = 1;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// What was converted.
    pub teacher: Teacher,
    /// The replaced layers in forward order.
    pub layers: Vec<Layer>,
    /// Names of the layers that were kept as attention, in forward order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<String>,
}

/// What was converted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Teacher {
    /// Class of the denoiser.
    pub class: String,
    /// BLAKE3 of the denoiser's safetensors file, hex; of several files, that of their digests in a row.
    pub digest: String,
}

/// One layer's block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// diffusers' module path.
    pub name: String,
    /// Channels C of its input and output.
    pub width: u32,
    /// K of its depthwise convolutions.
    pub kernel_size: u32,
    /// Scales of the pyramid, 1 first.
    pub scales: Vec<f64>,
    /// "scaled" or "sigmoid".
    pub gate: String,
    /// Inner width over C.
    pub inter_ratio: f64,
}

/// Why a file is no description that this version reads.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No JSON, or another object.
    #[error("{}", Brief(.0))]
    Json(#[from] serde_json::Error),
    /// Of another version.
    #[error("format_version is {found}, this version reads {FORMAT_VERSION}")]
    Version {
        /// What the file says.
        found: u32,
    },
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Json(_) | Self::Version { .. } => Code::Description,
        }
    }
}

impl Layer {
    /// What a plan says of the block; its map and parameters are not known.
    pub fn plan(&self) -> LayerPlan {
        LayerPlan {
            name: self.name.clone(),
            channels: self.width,
            kernel_size: self.kernel_size,
            scales: self.scales.clone(),
            gate: self.gate.clone(),
            inter_ratio: self.inter_ratio,
            ..LayerPlan::default()
        }
    }
}

impl Description {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::Json`], and [`Error::Version`] for a version that would be misread.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let description: Self = serde_json::from_slice(json)?;
        match description.format_version {
            FORMAT_VERSION => Ok(description),
            found => Err(Error::Version { found }),
        }
    }

    /// The description of a job's output; `teacher_digest` is known once the teacher was read whole.
    pub fn new(plan: &JobPlan, teacher_digest: String) -> Self {
        let teacher = Teacher { class: plan.teacher_class.clone(), digest: teacher_digest };
        let layer = |layer: &LayerPlan| Layer {
            name: layer.name.clone(),
            width: layer.channels,
            kernel_size: layer.kernel_size,
            scales: layer.scales.clone(),
            gate: layer.gate.clone(),
            inter_ratio: layer.inter_ratio,
        };
        let (layers, kept) = (plan.layers.iter().map(layer).collect(), plan.kept.clone());
        Self { format_version: FORMAT_VERSION, teacher, layers, kept }
    }
}
