//! Held-out samples of the capture, with the noise that the teacher predicts for them.

use deltaconv_proto::draw::{Draw, Sample};

use super::{BATCH, squares};
use crate::capture::Inputs;
use crate::data::Data;
use crate::models::Teacher;
use crate::task::{Context, Error};
use crate::teacher::{Original, SelfAttention};

/// Batches that training never sees. However few they are, their timesteps cover all.
pub(crate) struct HeldOut {
    batches: Vec<Batch>,
    /// Sum of the squares of the noise that is expected.
    energy: f64,
}

struct Batch {
    inputs: Inputs,
    samples: usize,
    /// What the teacher predicts, flat.
    expected: Vec<f32>,
}

impl HeldOut {
    /// So many samples at most.
    pub(crate) fn new(
        context: &Context,
        teacher: &Teacher,
        data: &Data,
        draw: &Draw,
        most: usize,
    ) -> Result<Self, Error> {
        let first = draw.training_samples;
        let by_bucket = data.by_bucket(first..first + draw.held_out_samples.min(most), |i| draw.latent_of_capture(i));
        let batch = |numbers: &[usize]| {
            let samples: Vec<Sample> = numbers.iter().map(|i| draw.capture(*i)).collect();
            let inputs = Inputs::new(teacher, data, &samples)?;
            let expected = predict(context, teacher, &inputs, &mut Original)?;
            Ok(Batch { inputs, samples: samples.len(), expected })
        };
        let batches = by_bucket.iter().flat_map(|numbers| numbers.chunks(BATCH)).map(batch);
        let batches: Vec<Batch> = batches.collect::<Result<_, Error>>()?;
        let mut energy = 0.0;
        for Batch { expected, samples, .. } in &batches {
            energy += squares(expected, None, *samples).iter().sum::<f64>();
        }
        if energy > 0.0 { Ok(Self { batches, energy }) } else { Err(Error::Incomplete("predicted noise")) }
    }

    /// The squared error of the noise that the teacher predicts with `attention` in it, over its own's mean square.
    pub(crate) fn error(
        &self,
        context: &Context,
        teacher: &Teacher,
        attention: &mut dyn SelfAttention,
    ) -> Result<f64, Error> {
        let mut missed = 0.0;
        for Batch { inputs, expected, samples } in &self.batches {
            let found = predict(context, teacher, inputs, attention)?;
            missed += squares(&found, Some(expected), *samples).iter().sum::<f64>();
        }
        Ok(missed / self.energy)
    }
}

fn predict(
    context: &Context,
    teacher: &Teacher,
    inputs: &Inputs,
    attention: &mut dyn SelfAttention,
) -> Result<Vec<f32>, Error> {
    context.check_stop()?;
    Ok(inputs.predict(teacher, attention)?.flatten_all()?.to_vec1()?)
}
