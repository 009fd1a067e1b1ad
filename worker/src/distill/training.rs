//! The training of one block: a state that a step moves on, and that a checkpoint holds whole.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deltaconv_kernels::cpu::{self, Target, Workspace};
use deltaconv_kernels::{AdamW, BlockShape, Loss, Parameters, adamw};
use deltaconv_proto::draw::Batches;
use deltaconv_proto::v1::{LayerPlan, Recipe};
use rayon::prelude::*;

use super::health::{CurvePoint, Health, Seen, Setback, Stretch};
#[cfg(feature = "cuda")]
use super::on_gpu::{HeldOut, OnGpu};
use crate::accelerator::Accelerator;
#[cfg(feature = "cuda")]
use crate::accelerator::Cuda;
use crate::optimiser;
use crate::shards::{Batch, LayerData, Rows};
use crate::task::Error;

/// Points of a curve, the held-out error measured at each.
const CURVE_POINTS: u64 = 20;
/// A training ends early when its held-out error has not fallen for so many points.
const STALE_POINTS: usize = 6;
/// Steps after which it is looked, at the latest, whether a training still goes well.
const STRETCH: u64 = 50;

/// A block as far as it is trained.
#[derive(Clone, Debug)]
pub(super) struct Trained {
    pub(super) weights: Parameters,
    pub(super) optimiser: adamw::State,
    pub(super) record: Record,
}

/// What a checkpoint holds: all that the steps to come depend on.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) trained: Trained,
    /// Of the steps since the last look.
    pub(super) errors: Vec<f64>,
    /// What training could go back to, the older one first.
    pub(super) kept: Vec<Arc<Kept>>,
}

/// The weights and the optimiser's state at the end of a stretch that went well.
pub(super) type Kept = (Parameters, adamw::State);

/// How a training went so far, and what came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    pub(super) curve: Vec<CurvePoint>,
    /// Of the steps since the last point of the curve.
    pub(super) since: Stretch,
    pub(super) health: Health,
    /// The block at the best point of the curve.
    pub(super) best: Option<Arc<Parameters>>,
    /// What training began with, where that is a block of its own: the one that a regression gave.
    pub(super) start: Option<Arc<Parameters>>,
}

/// What the regression at a training's end came to: held-out errors of the best block before and after it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Solved {
    pub(super) before: f64,
    pub(super) after: f64,
}

impl Solved {
    /// Whether its block is the better one.
    pub(super) fn is_kept(&self) -> bool {
        self.after < self.before
    }
}

impl Trained {
    /// What becomes the block if training ends here: the weights' moving average, where one is kept.
    fn block(&self) -> &Parameters {
        self.optimiser.ema.as_ref().unwrap_or(&self.weights)
    }
}

impl Record {
    /// The point at which the held-out error was least.
    fn best_point(&self) -> Option<(usize, &CurvePoint)> {
        let finite = self.curve.iter().enumerate().filter(|(_, point)| point.held_out_error.is_finite());
        finite.min_by(|(_, a), (_, b)| a.held_out_error.total_cmp(&b.held_out_error))
    }
}

/// A block in training.
pub(super) struct Training {
    layer: String,
    recipe: Recipe,
    seed: u64,
    shape: BlockShape,
    optimiser: AdamW,
    /// On a GPU its weights and the optimiser's state are those of before the first step.
    trained: Trained,
    /// As it was at the ends of the last two stretches that went well, the older one first. A step's error is that of the
    /// weights before it, so only the stretch that follows shows whether what a stretch ended with is any good. Once training
    /// is on a GPU, they are there instead.
    kept: VecDeque<Arc<Kept>>,
    /// What the regression at the end gave, and its block where that is kept.
    solved: Option<(Solved, Option<Parameters>)>,
    /// Errors of the steps since the last look.
    errors: Vec<f64>,
    /// Spent on held-out errors.
    measuring: Duration,
    /// Mean square of the layer's output, which errors are taken relative to.
    energy: f64,
    gradients: Parameters,
    workspace: Workspace,
    batch: Rows,
    #[cfg(feature = "cuda")]
    cuda: Option<Arc<Cuda>>,
    /// The state that `trained` is a copy of, from the first step on a GPU, and the held-out samples.
    #[cfg(feature = "cuda")]
    on_gpu: Option<(OnGpu, Vec<HeldOut>)>,
}

