//! The training of one block: a state that a step moves on, and that a checkpoint holds whole.

#[cfg(feature = "cuda")]
use std::sync::Arc;

use deltaconv_kernels::cpu::{self, Target, Workspace};
use deltaconv_kernels::{AdamW, BlockShape, Parameters, adamw};
use deltaconv_proto::draw::Batches;
use deltaconv_proto::v1::{LayerPlan, Recipe};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::on_gpu::OnGpu;
use crate::accelerator::Accelerator;
#[cfg(feature = "cuda")]
use crate::accelerator::Cuda;
use crate::shards::{Batch, LayerData, Rows};
use crate::task::Error;

/// Points of a curve, the held-out error measured at each.
const CURVE_POINTS: u64 = 20;
/// The learning rate falls to this share of its peak.
const FINAL_RATE: f64 = 0.01;
/// The prototype's; 0.999 remembers too long for runs of some hundred steps.
const BETA2: f64 = 0.99;

/// One point of a layer's curve. Errors are squared errors over the output's mean square.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct CurvePoint {
    pub(super) step: u64,
    /// Mean over the steps since the last point.
    pub(super) training_error: f64,
    pub(super) held_out_error: f64,
}

/// What a checkpoint holds.
#[derive(Clone, Debug)]
pub(super) struct Trained {
    pub(super) weights: Parameters,
    pub(super) optimiser: adamw::State,
    pub(super) curve: Vec<CurvePoint>,
    /// Sum of the training errors since the last point of the curve.
    pub(super) error_sum: f64,
}

/// A block in training.
pub(super) struct Training {
    layer: String,
    recipe: Recipe,
    seed: u64,
    shape: BlockShape,
    optimiser: AdamW,
    pub(super) trained: Trained,
    /// Mean square of the layer's output, which errors are taken relative to.
    energy: f64,
    gradients: Parameters,
    workspace: Workspace,
    batch: Rows,
    #[cfg(feature = "cuda")]
    cuda: Option<Arc<Cuda>>,
    /// The state that `trained` is a copy of, from the first step on a GPU.
    #[cfg(feature = "cuda")]
    on_gpu: Option<OnGpu>,
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
        let optimiser = AdamW {
            beta2: BETA2,
            weight_decay: recipe.weight_decay,
            clip_norm: (recipe.clip_norm > 0.0).then_some(recipe.clip_norm),
            ema_decay: recipe.ema_decay,
            ..AdamW::default()
        };
        let trained = Trained {
            optimiser: adamw::State::new(&weights, recipe.ema_decay > 0.0),
            weights,
            curve: Vec::new(),
            error_sum: 0.0,
        };
        Self {
            layer: layer.name.clone(),
            recipe: recipe.clone(),
            seed,
            gradients: Parameters::zeros(&shape),
            shape,
            optimiser,
            trained,
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

    /// Steps taken.
    pub(super) fn step(&self) -> u64 {
        #[cfg(feature = "cuda")]
        if let Some(on_gpu) = &self.on_gpu {
            return on_gpu.steps();
        }
        self.trained.optimiser.step
    }

    /// The last one measured; NaN before the first.
    pub(super) fn held_out_error(&self) -> f64 {
        self.trained.curve.last().map_or(f64::NAN, |point| point.held_out_error)
    }

    /// The weights that become the block: their moving average, where one is kept.
    pub(super) fn block(&self) -> &Parameters {
        self.trained.optimiser.ema.as_ref().unwrap_or(&self.trained.weights)
    }

    /// Linear warm-up, then a half cosine, unless the recipe keeps the rate.
    fn learning_rate(&self, step: u64) -> f64 {
        let (step, warmup) = (step as f64, f64::from(self.recipe.warmup_steps));
        if step < warmup {
            return self.recipe.learning_rate * (step + 1.0) / warmup;
        }
        if self.recipe.schedule.as_deref() == Some(Recipe::CONSTANT) {
            return self.recipe.learning_rate;
        }
        let fraction = (step - warmup) / (f64::from(self.recipe.steps) - warmup).max(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * fraction).cos());
        self.recipe.learning_rate * (FINAL_RATE + (1.0 - FINAL_RATE) * cosine)
    }

    /// The batches that are to come, in order.
    pub(super) fn order(&self, data: &LayerData) -> Batches {
        Batches::new(self.seed, data.training_buckets().clone(), self.recipe.batch as usize, self.step())
    }

    /// Moves to the GPU, if there is one. Gives the bytes of its memory that are left for samples.
    pub(super) fn place(&mut self, data: &LayerData, limit: Option<u64>) -> Result<u64, Error> {
        #[cfg(feature = "cuda")]
        if let Some(cuda) = &self.cuda {
            let Trained { weights, optimiser, .. } = &self.trained;
            let on_gpu = OnGpu::new(cuda, weights, optimiser, self.optimiser, data, self.recipe.batch as usize)?;
            let room = on_gpu.room(limit)?;
            self.on_gpu = Some(on_gpu);
            return Ok(room);
        }
        let _ = (data, limit);
        Ok(0)
    }

