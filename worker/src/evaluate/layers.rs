//! What the layers do to the student, one by one: what replacing each alone costs the predicted noise, and how far the residual
//! stream has drifted from the teacher's where it reaches each.

use std::collections::HashMap;

use candle_core::{D, DType, Tensor};
use deltaconv_proto::draw::Sample;
use deltaconv_proto::safetensors::Dtype;
use deltaconv_proto::v1;

use super::alone::Alone;
use super::{Evaluated, MODELS, predict, squares};
use crate::blocks::{Blocks, InPlace};
use crate::capture::Inputs;
use crate::task::{Context, Error};
use crate::teacher::{self, Call, SelfAttention};

/// Found of some samples. Of [l, m], rows are the student's blocks in the plan's order and columns the samples.
#[derive(Default)]
pub(super) struct ByLayer {
    /// [m].
    pub(super) timestep: Vec<i64>,
    /// Of the teacher's predicted noise, a sum of squares: [m].
    pub(super) energy: Vec<f64>,
    /// Of the noise that the teacher predicts with one block in place of its layer: [l, m].
    pub(super) alone_error: Vec<Vec<f64>>,
    /// Of the teacher's residual stream before the layer, a sum of squares: [l, m].
    pub(super) stream_energy: Vec<Vec<f64>>,
    /// Of the student's: [l, m].
    pub(super) stream_error: Vec<Vec<f64>>,
}

/// The student's layers in the plan's order.
pub(super) fn replaced<'a>(plan: &'a v1::JobPlan, blocks: &Blocks) -> Vec<&'a str> {
    plan.layers.iter().map(|layer| layer.name.as_str()).filter(|name| blocks.contains_key(*name)).collect()
}

/// Looks at one sample in so many, so that this takes no more passes than comparing the models on all.
pub(super) fn one_in(layers: usize) -> usize {
    passes(layers).div_ceil(MODELS)
}

/// Of a batch through a model: once more the teacher and the student, and the teacher with each layer replaced.
pub(super) fn passes(layers: usize) -> usize {
    layers + 2
}

impl ByLayer {
    pub(super) fn new(layers: usize) -> Self {
        let rows = || vec![Vec::new(); layers];
        Self { alone_error: rows(), stream_energy: rows(), stream_error: rows(), ..Self::default() }
    }

    /// Adds the samples of one batch.
    pub(super) fn add(
        &mut self,
        context: &Context,
        models: &Evaluated,
        layers: &[&str],
        inputs: &Inputs,
        batch: &[Sample],
    ) -> Result<(), Error> {
        let (teacher, student) = (&models.teacher.denoiser, &models.student.denoiser);
        let mut reached = Reached::default();
        let expected = predict(context, teacher, inputs, &mut reached)?;
        let mut drifting = Drifting { student: models.student.attention(), reached, sums: HashMap::new() };
        predict(context, student, inputs, &mut drifting)?;

        self.timestep.extend(batch.iter().map(|sample| sample.timestep as i64));
        self.energy.extend(squares(&expected, None, batch.len()));
        for (row, &layer) in layers.iter().enumerate() {
            let block = models.student.blocks().get(layer).ok_or(Error::Incomplete("block"))?;
            let alone = &mut Alone { block, layer };
            let noise = predict(context, teacher, inputs, alone)?;
            self.alone_error[row].extend(squares(&noise, Some(&expected), batch.len()));
            let (energy, error) = drifting.sums.remove(layer).ok_or(Error::Incomplete("layer"))?;
            self.stream_energy[row].extend(energy);
            self.stream_error[row].extend(error);
        }
        Ok(())
    }

    /// The tensors' names and shapes, and their bytes, in order.
    pub(super) fn tensors(&self) -> [(&'static str, Dtype, Vec<usize>, Vec<u8>); 5] {
        let samples = self.timestep.len();
        let rows = |name, rows: &[Vec<f64>]| {
            let bytes = rows.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
            (name, Dtype::F64, vec![rows.len(), samples], bytes)
        };
        let timestep = self.timestep.iter().flat_map(|value| value.to_le_bytes()).collect();
        let energy = self.energy.iter().flat_map(|value| value.to_le_bytes()).collect();
        [
            ("layer_timestep", Dtype::I64, vec![samples], timestep),
            ("layer_energy", Dtype::F64, vec![samples], energy),
            rows("alone_error", &self.alone_error),
            rows("stream_energy", &self.stream_energy),
            rows("stream_error", &self.stream_error),
        ]
    }
}

/// The teacher's pass; the residual stream before each layer is kept.
#[derive(Default)]
struct Reached(HashMap<String, Tensor>);

impl SelfAttention for Reached {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, teacher::Error> {
        self.0.insert(call.layer.name.clone(), call.residual.clone());
        call.attention()
    }
}

/// The student's pass, whose residual stream is compared with the teacher's.
struct Drifting<'a> {
    student: InPlace<'a>,
    reached: Reached,
    /// By layer, the teacher's energy and the student's error, sample by sample.
    sums: HashMap<String, (Vec<f64>, Vec<f64>)>,
}

impl SelfAttention for Drifting<'_> {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, teacher::Error> {
        let name = &call.layer.name;
        if let Some(of_teacher) = self.reached.0.remove(name) {
            let of_teacher = of_teacher.to_dtype(DType::F32)?;
            let error = call.residual.to_dtype(DType::F32)?.sub(&of_teacher)?;
            self.sums.insert(name.clone(), (sums(&of_teacher)?, sums(&error)?));
        }
        self.student.apply(call)
    }
}

/// Sums of squares over each sample.
fn sums(stream: &Tensor) -> Result<Vec<f64>, teacher::Error> {
    let sums: Vec<f32> = stream.sqr()?.flatten_from(1)?.sum(D::Minus1)?.to_vec1()?;
    Ok(sums.into_iter().map(f64::from).collect())
}