impl Training {
    /// A training that starts from these weights.
    pub(super) fn new(
        weights: Parameters,
        layer: &LayerPlan,
        recipe: &Recipe,
        seed: u64,
        data: &LayerData,
        accelerator: &Accelerator,
    ) -> Self {
        #[cfg(not(feature = "cuda"))]
        let Accelerator::None = accelerator;
        let shape = weights.shape().clone();
        let optimiser = optimiser::of_recipe(recipe);
        let trained = Trained {
            optimiser: adamw::State::new(&weights, recipe.ema_decay > 0.0),
            weights,
            record: Record::default(),
        };
        Self {
            layer: layer.name.clone(),
            recipe: recipe.clone(),
            seed,
            gradients: Parameters::zeros(&shape),
            shape,
            optimiser,
            trained,
            kept: VecDeque::new(),
            solved: None,
            errors: Vec::new(),
            measuring: Duration::ZERO,
            energy: data.output_energy(),
            workspace: Workspace::default(),
            batch: Rows::default(),
            #[cfg(feature = "cuda")]
            cuda: match accelerator {
                Accelerator::Cuda(cuda) if cuda.is_usable() => Some(cuda.clone()),
                _ => None,
            },
            #[cfg(feature = "cuda")]
            on_gpu: None,
        }
    }

    /// What it is before the first step, or was when it was resumed.
    pub(super) fn start(&self) -> &Trained {
        &self.trained
    }

    /// Goes on from a checkpoint, before it is placed.
    pub(super) fn resume(&mut self, Snapshot { trained, errors, kept }: Snapshot) {
        (self.trained, self.errors, self.kept) = (trained, errors, kept.into());
    }

    /// Steps taken.
    pub(super) fn step(&self) -> u64 {
        #[cfg(feature = "cuda")]
        if let Some((on_gpu, _)) = &self.on_gpu {
            return on_gpu.steps();
        }
        self.trained.optimiser.step
    }

    /// Whether no step is to come: all are taken, or the held-out error has not fallen for long.
    pub(super) fn is_over(&self) -> bool {
        let best = self.trained.record.best_point().map_or(0, |(index, _)| index);
        let is_stale = self.trained.record.curve.len() > best + STALE_POINTS;
        is_stale || self.step() >= u64::from(self.recipe.steps)
    }

    /// Of the block that training would end with; NaN before the first measurement.
    pub(super) fn held_out_error(&self) -> f64 {
        if let Some((solved, Some(_))) = &self.solved {
            return solved.after;
        }
        self.trained.record.best_point().map_or(f64::NAN, |(_, point)| point.held_out_error)
    }

    /// Whether the last held-out error is less than all before it.
    pub(super) fn is_still_learning(&self) -> bool {
        let last = self.trained.record.curve.len().saturating_sub(1);
        last > 0 && self.trained.record.best_point().is_some_and(|(index, _)| index == last)
    }

    /// What becomes the block: what had the least held-out error.
    pub(super) fn block(&self) -> &Parameters {
        if let Some((_, Some(block))) = &self.solved {
            return block;
        }
        self.trained.record.best.as_deref().unwrap_or_else(|| self.trained.block())
    }

    /// What it began with, where a regression gave that.
    pub(super) fn started_from(&self) -> Option<&Parameters> {
        self.trained.record.start.as_deref()
    }

    pub(super) fn solved(&self) -> Option<Solved> {
        self.solved.as_ref().map(|(solved, _)| *solved)
    }

    pub(super) fn curve(&self) -> &[CurvePoint] {
        &self.trained.record.curve
    }

    /// Time that was spent on held-out errors.
    pub(super) fn measuring(&self) -> Duration {
        self.measuring
    }

    /// How often training had to go back, and why.
    pub(super) fn setbacks(&self) -> &[Setback] {
        &self.trained.record.health.setbacks
    }

    /// What steps lessen, in units of the layer's output.
    fn loss(&self) -> Loss {
        let unit = self.energy.sqrt();
        match self.recipe.loss.as_deref() {
            Some(Recipe::L1) => Loss::Absolute { unit: unit as f32 },
            Some(Recipe::HUBER) => {
                let delta = self.recipe.huber_delta.unwrap_or(Recipe::HUBER_DELTA);
                Loss::Huber { delta: (delta * unit) as f32 }
            }
            _ => Loss::Squared,
        }
    }

