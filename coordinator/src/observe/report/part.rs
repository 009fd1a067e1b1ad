//! A part of the evaluation, as a worker writes it: a safetensors object of one of two forms.
//!
//! Noise: `timestep` [n] I64, `energy` [n] F64 (sum of squares of the teacher's predicted noise), `student_error` and
//! `removed_error` [n] F64 (sums of squared differences from it, of the student and of the teacher without attention), and
//! after further rounds `round_error` [r, n] F64 (of the student of each round before the last). Of m of these samples and l
//! layers, all or none: `layer_timestep` [m] I64, `layer_energy` [m] F64 (as `energy`), and [l, m] F64 `alone_error` (as
//! `student_error`, of the teacher with only this layer replaced), `stream_energy` and `stream_error` (of the residual stream
//! before the layer: the teacher's sum of squares, and that of the student's difference from it). Of b batches, both or
//! neither: `teacher_seconds` and `student_seconds` [b] F64, of a pass over the samples of its batch.
//! Pictures: `teacher`, `student`, `removed` [n,3,H,W] F32, about −1 to 1, and `prompt` [n] I64; and after further rounds
//! `rounds` [r,n,3,H,W] F32 (of the student of each round before the last).

use deltaconv_proto::Brief;
use deltaconv_proto::code::Code;
use deltaconv_proto::safetensors::Dtype;

use crate::assemble::TensorError;
use crate::assemble::tensors::{Expected, Tensors, exactly};

const ROUND_ERROR: &str = "round_error";
/// Of pictures.
const ROUNDS: &str = "rounds";
const ALONE_ERROR: &str = "alone_error";
const SECONDS: [&str; 2] = ["teacher_seconds", "student_seconds"];

/// The error of the predicted noise, sample by sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Noise {
    /// Timestep of each sample.
    pub timestep: Vec<i64>,
    /// Σε² of the teacher.
    pub energy: Vec<f64>,
    /// Σ(ε − ε_student)².
    pub student_error: Vec<f64>,
    /// Σ(ε − ε_removed)²: attention removed, and nothing in its place.
    pub removed_error: Vec<f64>,
    /// Σ(ε − ε_student)² of each earlier student.
    pub round_error: Vec<Vec<f64>>,
    /// Of a part without, of no samples and no layers.
    pub by_layer: ByLayer,
    /// By batch, of a pass of the teacher over the batch's samples.
    pub teacher_seconds: Vec<f64>,
    /// And of the student.
    pub student_seconds: Vec<f64>,
}

/// What the layers do to the student one by one, of some of the samples. Of [l][m], rows are the layers and columns the samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ByLayer {
    /// Timestep of each sample.
    pub timestep: Vec<i64>,
    /// Σε² of the teacher.
    pub energy: Vec<f64>,
    /// Σ(ε − ε_alone)²: the teacher with only this layer replaced: [l][m].
    pub alone_error: Vec<Vec<f64>>,
    /// Σh² of the teacher's residual stream before the layer: [l][m].
    pub stream_energy: Vec<Vec<f64>>,
    /// Σ(h − h_student)²: [l][m].
    pub stream_error: Vec<Vec<f64>>,
}

/// Pictures from the same noise and prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Pictures {
    /// Row of each picture's prompt.
    pub prompt: Vec<i64>,
    /// H.
    pub height: usize,
    /// W.
    pub width: usize,
    /// [n,3,H,W].
    pub teacher: Vec<f32>,
    /// [n,3,H,W].
    pub student: Vec<f32>,
    /// [n,3,H,W].
    pub removed: Vec<f32>,
    /// [n,3,H,W] of each earlier student.
    pub rounds: Vec<Vec<f32>>,
}

/// One part.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// The error of the predicted noise.
    Noise(Noise),
    /// Pictures.
    Pictures(Pictures),
}

/// Why a part, or what a block says of its training, can't be read.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// The tensors are not those of a part.
    #[error(transparent)]
    Tensors(#[from] TensorError),
    /// A number that no such tensor has.
    #[error("`{name}` has {value} at {index}; expected {expected}")]
    Value {
        /// The tensor.
        name: &'static str,
        /// Position.
        index: usize,
        /// The number.
        value: f64,
        /// What it could be.
        expected: &'static str,
    },
    /// Not as many rows as layers were replaced.
    #[error("`alone_error` has {found} rows; expected one for each of {expected} layers")]
    Layers {
        /// Its rows.
        found: usize,
        /// The job's blocks.
        expected: usize,
    },
    /// The metadata of a block.
    #[error("metadata `{name}` is {}; expected {expected}", Brief(.found))]
    Metadata {
        /// The entry.
        name: &'static str,
        /// What it says, shortened.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl PartError {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Tensors(_) | Self::Value { .. } | Self::Layers { .. } | Self::Metadata { .. } => {
                Code::EvaluationUnreadable
            }
        }
    }
}

impl Part {
    /// Reads a part. All numbers of the result are finite, sums of squares are not negative, and lengths agree.
    ///
    /// # Errors
    /// The first tensor that is missing, superfluous, of another shape or type, or has a number it can't have.
    pub fn parse(bytes: &[u8]) -> Result<Self, PartError> {
        let tensors = Tensors::parse(bytes)?;
        if tensors.header.tensors.contains_key("energy") {
            return Ok(Self::Noise(Noise::read(&tensors)?));
        }
        Ok(Self::Pictures(Pictures::read(&tensors)?))
    }
}

