//! The training of all blocks together: a state that a step moves on, and that a checkpoint holds whole. Where the teacher
//! is, the blocks are.

use std::collections::VecDeque;

use deltaconv_kernels::{AdamW, adamw};
use deltaconv_proto::v1::{Finetune, Recipe};

#[cfg(feature = "cuda")]
use super::on_gpu::OnGpu;
use super::on_processor::{Kept, OnProcessor, Optimisers};
use super::student::{Blocks, Pass};
use crate::accelerator::Accelerator;
use crate::distill::health::{CurvePoint, Health, Seen, Setback, Stretch};
use crate::task::Error;
use crate::{optimiser, teacher};

/// Points of the curve after the one before the first step.
const CURVE_POINTS: u64 = 10;
/// Steps after which it is looked, at the latest, whether training still goes well.
const STRETCH: u64 = 20;
/// The learning rate rises for this share of the steps.
const WARM_UP: f64 = 0.05;

/// Blocks as far as they are trained.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) blocks: Blocks,
    pub(super) optimisers: Optimisers,
    pub(super) record: Record,
}

impl State {
    /// Of a training that starts from these blocks.
    pub(super) fn new(blocks: Blocks, recipe: &Recipe) -> Self {
        let averaged = recipe.ema_decay > 0.0;
        let optimisers = blocks.iter().map(|(layer, block)| (layer.clone(), adamw::State::new(block, averaged)));
        let (step, curve, since, health) = Default::default();
        let record = Record { step, curve, since, health, best: blocks.clone() };
        Self { optimisers: optimisers.collect(), blocks, record }
    }
}

/// What a checkpoint holds: all that the steps to come depend on.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) state: State,
    /// Of the steps since the last look.
    pub(super) errors: Vec<f64>,
    /// What training could go back to, the older one first.
    pub(super) kept: Vec<(Kept, Stretch)>,
}

impl From<State> for Snapshot {
    /// Before the first step.
    fn from(state: State) -> Self {
        Self { state, errors: Vec::new(), kept: Vec::new() }
    }
}

/// How a training went so far, and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// Steps taken.
    pub(super) step: u64,
    /// Of squared errors of the predicted noise over the teacher's mean square.
    pub(super) curve: Vec<CurvePoint>,
    pub(super) since: Stretch,
    pub(super) health: Health,
    /// The blocks at the best point of the curve.
    pub(super) best: Blocks,
}

/// The blocks in training, where their teacher is.
enum Place {
    OnProcessor(OnProcessor),
    #[cfg(feature = "cuda")]
    OnGpu(OnGpu),
}

/// What a look led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    Well,
    WentBack,
}

/// All blocks in training.
pub(super) struct Training {
    settings: Finetune,
    blocks: Place,
    pub(super) record: Record,
    /// Of the steps since the last look.
    errors: Vec<f64>,
    /// The record's `since` at the ends of the last two stretches that went well, the older one first, as the blocks are kept: a
    /// step's error is that of the weights before it, so only the stretch that follows shows whether what a stretch ended with
    /// is any good.
    kept: VecDeque<Stretch>,
}

impl Training {
    /// A training that goes on from this, where the teacher is.
    pub(super) fn new(
        Snapshot { state, errors, kept }: Snapshot,
        recipe: &Recipe,
        settings: Finetune,
        accelerator: &Accelerator,
        teacher: &teacher::Place,
    ) -> Result<Self, Error> {
        let optimiser = AdamW {
            // Over a tenth of the steps at most, so that a short training shows.
            ema_decay: recipe.ema_decay.min(1.0 - 10.0 / f64::from(settings.steps.max(20))),
            ..optimiser::of_recipe(recipe)
        };
        let State { blocks, optimisers, record } = state;
        let (kept, since): (Vec<_>, VecDeque<_>) = kept.into_iter().unzip();
        let mut blocks = match accelerator {
            #[cfg(feature = "cuda")]
            Accelerator::Cuda(cuda) if teacher.device().is_cuda() => {
                let dtype = teacher.dtype();
                Place::OnGpu(OnGpu::new(cuda, dtype, &blocks, &optimisers, optimiser, settings.features)?)
            }
            _ => {
                let _ = teacher;
                Place::OnProcessor(OnProcessor::new(blocks, optimisers, optimiser, settings.features))
            }
        };
        match &mut blocks {
            Place::OnProcessor(blocks) => blocks.keep_again(kept),
            #[cfg(feature = "cuda")]
            Place::OnGpu(blocks) => blocks.keep_again(&kept)?,
        }
        Ok(Self { settings, blocks, record, errors, kept: since })
    }

    /// Samples of a step.
    pub(super) fn batch(&self) -> u64 {
        u64::from(self.settings.batch)
    }

    /// Whether no step is to come.
    pub(super) fn is_over(&self) -> bool {
        self.record.step >= u64::from(self.settings.steps)
    }

    /// What becomes the blocks if training ends here: the weights' moving average, where one is kept.
    pub(super) fn averaged(&self) -> Result<Blocks, Error> {
        match &self.blocks {
            Place::OnProcessor(blocks) => Ok(blocks.averaged()),
            #[cfg(feature = "cuda")]
            Place::OnGpu(blocks) => blocks.averaged(),
        }
    }

    /// The least held-out error; NaN before the first measurement.
    pub(super) fn least_error(&self) -> f64 {
        self.record.curve.iter().map(|point| point.held_out_error).fold(f64::NAN, f64::min)
    }