    /// Linear warm-up, then a half cosine, unless the recipe keeps the rate; lower after each setback.
    fn learning_rate(&self, step: u64) -> f64 {
        let peak = self.recipe.learning_rate * self.trained.record.health.rate();
        let (step, warmup) = (step as f64, f64::from(self.recipe.warmup_steps));
        if step < warmup {
            return peak * (step + 1.0) / warmup;
        }
        if self.recipe.schedule.as_deref() == Some(Recipe::CONSTANT) {
            return peak;
        }
        peak * optimiser::cosine(step, warmup, f64::from(self.recipe.steps))
    }

    /// The batches that are to come, in order.
    pub(super) fn order(&self, data: &LayerData) -> Batches {
        Batches::new(self.seed, data.training_buckets().clone(), self.recipe.batch as usize, self.step())
    }

    /// Moves to the GPU, if there is one. Gives the bytes of its memory that are left for samples.
    pub(super) fn place(&mut self, data: &LayerData, limit: Option<u64>) -> Result<u64, Error> {
        #[cfg(feature = "cuda")]
        if let Some(cuda) = &self.cuda {
            let mut on_gpu =
                OnGpu::new(cuda, &self.trained, self.optimiser, self.loss(), data, self.recipe.batch as usize)?;
            let held_out = HeldOut::of(data, cuda)?;
            match std::mem::take(&mut self.kept) {
                kept if kept.is_empty() => on_gpu.keep()?,
                kept => on_gpu.keep_again(kept.into_iter().map(Arc::unwrap_or_clone).collect())?,
            }
            let room = on_gpu.room(limit)?;
            self.on_gpu = Some((on_gpu, held_out));
            return Ok(room);
        }
        let _ = (data, limit);
        if self.kept.is_empty() {
            self.keep()?;
        }
        Ok(0)
    }

    /// Starts from these weights instead, before the first step.
    pub(super) fn start_from(&mut self, weights: Parameters, data: &LayerData) -> Result<(), Error> {
        self.trained = Trained {
            optimiser: adamw::State::new(&weights, self.recipe.ema_decay > 0.0),
            record: Record { start: Some(Arc::new(weights.clone())), ..Record::default() },
            weights,
        };
        self.kept.clear();
        #[cfg(feature = "cuda")]
        {
            self.on_gpu = None;
        }
        self.place(data, None).map(drop)
    }

    /// Ends with this block, of the best one's gates, if it does better than that.
    pub(super) fn end_with(&mut self, block: Parameters, after: f64, data: &LayerData) -> Result<Solved, Error> {
        let best = self.block().clone();
        let solved = Solved { before: self.measure_on_host(&best, data)?, after };
        self.solved = Some((solved, solved.is_kept().then_some(block)));
        Ok(solved)
    }

    /// Measures the weights that training starts from, where they are of some worth: it may end no worse.
    pub(super) fn measure_start(&mut self, data: &LayerData) -> Result<(), Error> {
        if self.trained.record.curve.is_empty() { self.draw_curve(data) } else { Ok(()) }
    }

    /// Takes one step on the batch that is its turn.
    ///
    /// # Errors
    /// [`Error::Diverged`] where training went wrong once too often.
    pub(super) fn take_step(&mut self, batch: &Batch, data: &LayerData) -> Result<(), Error> {
        let (scale, rate) = (1.0 / self.energy, self.learning_rate(self.step()));
        #[cfg(feature = "cuda")]
        if let Some((on_gpu, _)) = &mut self.on_gpu {
            on_gpu.step(batch, scale, rate)?;
            return self.look(data);
        }
        batch.to_f32(&mut self.batch);
        let loss = cpu::loss_and_gradient(
            &self.shape,
            &self.trained.weights,
            &self.batch.input,
            Target { output: &self.batch.output, gates: self.batch.weights(), loss: self.loss() },
            batch.size,
            scale,
            &mut self.gradients,
            None,
            &mut self.workspace,
        )?;
        self.errors.push(loss / self.energy);
        let Trained { weights, optimiser, .. } = &mut self.trained;
        self.optimiser.step(rate, weights, &self.gradients, optimiser)?;
        self.look(data)
    }

