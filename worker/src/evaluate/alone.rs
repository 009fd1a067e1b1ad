//! What replacing one layer alone costs the predicted noise.

use std::sync::Arc;

use candle_core::Tensor;
use deltaconv_kernels::{BlockOp, Parameters};
use deltaconv_proto::draw::Draw;

use super::HeldOut;
use crate::task::{Context, Error};
use crate::teacher::{self, Call, SelfAttention};

/// Held-out samples of the capture that it is measured on, at most.
const SAMPLES: usize = 32;

/// The teacher with a block in place of one layer.
pub(super) struct Alone<'a> {
    pub(super) block: &'a BlockOp,
    pub(super) layer: &'a str,
}

impl SelfAttention for Alone<'_> {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, teacher::Error> {
        if call.layer.name == self.layer { Ok(call.input.apply_op1_no_bwd(self.block)?) } else { call.attention() }
    }
}

/// The squared error of the noise that the teacher predicts with this block in place of the layer, over its mean square, on
/// held-out samples of the capture.
pub(crate) fn error(context: &Context, layer: &str, block: Parameters) -> Result<f64, Error> {
    let (teacher, data) = (context.models.teacher(context)?, context.models.data(context)?);
    let draw = Draw::new(&context.job, data.latent_lens(), teacher.sampler.alphas_cumprod().len());
    let held_out = HeldOut::new(context, &teacher, &data, &draw, SAMPLES)?;
    held_out.error(context, &teacher, &mut Alone { block: &BlockOp::new(Arc::new(block)), layer })
}