    /// Takes one step on the batch that is its turn.
    pub(super) fn take_step(&mut self, batch: &Batch, data: &LayerData) -> Result<(), Error> {
        let (step, rate) = (self.step(), self.learning_rate(self.step()));
        #[cfg(feature = "cuda")]
        if let Some(on_gpu) = &mut self.on_gpu {
            on_gpu.step(batch, 1.0 / self.energy, rate)?;
            if self.is_curve_point() {
                self.settle()?;
            }
            return self.draw_curve(data);
        }
        batch.to_f32(&mut self.batch);
        let loss = cpu::loss_and_gradient(
            &self.shape,
            &self.trained.weights,
            &self.batch.input,
            Target { output: &self.batch.output, gates: self.batch.weights() },
            batch.size,
            1.0 / self.energy,
            &mut self.gradients,
            None,
            &mut self.workspace,
        )?;
        if !loss.is_finite() {
            return Err(Error::Diverged { layer: self.layer.clone(), step, loss });
        }
        self.trained.error_sum += loss / self.energy;
        let Trained { weights, optimiser, .. } = &mut self.trained;
        self.optimiser.step(rate, weights, &self.gradients, optimiser)?;
        self.draw_curve(data)
    }

    /// Brings `trained` up to date where it is a copy.
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        #[cfg(feature = "cuda")]
        if let Some(on_gpu) = &mut self.on_gpu {
            let (losses, (weights, optimiser)) = (on_gpu.losses()?, on_gpu.download()?);
            let first = optimiser.step - losses.len() as u64;
            for (step, loss) in (first..).zip(losses) {
                if !loss.is_finite() {
                    return Err(Error::Diverged { layer: self.layer.clone(), step, loss });
                }
                self.trained.error_sum += loss / self.energy;
            }
            (self.trained.weights, self.trained.optimiser) = (weights, optimiser);
        }
        Ok(())
    }

    fn is_curve_point(&self) -> bool {
        let (step, steps) = (self.step(), u64::from(self.recipe.steps));
        step.is_multiple_of((steps / CURVE_POINTS).max(1)) || step == steps
    }

    fn draw_curve(&mut self, data: &LayerData) -> Result<(), Error> {
        if !self.is_curve_point() {
            return Ok(());
        }
        let step = self.step();
        let last = self.trained.curve.last().map_or(0, |point| point.step);
        let training_error = self.trained.error_sum / (step - last).max(1) as f64;
        let held_out_error = self.measure(data)?;
        self.trained.error_sum = 0.0;
        self.trained.curve.push(CurvePoint { step, training_error, held_out_error });
        Ok(())
    }

    /// The block's squared error on the held-out samples, over their mean square: every number counts alike, whatever its
    /// bucket.
    fn measure(&mut self, data: &LayerData) -> Result<f64, Error> {
        let mut squares = 0.0;
        let mut predicted = Vec::new();
        let held_out = data.by_bucket(data.held_out());
        for rows in held_out.iter().flat_map(|samples| samples.chunks(self.recipe.batch as usize)) {
            let batch = data.batch(rows)?;
            #[cfg(feature = "cuda")]
            if let Some(on_gpu) = &mut self.on_gpu {
                squares += on_gpu.squares(&batch)?;
                continue;
            }
            batch.to_f32(&mut self.batch);
            predicted.resize(self.batch.input.len(), 0.0);
            let block = self.trained.optimiser.ema.as_ref().unwrap_or(&self.trained.weights);
            cpu::forward(&self.shape, block, &self.batch.input, batch.size, &mut predicted, &mut self.workspace)?;
            let [_, height, width] = batch.size;
            let map = (height * width, self.shape.channels());
            squares += self::squares(&predicted, &self.batch.output, &self.batch.weights, map);
        }
        let numbers = data.numbers(data.held_out());
        Ok(squares / numbers as f64 / self.energy)
    }
}

/// The sum of the squared differences between maps of `pixels` pixels, each times its weight [n, channels] where there are any.
pub(super) fn squares(y: &[f32], target: &[f32], weights: &[f32], (pixels, channels): (usize, usize)) -> f64 {
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

    pub(in crate::distill) fn training(data: &LayerData) -> Training {
        started(&layer(), &recipe(), data)
    }

    fn started(layer: &LayerPlan, recipe: &Recipe, data: &LayerData) -> Training {
        let shape = crate::distill::block_shape(layer).expect("a block");
        let weights = crate::distill::initial::weights(&shape, 1, layer.index).expect("weights");
        Training::new(weights, layer, recipe, 1, data, &Accelerator::None)
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
            let curve = &training.trained.curve;
            let last = training.held_out_error();
            assert!(last < 0.2, "of the output's energy, {last} is left");
            assert_eq!((curve.len(), curve.last().map(|point| point.step)), (20, Some(400)));
        }
    }
}
