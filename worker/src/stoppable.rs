//! Passes of a model that are counted, and that an attempt can end in the middle of.

use candle_core::Tensor;

use crate::task::Context;
use crate::teacher::{Call, Error, SelfAttention};

/// Counts progress in layers passed, and lets an attempt that has to end do so in the middle of a model's pass.
pub(crate) struct Stoppable<'a> {
    pub(crate) context: &'a Context,
    pub(crate) attention: &'a mut dyn SelfAttention,
}

impl SelfAttention for Stoppable<'_> {
    fn apply(&mut self, call: &Call<'_>) -> Result<Tensor, Error> {
        if self.context.stopped().is_some() {
            let layer = call.layer.name.clone();
            return Err(Error::Layer { layer, source: "stopped".into() });
        }
        self.context.report(|progress| progress.step += 1);
        self.attention.apply(call)
    }
}

/// Says how much progress there is to come: so many passes of a model.
pub(crate) fn expect_passes(context: &Context, passes: usize) {
    let layers = context.plan.layers.len() + context.plan.kept.len();
    context.report(|progress| progress.steps = (passes * layers) as u64);
}
