//! How many steps each layer's block is trained for in a round.

use deltaconv_proto::v1;

use super::{Job, Stage, State, Step};
use crate::plan;

/// No layer gets less than its even share over this, nor more than its even share times this: the model of what steps gain is
/// rough, and a layer that was easy to replace alone must still learn to undo the drift of those before it.
const MOST: u32 = 4;
/// Points of a training's curve, at even distances where steps are a multiple of it.
const CURVE_POINTS: u32 = 20;

/// A layer whose steps are asked for.
#[derive(Clone, Copy, Debug)]
struct Layer {
    /// What its replacement alone costs the predicted noise.
    error: f64,
    /// Multiply-accumulates of a step, up to a factor that all share.
    cost: f64,
}

impl State {
    /// Training steps of the block of each of the plan's layers in a round. They follow from the recipe and the outputs that
    /// were accepted in the first round alone, so a coordinator that begins anew says the same.
    pub(super) fn steps(&self, job: &Job, round: u32) -> Vec<u32> {
        let default = v1::Recipe::default();
        let recipe = job.spec.recipe.as_ref().unwrap_or(&default);
        let even = recipe.steps_of(round);
        let mut steps = vec![even; job.plan.layers.len()];
        if round == 0 || !recipe.is_by_gain() {
            return steps;
        }
        // Before the first round is over nobody asks but who draws a picture.
        let Some(errors) = self.costs_alone(job, round) else { return steps };
        let plan = self.plan_of_round(job, round);
        let layer = |(layer, error): &(usize, f64)| Layer {
            error: *error,
            cost: plan::cost::Block::planned(&plan.layers[*layer]).total() as f64,
        };
        let layers: Vec<Layer> = errors.iter().map(layer).collect();
        for ((layer, _), spread) in errors.into_iter().zip(spread(&layers, even, recipe.warmup_steps)) {
            steps[layer] = spread;
        }
        steps
    }

    /// What the replacement alone of each layer cost the predicted noise after the first round, of those that a round trains
    /// and that don't stay attention, by their positions in the plan. None before that is known of all.
    pub(super) fn costs_alone(&self, job: &Job, round: u32) -> Option<Vec<(usize, f64)>> {
        let staying = self.staying(job);
        let is_trained = |layer: &v1::LayerPlan| !staying.iter().any(|one| one.layer == layer.name);
        let layers = &job.plan.layers;
        let first = layers.len() - plan::trained_in(round, layers).len();
        let trained = (first..layers.len()).filter(|layer| is_trained(&layers[*layer]));
        let found = |layer: usize| {
            let first_round = Step { stage: Stage::Distill, round: 0 };
            let task = self.tasks_in(job, first_round).find(|task| task.is_of_layer(layer))?;
            Some((layer, task.distilled.as_ref()?.alone_error?))
        };
        trained.map(found).collect()
    }
}

/// Steps of the layers that cost no more than `even` ones of each would, and at most [`CURVE_POINTS`] steps a layer less.
///
/// Where the error of a layer falls as error / steps, the sum of what is left is least, at the same sum of cost · steps, with
/// steps in proportion to √(error / cost) (Lagrange). Within [`MOST`] of the even ones, and no fewer than warm up.
fn spread(layers: &[Layer], even: u32, warm_up: u32) -> Vec<u32> {
    let least = (even / MOST).max(warm_up).max(1).next_multiple_of(CURVE_POINTS).min(even);
    let bounds = (f64::from(least), f64::from(even) * f64::from(MOST));
    let weight = |layer: &Layer| (layer.error.max(0.0) / layer.cost.max(1.0)).sqrt();
    let smallest = layers.iter().map(weight).filter(|weight| *weight > 0.0).fold(f64::INFINITY, f64::min);
    if !smallest.is_finite() || least == even {
        return vec![even; layers.len()];
    }
    let steps = |layer: &Layer, scale: f64| (scale * weight(layer)).clamp(bounds.0, bounds.1);
    let total =
        |steps: &dyn Fn(&Layer) -> f64| layers.iter().map(|layer| layer.cost.max(1.0) * steps(layer)).sum::<f64>();
    let affordable = total(&|_| f64::from(even));
    // The total grows with the scale, so halving finds the largest that can be afforded.
    let (mut scale, mut too_large) = (0.0, bounds.1 / smallest);
    for _ in 0..f64::MANTISSA_DIGITS {
        let middle = f64::midpoint(scale, too_large);
        match total(&|layer| steps(layer, middle)) <= affordable {
            true => scale = middle,
            false => too_large = middle,
        }
    }
    let whole = |layer: &Layer| {
        let steps = steps(layer, scale) as u32;
        (steps - steps % CURVE_POINTS).max(least)
    };
    layers.iter().map(whole).collect()
}