    /// At the end of a stretch of steps, sees how they went: keeps what they reached, or goes back to where they began.
    fn look(&mut self, data: &LayerData) -> Result<(), Error> {
        if !self.is_look() {
            return Ok(());
        }
        #[cfg(feature = "cuda")]
        if let Some((on_gpu, _)) = &mut self.on_gpu {
            self.errors.extend(on_gpu.losses()?.into_iter().map(|loss| loss / self.energy));
        }
        let errors = std::mem::take(&mut self.errors);
        let step = self.step();
        let seen = self.trained.record.health.see(step, &errors);
        match seen {
            Seen::Well(stretch) => self.trained.record.since.add(stretch),
            Seen::Setback(setback) => {
                let Setback { step, error, rate } = setback;
                tracing::warn!(
                    layer = self.layer,
                    step,
                    error,
                    rate,
                    "training diverged; going back, with a lower rate"
                );
                self.go_back()?;
            }
            Seen::Lost => {
                let (layer, story) = (self.layer.clone(), self.trained.record.health.story());
                return Err(Error::Diverged { layer, step, story });
            }
        }
        if self.is_curve_point() {
            self.draw_curve(data)?;
        }
        // What was gone back to stays, and alone.
        if !matches!(seen, Seen::Setback(_)) {
            self.keep()?;
        }
        Ok(())
    }

    pub(super) fn is_look(&self) -> bool {
        self.step().is_multiple_of(STRETCH) || self.is_curve_point()
    }

    fn keep(&mut self) -> Result<(), Error> {
        #[cfg(feature = "cuda")]
        if let Some((on_gpu, _)) = &mut self.on_gpu {
            return on_gpu.keep();
        }
        if self.kept.len() > 1 {
            self.kept.pop_front();
        }
        self.kept.push_back(Arc::new((self.trained.weights.clone(), self.trained.optimiser.clone())));
        Ok(())
    }

    /// Takes up the older state that is kept. Steps count on, so that the batches do, and a resumed training does the same.
    fn go_back(&mut self) -> Result<(), Error> {
        #[cfg(feature = "cuda")]
        if let Some((on_gpu, _)) = &mut self.on_gpu {
            return on_gpu.go_back();
        }
        self.kept.truncate(1);
        if let Some(kept) = self.kept.front_mut() {
            let (weights, optimiser) = Arc::make_mut(kept);
            optimiser.step = self.trained.optimiser.step;
            (self.trained.weights, self.trained.optimiser) = (weights.clone(), optimiser.clone());
        }
        Ok(())
    }

    /// What another attempt goes on from, with the step that is the next one here: to the bit as this one would, even where
    /// steps that were taken already turn out to have gone wrong.
    pub(super) fn snapshot(&mut self) -> Result<Snapshot, Error> {
        let record = self.trained.record.clone();
        #[cfg(feature = "cuda")]
        if let Some((on_gpu, _)) = &mut self.on_gpu {
            self.errors.extend(on_gpu.losses()?.into_iter().map(|loss| loss / self.energy));
            let (weights, optimiser) = on_gpu.state()?;
            let kept = on_gpu.kept()?.into_iter().map(Arc::new).collect();
            return Ok(Snapshot { trained: Trained { weights, optimiser, record }, errors: self.errors.clone(), kept });
        }
        let (weights, optimiser) = (self.trained.weights.clone(), self.trained.optimiser.clone());
        let kept = self.kept.iter().cloned().collect();
        Ok(Snapshot { trained: Trained { weights, optimiser, record }, errors: self.errors.clone(), kept })
    }

    fn is_curve_point(&self) -> bool {
        let (step, steps) = (self.step(), u64::from(self.recipe.steps));
        step.is_multiple_of((steps / CURVE_POINTS).max(1)) || step == steps
    }

    fn draw_curve(&mut self, data: &LayerData) -> Result<(), Error> {
        let step = self.step();
        let began = Instant::now();
        let held_out_error = self.measure(data)?;
        self.measuring += began.elapsed();
        let training_error = std::mem::take(&mut self.trained.record.since).mean().unwrap_or(held_out_error);
        let least = self.held_out_error();
        self.trained.record.curve.push(CurvePoint { step, training_error, held_out_error });
        if least.is_nan() || held_out_error < least {
            #[cfg(feature = "cuda")]
            if let Some((on_gpu, _)) = &self.on_gpu {
                self.trained.record.best = Some(Arc::new(on_gpu.block()?));
                return Ok(());
            }
            self.trained.record.best = Some(Arc::new(self.trained.block().clone()));
        }
        Ok(())
    }

    /// The block's squared error on the held-out samples, over their mean square: every number counts alike, whatever its
    /// bucket.
    fn measure(&mut self, data: &LayerData) -> Result<f64, Error> {
        #[cfg(feature = "cuda")]
        if let Some((on_gpu, held_out)) = &mut self.on_gpu {
            let mut squares = 0.0;
            for batch in held_out {
                squares += on_gpu.squares(batch)?;
            }
            return Ok(squares / data.numbers(data.held_out()) as f64 / self.energy);
        }
        let block = self.trained.block().clone();
        self.measure_on_host(&block, data)
    }

