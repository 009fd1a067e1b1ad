//! What `deltaconv bench` measures of the training of all blocks together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(feature = "cuda")]
use candle_core::DType;
#[cfg(feature = "cuda")]
use deltaconv_kernels::AdamW;
use deltaconv_kernels::Parameters;
use deltaconv_proto::v1;

#[cfg(feature = "cuda")]
use super::on_gpu::OnGpu;
#[cfg(feature = "cuda")]
use super::on_processor;
use super::student::{Blocks, Pass};
use super::training::{State, Training};
use crate::accelerator::Accelerator;
#[cfg(feature = "cuda")]
use crate::accelerator::Cuda;
use crate::task::Error;
use crate::teacher::Place;

/// What the residual stream counts where gradients are compared.
#[cfg(feature = "cuda")]
const FEATURES: f64 = 0.1;

/// Seconds of a step in the training of these blocks within a model, over as many steps; `take` gives a step its pass.
pub(crate) fn seconds_per_step(
    accelerator: &Accelerator,
    place: &Place,
    blocks: BTreeMap<String, Parameters>,
    steps: [usize; 2],
    mut take: impl FnMut(&mut dyn FnMut(Pass<'_>) -> Result<(), Error>) -> Result<(), Error>,
) -> Result<f64, Error> {
    let recipe = v1::Recipe { ema_decay: 0.99, clip_norm: 1.0, ..v1::Recipe::default() };
    let settings = v1::Finetune { steps: 1_000_000, batch: 1, learning_rate: 1e-6, features: 0.0 };
    let state = State::new(shared(blocks), &recipe);
    let mut training = Training::new(state.into(), &recipe, settings, accelerator, place)?;
    let [warm_up, timed] = steps;
    let mut run = |count: usize| -> Result<Duration, Error> {
        let began = Instant::now();
        for _ in 0..count {
            take(&mut |pass| training.add(pass))?;
            training.step()?;
        }
        training.collect_errors()?;
        Ok(began.elapsed())
    };
    run(warm_up)?;
    Ok(run(timed)?.as_secs_f64() / timed as f64)
}

/// Compares the gradients that blocks of random weights, in place of all of a teacher's layers, get on a GPU with those on the
/// processor: ‖GPU − processor‖ / ‖processor‖ by layer. Both passes are over the same batch.
#[cfg(feature = "cuda")]
pub(crate) fn compare_gradients(
    cuda: &Arc<Cuda>,
    dtype: DType,
    blocks: BTreeMap<String, Parameters>,
    on_gpu: Pass<'_>,
    on_processor: Pass<'_>,
) -> Result<BTreeMap<String, f64>, Error> {
    let State { blocks, optimisers, .. } = State::new(shared(blocks), &v1::Recipe::default());
    let mut training = OnGpu::new(cuda, dtype, &blocks, &optimisers, AdamW::default(), FEATURES)?;
    training.add(on_gpu)?;
    let mut found = training.gradients()?;
    let (_, expected) = on_processor::gradients(&blocks, FEATURES, on_processor)?;
    let error = |(layer, expected): (String, Parameters)| {
        let found = found.remove(&layer).ok_or(Error::Incomplete("gradient"))?;
        let squares = |of: &mut dyn Iterator<Item = f64>| of.map(|value| value * value).sum::<f64>();
        let pairs = found.values().iter().zip(expected.values());
        let difference = squares(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
        Ok((layer, (difference / squares(&mut expected.values().iter().copied().map(f64::from))).sqrt()))
    };
    expected.into_iter().map(error).collect()
}

fn shared(blocks: BTreeMap<String, Parameters>) -> Blocks {
    blocks.into_iter().map(|(layer, block)| (layer, Arc::new(block))).collect()
}
