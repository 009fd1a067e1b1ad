//! The student while its blocks are trained together: passes of teacher and student, and the way back through all blocks.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Result as CandleResult, Tensor, Var};
use deltaconv_kernels::{BlockOp, Parameters};

use crate::blocks;
use crate::task::Error;
use crate::teacher::{self, Call, SelfAttention, attach, mean_square, relative_error};

/// Blocks by layer.
pub(super) type Blocks = BTreeMap<String, Arc<Parameters>>;

/// One batch on its way through models.
pub(crate) struct Pass<'a> {
    /// Makes a pass over it and gives the noise that is predicted, [B, c, h, w] f32.
    pub(crate) predict: &'a mut dyn FnMut(&mut dyn SelfAttention) -> Result<Tensor, Error>,
    /// What each sample counts, [B] f32, where the models are.
    pub(crate) weights: &'a Tensor,
    /// What its loss counts among those of the step.
    pub(crate) share: f64,
}

/// A block that a pass goes through, and comes back through.
pub(super) trait Within: Send + Sync {
    /// The output for x [B, H, W, C], of the same shape.
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor>;

    /// x's gradient from that of the output, both as x; those of the weights are kept for a step. `x` is that of the last forward
    /// pass.
    fn backward(&self, x: &Tensor, gradient: &Tensor) -> CandleResult<Tensor>;
}

/// Where the teacher's residual stream is behind one layer.
struct Reached {
    stream: Tensor,
    /// Mean square of what the layer adds to it.
    energy: Tensor,
}

/// The teacher's pass, which is remembered of the layers that have blocks.
struct Remembered<'a> {
    blocks: &'a BTreeMap<String, Arc<dyn Within>>,
    reached: BTreeMap<String, Reached>,
}

impl SelfAttention for Remembered<'_> {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, teacher::Error> {
        let output = call.attention()?;
        if self.blocks.contains_key(&call.layer.name) {
            let added = call.gated(&output)?;
            let reached = Reached { stream: call.residual.add(&added)?, energy: mean_square(&added)? };
            self.reached.insert(call.layer.name.clone(), reached);
        }
        Ok(output)
    }
}

/// The block's output of x [B, H, W, C], in candle's graph.
fn track(block: &Arc<dyn Within>, x: &Tensor) -> CandleResult<Tensor> {
    // Before the first block there is nothing to train, so the graph begins here.
    let x = if x.track_op() { x.clone() } else { Var::from_tensor(x)?.as_tensor().clone() };
    let given = x.detach().contiguous()?;
    let (y, block) = (block.forward(&given)?, block.clone());
    attach(&x, y, move |gradient| block.backward(&given, gradient))
}

/// The student's pass.
struct Tracked<'a> {
    blocks: &'a BTreeMap<String, Arc<dyn Within>>,
    reached: &'a BTreeMap<String, Reached>,
    /// Whether the stream counts, and what each sample does.
    features: bool,
    weights: &'a Tensor,
    /// Sum over the layers of the stream's squared difference from the teacher's, over the layer's energy.
    drift: Option<Tensor>,
}

impl SelfAttention for Tracked<'_> {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, teacher::Error> {
        let Some(block) = self.blocks.get(&call.layer.name) else { return call.attention() };
        let output = track(block, call.input)?;
        if self.features
            && let Some(Reached { stream, energy }) = self.reached.get(&call.layer.name)
        {
            let drift = relative_error(&call.residual.add(&call.gated(&output)?)?, stream, energy, self.weights)?;
            self.drift = Some(match self.drift.take() {
                Some(others) => others.add(&drift)?,
                None => drift,
            });
        }
        Ok(output)
    }
}

/// The blocks as they take the place of attention where nothing is tracked.
pub(super) fn in_place(blocks: &Blocks) -> blocks::Blocks {
    blocks.iter().map(|(layer, block)| (layer.clone(), BlockOp::new(block.clone()))).collect()
}

/// Takes a batch through teacher and student and back: `predict` makes one pass and gives the noise. The loss is the squared
/// error of the predicted noise over the mean square of the teacher's, and `features` times the mean over the layers of the
/// residual stream's squared difference behind the layer over the energy of what the layer gives. Returns its
/// share of that error, f32 without dimensions, where the teacher is.
pub(super) fn back(
    blocks: &BTreeMap<String, Arc<dyn Within>>,
    features: f64,
    Pass { predict, weights, share }: Pass<'_>,
) -> Result<Tensor, Error> {
    let mut remembered = Remembered { blocks, reached: BTreeMap::new() };
    let expected = predict(&mut remembered)?;
    let energy = mean_square(&expected)?;

    let mut tracked = Tracked { blocks, reached: &remembered.reached, features: features > 0.0, weights, drift: None };
    let noise = predict(&mut tracked)?;
    let error = relative_error(&noise, &expected, &energy, weights)?;
    let loss = match tracked.drift {
        None => error.clone(),
        Some(drift) => error.add(&drift.affine(features / blocks.len() as f64, 0.0)?)?,
    };
    let of_step = |of: Tensor| if share == 1.0 { Ok(of) } else { of.affine(share, 0.0) };
    of_step(loss)?.backward()?;
    Ok(of_step(error.detach())?)
}