    /// The same of any block, on the processor.
    pub(super) fn measure_on_host(&mut self, block: &Parameters, data: &LayerData) -> Result<f64, Error> {
        let numbers = data.numbers(data.held_out()) as f64;
        let mut squares = 0.0;
        let mut predicted = Vec::new();
        let held_out = data.by_bucket(data.held_out());
        for rows in held_out.iter().flat_map(|samples| samples.chunks(self.recipe.batch as usize)) {
            let batch = data.batch(rows)?;
            batch.to_f32(&mut self.batch);
            predicted.resize(self.batch.input.len(), 0.0);
            cpu::forward(&self.shape, block, &self.batch.input, batch.size, &mut predicted, &mut self.workspace)?;
            let [_, height, width] = batch.size;
            let map = (height * width, self.shape.channels());
            squares += self::squares(&predicted, &self.batch.output, &self.batch.weights, map);
        }
        Ok(squares / numbers / self.energy)
    }
}

/// The sum of the squared differences between maps of `pixels` pixels, each times its weight [n, channels] where there are any.
fn squares(y: &[f32], target: &[f32], weights: &[f32], (pixels, channels): (usize, usize)) -> f64 {
    let sample = pixels * channels;
    let of_sample = |(index, (y, target)): (usize, (&[f32], &[f32]))| -> f64 {
        let weights = weights.get(index * channels..(index + 1) * channels);
        let pixels = y.chunks_exact(channels).zip(target.chunks_exact(channels));
        let of_pixel = |(y, target): (&[f32], &[f32])| -> f64 {
            let differences = y.iter().zip(target).map(|(y, target)| y - target);
            match weights {
                None => differences.map(|difference| f64::from(difference).powi(2)).sum(),
                Some(weights) => differences.zip(weights).map(|(d, weight)| f64::from(weight * d).powi(2)).sum(),
            }
        };
        pixels.map(of_pixel).sum()
    };
    // Summed by sample, whatever the threads.
    let samples: Vec<f64> = y.par_chunks(sample).zip(target.par_chunks(sample)).enumerate().map(of_sample).collect();
    samples.iter().sum()
}

#[cfg(test)]
pub(super) mod tests {
    use deltaconv_proto::v1::{LayerPlan, Map, Recipe};

    use super::*;

    pub(in crate::distill) fn layer() -> LayerPlan {
        LayerPlan {
            name: "mid_block.attentions.0.transformer_blocks.0".into(),
            index: 3,
            channels: 16,
            height: 6,
            width: 4,
            kernel_size: 3,
            scales: vec![1.0, 0.5],
            gate: "scaled".into(),
            inter_ratio: 0.5,
            parameters: 0,
            maps: Vec::new(),
            weighted: false,
        }
    }

    pub(in crate::distill) fn recipe() -> Recipe {
        Recipe {
            samples: 12,
            held_out_samples: 4,
            steps: 40,
            batch: 4,
            learning_rate: 5e-3,
            warmup_steps: 4,
            clip_norm: 1.0,
            ema_decay: 0.8,
            ..Recipe::default()
        }
    }

    /// A learning rate that a training goes back for once or more, and then learns with what is left of it.
    pub(in crate::distill) const TOO_MUCH: f64 = 0.8;

    pub(in crate::distill) fn with_rate(learning_rate: f64, data: &LayerData) -> Training {
        started(&layer(), &Recipe { learning_rate, ..recipe() }, data)
    }

    pub(in crate::distill) fn of(layer: &LayerPlan, data: &LayerData) -> Training {
        started(layer, &recipe(), data)
    }

    fn started(layer: &LayerPlan, recipe: &Recipe, data: &LayerData) -> Training {
        let shape = crate::distill::block_shape(layer).expect("a block");
        let weights = crate::distill::initial::weights(&shape, 1, layer.index).expect("weights");
        let mut training = Training::new(weights, layer, recipe, 1, data, &Accelerator::None);
        training.place(data, None).expect("a place");
        training
    }

    #[test]
    fn a_training_that_diverges_goes_back_and_goes_on_with_a_lower_rate() {
        let data = LayerData::made_up(&layer(), 96, 8);
        let recipe = Recipe { steps: 400, batch: 16, learning_rate: TOO_MUCH, ..recipe() };
        let mut training = started(&layer(), &recipe, &data);
        for batch in data.batches(1, 16, 0).take(400) {
            training.take_step(&batch, &data).expect("a step");
        }
        let (setbacks, last) = (training.setbacks().len(), training.held_out_error());
        assert!((1..=3).contains(&setbacks) && last < 1.0, "{setbacks} setbacks, {last} is left");
    }

