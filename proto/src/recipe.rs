//! What follows from a recipe.

use crate::v1::{Recipe, SampleRange};

impl Recipe {
    /// The schedule that keeps the learning rate.
    pub const CONSTANT: &str = "constant";

    /// The loss of absolute values.
    pub const L1: &str = "l1";
    /// The loss of squares up to a limit, and of absolute values beyond it.
    pub const HUBER: &str = "huber";

    /// What a block's training can lessen.
    pub const LOSSES: [&str; 3] = ["l2", Self::L1, Self::HUBER];

    /// Where "huber" goes over from squares to absolute values, over the output's root mean square, if a recipe doesn't say:
    /// docs/recipe.md has others.
    pub const HUBER_DELTA: f64 = 0.3;

    /// The start by regression.
    pub const RIDGE: &str = "ridge";

    /// The start by regression for which gates that see what the layer's attention sees are tried, too.
    pub const ATTENTION: &str = "attention";

    /// Whether the first round's trainings start from a regression.
    pub fn starts_by_ridge(&self) -> bool {
        self.start.as_deref() == Some(Self::RIDGE) || self.looks_at_attention()
    }

    /// Whether the layers' own attention is tried for that.
    pub fn looks_at_attention(&self) -> bool {
        self.start.as_deref() == Some(Self::ATTENTION)
    }

    /// Whether trainings end with one.
    pub fn solves(&self) -> bool {
        self.solve.unwrap_or(false)
    }

    /// The budget that gives steps to the layers from which most is expected.
    pub const GAIN: &str = "gain";

    /// Steps of a block's training in a round: of every one, or where the budget differs by layer, on average.
    pub fn steps_of(&self, round: u32) -> u32 {
        if round == 0 { self.steps } else { self.round_steps }
    }

    /// Whether later rounds train some blocks for longer than others, by what is expected to come of it.
    pub fn is_by_gain(&self) -> bool {
        self.rounds > 0 && self.budget.as_deref() == Some(Self::GAIN)
    }

    /// Whether later rounds may have wider blocks than the first one.
    pub fn widens(&self) -> bool {
        self.rounds > 0 && self.widen.is_some()
    }

    /// Whether later rounds train on what the first one captured of this range, too: on as many of its training ranges,
    /// evenly spread, as make `teacher_share` of all.
    pub fn is_mixed_in(&self, range: &SampleRange) -> bool {
        let share = self.teacher_share;
        if share.is_nan() || share <= 0.0 || range.start >= self.samples {
            return false;
        }
        // A third of all is a half of the student's, which binary numbers miss by a little.
        let wanted = (share / (1.0 - share) + 1e-9).min(1.0);
        let index = f64::from(range.start / self.shard_samples.max(1));
        ((index + 1.0) * wanted).floor() > (index * wanted).floor()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_teachers_share_is_spread_evenly_over_the_training_ranges() {
        let mixed = |teacher_share: f64| -> Vec<u32> {
            let recipe = Recipe { samples: 100, shard_samples: 10, teacher_share, ..Recipe::default() };
            let ranges = (0..12).map(|index| SampleRange { start: index * 10, end: index * 10 + 10 });
            ranges.filter(|range| recipe.is_mixed_in(range)).map(|range| range.start / 10).collect()
        };
        assert!(mixed(0.0).is_empty());
        assert!(mixed(f64::NAN).is_empty());
        // A third of all: one of the teacher's on two of the student's.
        assert_eq!(mixed(1.0 / 3.0), [1, 3, 5, 7, 9]);
        assert_eq!(mixed(0.5), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(mixed(0.9), mixed(0.5));
    }
}