    fn learning_rate(&self) -> f64 {
        let peak = self.settings.learning_rate * self.record.health.rate();
        let (step, steps) = (self.record.step as f64, f64::from(self.settings.steps));
        let warm_up = (WARM_UP * steps).ceil();
        if step < warm_up {
            return peak * (step + 1.0) / warm_up;
        }
        peak * optimiser::cosine(step, warm_up, steps)
    }

    /// Collects the errors of the steps that were taken. Waits for them.
    pub(super) fn collect_errors(&mut self) -> Result<(), Error> {
        self.errors.extend(match &mut self.blocks {
            Place::OnProcessor(blocks) => blocks.errors(),
            #[cfg(feature = "cuda")]
            Place::OnGpu(blocks) => blocks.errors()?,
        });
        Ok(())
    }

    /// Takes a part of the next step's batch through the models and back.
    pub(super) fn add(&mut self, pass: Pass<'_>) -> Result<(), Error> {
        match &mut self.blocks {
            Place::OnProcessor(blocks) => blocks.add(pass),
            #[cfg(feature = "cuda")]
            Place::OnGpu(blocks) => blocks.add(pass),
        }
    }

    /// Takes a step on what was added. Whoever calls looks where [`Self::is_look`] says so, and measures the held-out error where
    /// [`Self::is_curve_point`] does.
    pub(super) fn step(&mut self) -> Result<(), Error> {
        let rate = self.learning_rate();
        match &mut self.blocks {
            Place::OnProcessor(blocks) => blocks.step(rate)?,
            #[cfg(feature = "cuda")]
            Place::OnGpu(blocks) => blocks.step(rate)?,
        }
        self.record.step += 1;
        Ok(())
    }

    /// Whether the held-out error is to be measured now.
    pub(super) fn is_curve_point(&self) -> bool {
        let (step, steps) = (self.record.step, u64::from(self.settings.steps));
        let measured = self.record.curve.last().is_some_and(|point| point.step == step);
        !measured && (step.is_multiple_of((steps / CURVE_POINTS).max(1)) || step == steps)
    }

    /// Notes the held-out error of these blocks, which are [`Self::averaged`].
    pub(super) fn note(&mut self, averaged: Blocks, held_out_error: f64) {
        let least = self.least_error();
        let training_error = std::mem::take(&mut self.record.since).mean().unwrap_or(held_out_error);
        self.record.curve.push(CurvePoint { step: self.record.step, training_error, held_out_error });
        if held_out_error < least {
            self.record.best = averaged;
        }
    }

    /// Whether a look is due: at the end of a stretch, and before a held-out error is measured.
    pub(super) fn is_look(&self) -> bool {
        self.record.step.is_multiple_of(STRETCH) || self.is_curve_point()
    }

    /// Sees how the steps since the last look went, and goes back where they went wrong.
    ///
    /// # Errors
    /// [`Error::Diverged`] where they did once too often.
    pub(super) fn look(&mut self) -> Result<Looked, Error> {
        self.collect_errors()?;
        let errors = std::mem::take(&mut self.errors);
        let step = self.record.step;
        match self.record.health.see_above(0.0, step, &errors) {
            Seen::Well(stretch) => {
                self.record.since.add(stretch);
                Ok(Looked::Well)
            }
            Seen::Setback(Setback { step, error, rate }) => {
                tracing::warn!(step, error, rate, "training of all blocks diverged; going back, with a lower rate");
                self.go_back()?;
                Ok(Looked::WentBack)
            }
            Seen::Lost => {
                let story = self.record.health.story();
                Err(Error::Diverged { layer: "all blocks together".to_owned(), step, story })
            }
        }
    }

    /// Keeps what training begins with, where it brought nothing from a checkpoint.
    pub(super) fn keep_start(&mut self) -> Result<(), Error> {
        if self.kept.is_empty() { self.keep(Looked::Well) } else { Ok(()) }
    }

    /// Keeps what was reached, after a look: beside what was before, or where that was gone back to instead of it.
    pub(super) fn keep(&mut self, looked: Looked) -> Result<(), Error> {
        match looked {
            Looked::WentBack => self.kept.clear(),
            Looked::Well => {
                if self.kept.len() > 1 {
                    self.kept.pop_front();
                }
                match &mut self.blocks {
                    Place::OnProcessor(blocks) => blocks.keep(),
                    #[cfg(feature = "cuda")]
                    Place::OnGpu(blocks) => blocks.keep()?,
                }
            }
        }
        self.kept.push_back(self.record.since);
        Ok(())
    }

    /// Takes up the older blocks that are kept. Steps count on, so that the batches do, and a resumed training does the same.
    fn go_back(&mut self) -> Result<(), Error> {
        let Some(since) = self.kept.front() else { return Ok(()) };
        self.record.since = *since;
        match &mut self.blocks {
            Place::OnProcessor(blocks) => blocks.go_back(self.record.step),
            #[cfg(feature = "cuda")]
            Place::OnGpu(blocks) => blocks.go_back()?,
        }
        Ok(())
    }

    /// What another attempt goes on from, with the step that is the next one here: to the bit as this one would, even where
    /// steps that were taken already turn out to have gone wrong.
    pub(super) fn snapshot(&mut self) -> Result<Snapshot, Error> {
        self.collect_errors()?;
        let ((blocks, optimisers), kept) = match &self.blocks {
            Place::OnProcessor(blocks) => (blocks.state(), blocks.kept()),
            #[cfg(feature = "cuda")]
            Place::OnGpu(blocks) => (blocks.state()?, blocks.kept()?),
        };
        let state = State { blocks, optimisers, record: self.record.clone() };
        Ok(Snapshot {
            state,
            errors: self.errors.clone(),
            kept: kept.into_iter().zip(self.kept.iter().copied()).collect(),
        })
    }
}