    #[test]
    fn a_training_that_diverges_again_and_again_ends_with_its_story() {
        let data = LayerData::made_up(&layer(), 96, 8);
        let recipe = Recipe { steps: 400, batch: 16, learning_rate: 1e30, ..recipe() };
        let mut training = started(&layer(), &recipe, &data);
        let error = data.batches(1, 16, 0).take(400).find_map(|batch| training.take_step(&batch, &data).err());
        let Some(Error::Diverged { step, story, .. }) = error else { panic!("{error:?}") };
        assert!(step <= 200, "noticed at step {step}");
        assert_eq!(story.matches("of the learning rate").count(), 4, "{story}");
    }

    #[test]
    fn a_training_that_gets_no_better_ends() {
        let data = LayerData::made_up(&layer(), 5, 8);
        let recipe = Recipe { steps: 4000, learning_rate: 0.0, ..recipe() };
        let mut training = started(&layer(), &recipe, &data);
        let mut batches = data.batches(1, 4, 0);
        while !training.is_over() {
            training.take_step(&batches.next().expect("a batch"), &data).expect("a step");
        }
        assert_eq!((training.step(), training.curve().len()), (1400, 1 + STALE_POINTS));
    }

    #[test]
    fn the_best_block_is_kept() {
        let data = LayerData::made_up(&layer(), 96, 8);
        // Never at rest, so that the last block isn't the best.
        let recipe =
            Recipe { steps: 400, batch: 16, learning_rate: 0.1, schedule: Some("constant".into()), ..recipe() };
        let train = |steps: usize| {
            let mut training = started(&layer(), &recipe, &data);
            for batch in data.batches(1, 16, 0).take(steps) {
                training.take_step(&batch, &data).expect("a step");
            }
            training
        };
        let training = train(400);
        let curve = training.curve();
        let best = curve.iter().min_by(|a, b| a.held_out_error.total_cmp(&b.held_out_error)).expect("a curve");
        assert!(best.step < 400, "{curve:?}");
        assert_eq!(training.held_out_error(), best.held_out_error);
        assert_eq!(training.block().values(), train(best.step as usize).trained.block().values());
    }

    #[test]
    fn differences_count_times_their_weights() {
        // Two samples of two pixels and two channels.
        let (y, target) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [0.0; 8]);
        let weights = [1.0, 0.0, 0.5, 2.0];
        assert_eq!(squares(&y, &target, &[], (2, 2)), 204.0);
        assert_eq!(squares(&y, &target, &weights, (2, 2)), 1.0 + 9.0 + 0.25 * (25.0 + 49.0) + 4.0 * (36.0 + 64.0));
    }

    #[test]
    fn the_learning_rate_rises_and_falls_or_stays() {
        let data = LayerData::made_up(&layer(), 12, 4);
        let rates = |recipe: &Recipe| {
            let training = started(&layer(), recipe, &data);
            [0, 3, 4, 22, 40].map(|step| (training.learning_rate(step) / recipe.learning_rate * 1e3).round() / 1e3)
        };
        assert_eq!(rates(&recipe()), [0.25, 1.0, 1.0, 0.505, 0.01]);
        let constant = Recipe { schedule: Some(Recipe::CONSTANT.to_owned()), ..recipe() };
        assert_eq!(rates(&constant), [0.25, 1.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn training_learns_what_a_block_can_express() {
        let maps = [(6, 4), (4, 6), (5, 5)].map(|(height, width)| Map { height, width });
        let weighted = LayerPlan { weighted: true, ..layer() };
        for layer in [layer(), LayerPlan { maps: maps.to_vec(), ..layer() }, weighted] {
            let data = LayerData::made_up(&layer, 96, 8);
            let recipe = Recipe { steps: 400, batch: 16, learning_rate: 1e-2, ema_decay: 0.95, ..recipe() };
            let mut training = started(&layer, &recipe, &data);
            for batch in data.batches(1, 16, 0).take(400) {
                training.take_step(&batch, &data).expect("a step");
            }
            let curve = training.curve();
            let last = training.held_out_error();
            assert!(last < 0.2, "of the output's energy, {last} is left");
            assert_eq!((curve.len(), curve.last().map(|point| point.step)), (20, Some(400)));
        }
    }
}
