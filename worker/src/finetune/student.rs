//! The student while its blocks are trained together: passes of teacher and student, and the gradients of all blocks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result as CandleResult, Tensor, Var};
use deltaconv_kernels::cpu::{self, Workspace};
use deltaconv_kernels::{BlockOp, Parameters};

use crate::blocks;
use crate::capture::Inputs;
use crate::models::Teacher;
use crate::task::Error;
use crate::teacher::{self, Call, SelfAttention, attach};

/// What the residual stream counts beside the predicted noise: the mean over the layers of its squared difference behind the
/// layer, over the energy of what the layer gives. docs/recipe.md says what others reach.
const STREAM: f64 = 0.1;

/// Blocks by layer.
pub(super) type Blocks = BTreeMap<String, Arc<Parameters>>;

/// Where the teacher's residual stream is behind one layer.
struct Reached {
    stream: Tensor,
    /// Mean square of what the layer adds to it.
    energy: f64,
}

/// The teacher's pass, which is remembered of the layers that have blocks.
struct Remembered<'a> {
    blocks: &'a Blocks,
    reached: BTreeMap<String, Reached>,
}

impl SelfAttention for Remembered<'_> {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, teacher::Error> {
        let output = call.attention()?;
        if self.blocks.contains_key(&call.layer.name) {
            let added = added(call, &output)?;
            let energy = f64::from(added.sqr()?.mean_all()?.to_scalar::<f32>()?).max(f64::from(f32::MIN_POSITIVE));
            self.reached.insert(call.layer.name.clone(), Reached { stream: call.residual.add(&added)?, energy });
        }
        Ok(output)
    }
}

/// What the layer adds to the residual stream with this output.
fn added(call: &Call<'_>, output: &Tensor) -> Result<Tensor, teacher::Error> {
    Ok(match call.gate()? {
        None => output.clone(),
        Some(gate) => output.broadcast_mul(&gate)?,
    })
}

/// One block within a pass that is tracked.
struct Within {
    parameters: Arc<Parameters>,
    /// Filled on the way back.
    gradients: Arc<Mutex<Option<Parameters>>>,
}

impl Within {
    /// The block's output of x [B, H, W, C], in candle's graph.
    fn apply(&self, x: &Tensor) -> CandleResult<Tensor> {
        // Before the first block there is nothing to train, so the graph begins here.
        let x = if x.track_op() { x.clone() } else { Var::from_tensor(x)?.as_tensor().clone() };
        let given = x.detach().contiguous()?;
        let y = given.apply_op1_no_bwd(&BlockOp::new(self.parameters.clone()))?;
        let (parameters, gradients) = (self.parameters.clone(), self.gradients.clone());
        attach(&x, y, move |gradient| back(&parameters, &given, gradient, &gradients))
    }
}

/// The gradient of x, and of the weights on the way.
fn back(
    parameters: &Parameters,
    x: &Tensor,
    gradient: &Tensor,
    gradients: &Mutex<Option<Parameters>>,
) -> CandleResult<Tensor> {
    let (batch, height, width, _) = x.dims4()?;
    let [x_values, y_gradient] = [x, gradient].map(|of| of.flatten_all().and_then(|of| of.to_vec1::<f32>()));
    let (x_values, mut x_gradient) = (x_values?, vec![0.0; x.elem_count()]);
    let mut found = parameters.zeros_like();
    cpu::gradient(
        parameters.shape(),
        parameters,
        &x_values,
        &y_gradient?,
        [batch, height, width],
        &mut found,
        Some(&mut x_gradient),
        &mut Workspace::default(),
    )
    .map_err(candle_core::Error::wrap)?;
    *gradients.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    Tensor::from_vec(x_gradient, x.shape(), x.device())
}

/// The student's pass.
struct Tracked<'a> {
    blocks: BTreeMap<&'a str, Within>,
    reached: &'a BTreeMap<String, Reached>,
    /// Of each layer: the stream's squared difference from the teacher's, over its energy.
    drifts: Vec<Tensor>,
}

impl SelfAttention for Tracked<'_> {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, teacher::Error> {
        let Some(block) = self.blocks.get(call.layer.name.as_str()) else { return call.attention() };
        let output = block.apply(call.input)?;
        if let Some(Reached { stream, energy }) = self.reached.get(&call.layer.name) {
            let drift = call.residual.add(&added(call, &output)?)?.sub(stream)?;
            self.drifts.push(drift.sqr()?.mean_all()?.affine(1.0 / energy, 0.0)?);
        }
        Ok(output)
    }
}

/// The blocks as they take the place of attention where nothing is tracked.
pub(super) fn in_place(blocks: &Blocks) -> blocks::Blocks {
    blocks.iter().map(|(layer, block)| (layer.clone(), BlockOp::new(block.clone()))).collect()
}

/// What a step's batch gave.
pub(super) struct Found {
    /// Squared error of the predicted noise over the teacher's mean square.
    pub(super) error: f64,
    /// Of the loss, by layer.
    pub(super) gradients: BTreeMap<String, Parameters>,
}

/// Takes a batch through teacher and student and back. The loss is the squared error of the predicted noise over the mean square
/// of the teacher's, and [`STREAM`] times the mean of the layers' drifts.
pub(super) fn gradients(teacher: &Teacher, blocks: &Blocks, inputs: &Inputs) -> Result<Found, Error> {
    let mut remembered = Remembered { blocks, reached: BTreeMap::new() };
    let expected = inputs.predict(teacher, &mut remembered)?;
    let energy = f64::from(expected.sqr()?.mean_all()?.to_scalar::<f32>()?).max(f64::from(f32::MIN_POSITIVE));

    let within = |(layer, parameters): (&'_ String, &Arc<Parameters>)| {
        (layer.clone(), Within { parameters: parameters.clone(), gradients: Arc::default() })
    };
    let within: BTreeMap<String, Within> = blocks.iter().map(within).collect();
    let gradients: BTreeMap<String, Arc<Mutex<Option<Parameters>>>> =
        within.iter().map(|(layer, block)| (layer.clone(), block.gradients.clone())).collect();
    let by_name = blocks.keys().zip(within.into_values()).map(|(layer, block)| (layer.as_str(), block)).collect();
    let mut tracked = Tracked { blocks: by_name, reached: &remembered.reached, drifts: Vec::new() };
    let noise = inputs.predict(teacher, &mut tracked)?;
    let error = noise.sub(&expected)?.sqr()?.mean_all()?.affine(1.0 / energy, 0.0)?;
    let loss = match tracked.drifts.len() {
        0 => error.clone(),
        layers => {
            let drifts = Tensor::stack(&tracked.drifts, 0)?.sum_all()?;
            error.add(&drifts.affine(STREAM / layers as f64, 0.0)?)?
        }
    };
    loss.backward()?;
    let error = f64::from(error.to_scalar::<f32>()?);
    let found = |(layer, gradients): (String, Arc<Mutex<Option<Parameters>>>)| {
        let gradients = gradients.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok((layer, gradients.ok_or(Error::Incomplete("gradient"))?))
    };
    Ok(Found { error, gradients: gradients.into_iter().map(found).collect::<Result<_, Error>>()? })
}
