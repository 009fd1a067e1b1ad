//! What replacing one layer alone costs the predicted noise.

use std::sync::Arc;

use candle_core::Tensor;
use deltaconv_kernels::{BlockOp, Parameters};
use deltaconv_proto::draw::{Draw, Sample};

use super::{BATCH, squares};
use crate::capture::Inputs;
use crate::task::{Context, Error};
use crate::teacher::{self, Call, Original, SelfAttention};

/// Held-out samples of the capture that it is measured on, at most.
const SAMPLES: u32 = 32;

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
    let recipe = context.job.recipe.as_ref().ok_or(Error::Incomplete("recipe"))?;
    let (teacher, data) = (context.models.teacher(context)?, context.models.data(context)?);
    let draw = Draw::new(&context.job, data.latent_lens(), teacher.sampler.alphas_cumprod().len());
    let block = &BlockOp::new(Arc::new(block));
    // However few they are, their timesteps cover all.
    let count = recipe.held_out_samples.min(SAMPLES);
    let samples = recipe.samples as usize..(recipe.samples + count) as usize;
    let by_bucket = data.by_bucket(samples, |i| draw.latent_of_capture(i));

    let (mut energy, mut missed) = (0.0, 0.0);
    for batch in by_bucket.iter().flat_map(|numbers| numbers.chunks(BATCH)) {
        let batch: Vec<Sample> = batch.iter().map(|i| draw.capture(*i)).collect();
        let inputs = Inputs::new(&teacher, &data, &batch)?;
        let predict = |attention: &mut dyn SelfAttention| -> Result<Vec<f32>, Error> {
            context.check_stop()?;
            let noise = teacher.denoiser.predict(&inputs.noised, &inputs.timesteps, &inputs.conditions, attention)?;
            Ok(noise.flatten_all()?.to_vec1()?)
        };
        let expected = predict(&mut Original)?;
        let found = predict(&mut Alone { block, layer })?;
        energy += squares(&expected, None, batch.len()).iter().sum::<f64>();
        missed += squares(&found, Some(&expected), batch.len()).iter().sum::<f64>();
    }
    if energy > 0.0 { Ok(missed / energy) } else { Err(Error::Incomplete("predicted noise")) }
}
