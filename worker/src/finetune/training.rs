//! The training of all blocks together: a state that a step moves on, and that a checkpoint holds whole.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use deltaconv_kernels::{AdamW, Parameters, adamw};
use deltaconv_proto::v1::{Finetune, Recipe};

use super::student::{Blocks, Found};
use crate::distill::health::{CurvePoint, Health, Seen, Setback, Stretch};
use crate::optimiser;
use crate::task::Error;

/// Points of the curve after the one before the first step.
const CURVE_POINTS: u64 = 10;
/// Steps after which it is looked, at the latest, whether training still goes well.
const STRETCH: u64 = 20;
/// The learning rate rises for this share of the steps.
const WARM_UP: f64 = 0.05;

/// What training goes on from.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) blocks: Blocks,
    pub(super) optimisers: BTreeMap<String, adamw::State>,
    /// Steps taken.
    pub(super) step: u64,
    /// Of squared errors of the predicted noise over the teacher's mean square.
    pub(super) curve: Vec<CurvePoint>,
    pub(super) since: Stretch,
    pub(super) health: Health,
    /// The blocks at the best point of the curve.
    pub(super) best: Blocks,
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
    optimiser: AdamW,
    pub(super) state: State,
    /// As it was at the ends of the last two stretches that went well, the older one first: a step's error is that of the
    /// weights before it, so only the stretch that follows shows whether what a stretch ended with is any good.
    kept: VecDeque<State>,
    /// Errors of the steps since the last look.
    errors: Vec<f64>,
}

impl Training {
    /// A training that starts from these blocks.
    pub(super) fn new(blocks: Blocks, recipe: &Recipe, settings: Finetune) -> Self {
        let optimiser = AdamW {
            // Over a tenth of the steps at most, so that a short training shows.
            ema_decay: recipe.ema_decay.min(1.0 - 10.0 / f64::from(settings.steps.max(20))),
            ..optimiser::of_recipe(recipe)
        };
        let averaged = recipe.ema_decay > 0.0;
        let optimisers = blocks.iter().map(|(layer, block)| (layer.clone(), adamw::State::new(block, averaged)));
        let state = State {
            optimisers: optimisers.collect(),
            best: blocks.clone(),
            blocks,
            step: 0,
            curve: Vec::new(),
            since: Stretch::default(),
            health: Health::default(),
        };
        Self { settings, optimiser, state, kept: VecDeque::new(), errors: Vec::new() }
    }

    /// Whether no step is to come.
    pub(super) fn is_over(&self) -> bool {
        self.state.step >= u64::from(self.settings.steps)
    }

    /// What becomes the blocks if training ends here: the weights' moving average, where one is kept.
    pub(super) fn averaged(&self) -> Blocks {
        let State { blocks, optimisers, .. } = &self.state;
        let average =
            |layer: &String, block: &Arc<Parameters>| match optimisers.get(layer).and_then(|of| of.ema.as_ref()) {
                Some(average) => Arc::new(average.clone()),
                None => block.clone(),
            };
        blocks.iter().map(|(layer, block)| (layer.clone(), average(layer, block))).collect()
    }

    /// The least held-out error; NaN before the first measurement.
    pub(super) fn least_error(&self) -> f64 {
        self.state.curve.iter().map(|point| point.held_out_error).fold(f64::NAN, f64::min)
    }

    fn learning_rate(&self) -> f64 {
        let peak = self.settings.learning_rate * self.state.health.rate();
        let (step, steps) = (self.state.step as f64, f64::from(self.settings.steps));
        let warm_up = (WARM_UP * steps).ceil();
        if step < warm_up {
            return peak * (step + 1.0) / warm_up;
        }
        peak * optimiser::cosine(step, warm_up, steps)
    }

    /// Takes a step. Whoever calls measures the held-out error where [`Self::is_curve_point`] says so, and then looks.
    pub(super) fn take_step(&mut self, found: &Found) -> Result<(), Error> {
        let rate = self.learning_rate();
        self.errors.push(found.error);
        let State { blocks, optimisers, step, .. } = &mut self.state;
        for (layer, block) in blocks {
            let (Some(gradients), Some(state)) = (found.gradients.get(layer), optimisers.get_mut(layer)) else {
                return Err(Error::Incomplete("gradient"));
            };
            self.optimiser.step(rate, Arc::make_mut(block), gradients, state)?;
        }
        *step += 1;
        Ok(())
    }

    /// Whether the held-out error is to be measured now.
    pub(super) fn is_curve_point(&self) -> bool {
        let (step, steps) = (self.state.step, u64::from(self.settings.steps));
        let measured = self.state.curve.last().is_some_and(|point| point.step == step);
        !measured && (step.is_multiple_of((steps / CURVE_POINTS).max(1)) || step == steps)
    }

    /// Notes the held-out error of [`Self::averaged`].
    pub(super) fn note(&mut self, held_out_error: f64) {
        let least = self.least_error();
        let training_error = std::mem::take(&mut self.state.since).mean().unwrap_or(held_out_error);
        self.state.curve.push(CurvePoint { step: self.state.step, training_error, held_out_error });
        if held_out_error < least {
            self.state.best = self.averaged();
        }
    }

    /// Whether a look is due: at the end of a stretch, and before a held-out error is measured.
    pub(super) fn is_look(&self) -> bool {
        self.state.step.is_multiple_of(STRETCH) || self.is_curve_point()
    }

    /// Sees how the steps since the last look went, and goes back where they went wrong.
    ///
    /// # Errors
    /// [`Error::Diverged`] where they did once too often.
    pub(super) fn look(&mut self) -> Result<Looked, Error> {
        let errors = std::mem::take(&mut self.errors);
        let step = self.state.step;
        match self.state.health.see_above(0.0, step, &errors) {
            Seen::Well(stretch) => {
                self.state.since.add(stretch);
                Ok(Looked::Well)
            }
            Seen::Setback(Setback { step, error, rate }) => {
                tracing::warn!(step, error, rate, "training of all blocks diverged; going back, with a lower rate");
                self.go_back();
                Ok(Looked::WentBack)
            }
            Seen::Lost => {
                let story = self.state.health.story();
                Err(Error::Diverged { layer: "all blocks together".to_owned(), step, story })
            }
        }
    }

    /// Keeps what was reached, after a look: beside what was before, or where that was gone back to instead of it.
    pub(super) fn keep(&mut self, looked: Looked) {
        match looked {
            Looked::WentBack => self.kept.clear(),
            Looked::Well if self.kept.len() > 1 => drop(self.kept.pop_front()),
            Looked::Well => {}
        }
        self.kept.push_back(self.state.clone());
    }

    /// Takes up the older state that is kept. Steps count on, so that the batches do, and a resumed training does the same.
    fn go_back(&mut self) {
        let Some(kept) = self.kept.front() else { return };
        let now = &mut self.state;
        (now.blocks, now.optimisers, now.since) = (kept.blocks.clone(), kept.optimisers.clone(), kept.since);
        now.optimisers.values_mut().for_each(|optimiser| optimiser.step = now.step);
    }

    /// What another attempt can go on from: the older state that is kept.
    pub(super) fn checkpoint(&self) -> &State {
        self.kept.front().unwrap_or(&self.state)
    }
}