impl Noise {
    fn read(tensors: &Tensors<'_>) -> Result<Self, PartError> {
        let n = tensors.header.tensors.get("energy").and_then(|info| info.shape.first().copied()).unwrap_or_default();
        let rounds =
            tensors.header.tensors.get(ROUND_ERROR).map(|info| info.shape.first().copied().unwrap_or_default());
        let mut expected =
            ["energy", "student_error", "removed_error"].map(|name| Expected::new(name, Dtype::F64, [n])).to_vec();
        expected.push(Expected::new("timestep", Dtype::I64, [n]));
        expected.extend(rounds.map(|rounds| Expected::new(ROUND_ERROR, Dtype::F64, [rounds, n])));
        // Of another number of dimensions it is not what is expected below.
        let by_layer = tensors.header.tensors.get(ALONE_ERROR).map(|info| match info.shape[..] {
            [layers, samples] => [layers, samples],
            _ => [0, 0],
        });
        if let Some([layers, samples]) = by_layer {
            expected.push(Expected::new("layer_timestep", Dtype::I64, [samples]));
            expected.push(Expected::new("layer_energy", Dtype::F64, [samples]));
            let tables = [ALONE_ERROR, "stream_energy", "stream_error"];
            expected.extend(tables.map(|name| Expected::new(name, Dtype::F64, [layers, samples])));
        }
        let has_seconds = tensors.header.tensors.contains_key(SECONDS[0]);
        if has_seconds {
            let shape = tensors.header.tensors[SECONDS[0]].shape.clone();
            expected.extend(SECONDS.map(|name| Expected::new(name, Dtype::F64, shape.clone())));
        }
        exactly(&tensors.header, &expected)?;
        let positive = |name: &'static str, expected: &'static str| {
            let numbers = tensors.f64(name)?;
            match numbers.iter().enumerate().find(|(_, value)| **value < 0.0) {
                None => Ok(numbers),
                Some((index, &value)) => Err(PartError::Value { name, index, value, expected }),
            }
        };
        let sum = |name| positive(name, "a sum of squares, 0 or more");
        let seconds = |name| if has_seconds { positive(name, "a time, 0 or more") } else { Ok(Vec::new()) };
        let rows = |name, [rows, columns]: [usize; 2]| {
            let numbers = sum(name)?;
            // Rows of nothing could be any number of them.
            let rows = if columns == 0 { 0 } else { rows };
            let row = |row: usize| numbers[row * columns..(row + 1) * columns].to_vec();
            Ok::<_, PartError>((0..rows).map(row).collect())
        };
        Ok(Self {
            by_layer: match by_layer {
                None => ByLayer::default(),
                Some(shape) => ByLayer {
                    timestep: tensors.i64("layer_timestep"),
                    energy: sum("layer_energy")?,
                    alone_error: rows(ALONE_ERROR, shape)?,
                    stream_energy: rows("stream_energy", shape)?,
                    stream_error: rows("stream_error", shape)?,
                },
            },
            teacher_seconds: seconds(SECONDS[0])?,
            student_seconds: seconds(SECONDS[1])?,
            timestep: tensors.i64("timestep"),
            energy: sum("energy")?,
            student_error: sum("student_error")?,
            removed_error: sum("removed_error")?,
            round_error: match rounds {
                None => Vec::new(),
                Some(rounds) => rows(ROUND_ERROR, [rounds, n])?,
            },
        })
    }
}

impl Pictures {
    fn read(tensors: &Tensors<'_>) -> Result<Self, PartError> {
        let shape = match tensors.header.tensors.get("teacher").map(|info| info.shape.as_slice()) {
            Some(&[n, 3, height, width]) => [n, 3, height, width],
            // Of no shape that could be right; the check below says so.
            _ => [1, 3, 1, 1],
        };
        let [n, channels, height, width] = shape;
        let rounds = tensors.header.tensors.get(ROUNDS).map(|info| info.shape.first().copied().unwrap_or_default());
        let pictures = ["teacher", "student", "removed"].map(|name| Expected::new(name, Dtype::F32, shape));
        let mut expected = [&pictures[..], &[Expected::new("prompt", Dtype::I64, [n])]].concat();
        expected.extend(rounds.map(|rounds| Expected::new(ROUNDS, Dtype::F32, [rounds, n, channels, height, width])));
        exactly(&tensors.header, &expected)?;
        let of_each = (n * channels * height * width).max(1);
        Ok(Self {
            rounds: match rounds {
                None => Vec::new(),
                Some(_) => tensors.f32(ROUNDS)?.chunks(of_each).map(<[f32]>::to_vec).collect(),
            },
            prompt: tensors.i64("prompt"),
            height,
            width,
            teacher: tensors.f32("teacher")?,
            student: tensors.f32("student")?,
            removed: tensors.f32("removed")?,
        })
    }

    /// The numbers [3,H,W] of picture `i` in `pictures`, one of this part's tensors; empty where there is none.
    pub(super) fn picture<'a>(&self, pictures: &'a [f32], i: usize) -> &'a [f32] {
        let len = 3 * self.height * self.width;
        pictures.get(i * len..(i + 1) * len).unwrap_or_default()
    }
}
