//! What a recipe says of an optimiser.

use deltaconv_kernels::AdamW;
use deltaconv_proto::v1::Recipe;

/// The prototype's; 0.999 remembers too long for runs of some hundred steps.
const BETA2: f64 = 0.99;
/// The learning rate falls to this share of its peak.
const FINAL_RATE: f64 = 0.01;

/// The recipe's AdamW.
pub(crate) fn of_recipe(recipe: &Recipe) -> AdamW {
    AdamW {
        beta2: BETA2,
        weight_decay: recipe.weight_decay,
        clip_norm: (recipe.clip_norm > 0.0).then_some(recipe.clip_norm),
        ema_decay: recipe.ema_decay,
        ..AdamW::default()
    }
}

/// The learning rate of a step after the warm-up, over its peak: half a cosine.
pub(crate) fn cosine(step: f64, warm_up: f64, steps: f64) -> f64 {
    let fraction = (step - warm_up) / (steps - warm_up).max(1.0);
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * fraction).cos());
    FINAL_RATE + (1.0 - FINAL_RATE) * cosine
}
