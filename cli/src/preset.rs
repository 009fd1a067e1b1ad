//! Recipes by name: how much a conversion is given. What they reach is in docs/recipe.md.

use std::collections::BTreeMap;

use deltaconv_proto::v1::{Finetune, Recipe};
use serde::Deserialize;

/// A recipe, of which a job says what departs from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Preset {
    /// A look at what a model becomes, also without a GPU.
    Fast,
    #[default]
    Balanced,
    /// Wider blocks, more samples, and then all blocks together, end to end.
    Faithful,
    /// The published settings, each block by itself.
    Paper,
}

/// Training all blocks together where a job asks for it, but for its steps.
pub(crate) const FINETUNE: Finetune = Finetune { steps: 0, batch: 64, learning_rate: 1e-3, features: 0.0 };

impl Preset {
    /// Its recipe.
    pub(crate) fn recipe(self) -> Recipe {
        let short = Recipe {
            samples: 1024,
            held_out_samples: 64,
            shard_samples: 64,
            steps: 1000,
            batch: 16,
            learning_rate: 2e-3,
            warmup_steps: 50,
            weight_decay: 0.0,
            clip_norm: 1.0,
            ema_decay: 0.99,
            empty_prompt_fraction: 0.15,
            inter_ratio: 0.5,
            scales: vec![1.0, 0.5],
            kernel_sizes: BTreeMap::new(),
            keep: Vec::new(),
            store: None,
            rounds: 0,
            round_steps: 300,
            teacher_share: 0.0,
            schedule: None,
            keep_costliest: None,
            finetune: None,
            start: None,
            solve: None,
            budget: None,
            widen: None,
            loss: None,
            huber_delta: None,
        };
        match self {
            // Where training is as short, what a regression gives is most of what it comes to.
            Self::Fast => Recipe { start: Some(Recipe::RIDGE.to_owned()), solve: Some(true), ..short },
            Self::Balanced => Recipe {
                samples: 2048,
                held_out_samples: 128,
                shard_samples: 128,
                steps: 3000,
                batch: 64,
                warmup_steps: 100,
                round_steps: 1500,
                ..short
            },
            Self::Faithful => Recipe {
                samples: 8192,
                held_out_samples: 256,
                shard_samples: 256,
                steps: 4000,
                batch: 128,
                warmup_steps: 100,
                inter_ratio: 1.0,
                round_steps: 3000,
                finetune: Some(Finetune { steps: 3000, ..FINETUNE }),
                ..short
            },
            // arXiv 2504.21292, section 4.1; the average is ours.
            Self::Paper => Recipe {
                samples: 8192,
                held_out_samples: 256,
                shard_samples: 256,
                steps: 60_000,
                learning_rate: 3e-4,
                warmup_steps: 500,
                ema_decay: 0.999,
                round_steps: 20_000,
                schedule: Some("constant".to_owned()),
                ..short
            },
        }
    }
}
