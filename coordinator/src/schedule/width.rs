//! Which layers get a wider block after the first round.

use std::borrow::Cow;

use deltaconv_proto::v1;

use super::{Job, State};
use crate::plan::{self, cost};

/// Wider blocks may add this share to the multiply-accumulates of all blocks, and no more: a few layers are what is left of
/// the error, and whoever wants all of them wide says so with `inter_ratio`.
const MOST_ADDED: f64 = 0.5;

impl State {
    /// The job's plan as a round trains its blocks: after the first one, some are wider. It follows from the recipe and the
    /// outputs that were accepted in the first round alone.
    pub(super) fn plan_of_round<'a>(&self, job: &'a Job, round: u32) -> Cow<'a, v1::JobPlan> {
        let mut plan = Cow::Borrowed(&job.plan);
        if round > 0 {
            for layer in self.widened(job) {
                plan.to_mut().layers[layer] = plan::widened(&job.plan.layers[layer]);
            }
        }
        plan
    }

    /// The layers whose blocks are wider after the first round, by their positions in the plan: of those whose replacement
    /// alone costs the predicted noise more than the recipe's share, those that cost most for what widening adds.
    fn widened(&self, job: &Job) -> Vec<usize> {
        let recipe = job.spec.recipe.as_ref().filter(|recipe| recipe.widens());
        let Some(share) = recipe.and_then(|recipe| recipe.widen) else { return Vec::new() };
        let Some(mut costly) = self.costs_alone(job, 1) else { return Vec::new() };
        costly.retain(|(_, error)| *error > share);
        let count = |layer: &v1::LayerPlan| cost::Block::planned(layer).total();
        let added = |layer: usize| {
            let layer = &job.plan.layers[layer];
            count(&plan::widened(layer)).saturating_sub(count(layer)) as f64
        };
        costly.sort_by(|(a, of_a), (b, of_b)| {
            let for_what_it_adds = |layer: usize, error: f64| error / added(layer).max(1.0);
            for_what_it_adds(*b, *of_b).total_cmp(&for_what_it_adds(*a, *of_a))
        });
        let mut left = MOST_ADDED * job.plan.layers.iter().map(count).sum::<u128>() as f64;
        let fits = |(layer, _): (usize, f64)| {
            let rest = left - added(layer);
            (rest >= 0.0).then(|| {
                left = rest;
                layer
            })
        };
        costly.into_iter().filter_map(fits).collect()
    }
}
