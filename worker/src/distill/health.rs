//! Whether a training goes well, judged a stretch of steps at a time.

/// A stretch's error may be so many times the least one before,
const SPIKE: f64 = 10.0;
/// and has to be above this share of the output's energy: less of it a training overcomes by itself, and where a trained block
/// is trained further, the warm-up alone moves it so far.
const LARGE: f64 = 0.5;
/// The learning rate after a setback, over the one before.
const LOWER: f64 = 0.25;
/// Setbacks that a training may have.
const SETBACKS: usize = 3;

/// Some steps' errors, over the output's mean square.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Stretch {
    pub(crate) sum: f64,
    pub(crate) steps: u64,
}

impl Stretch {
    fn of(errors: &[f64]) -> Self {
        Self { sum: errors.iter().sum(), steps: errors.len() as u64 }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.sum += other.sum;
        self.steps += other.steps;
    }

    /// None of no steps.
    pub(crate) fn mean(self) -> Option<f64> {
        (self.steps > 0).then(|| self.sum / self.steps as f64)
    }
}

/// One point of a training's curve. Errors are squared errors over the mean square of what is learned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct CurvePoint {
    pub(crate) step: u64,
    /// Mean over the steps since the last point, without those that were taken back; the held-out error where there are none.
    pub(crate) training_error: f64,
    pub(crate) held_out_error: f64,
}

impl CurvePoint {
    /// As a checkpoint has it.
    pub(crate) fn row(&self) -> [f64; 3] {
        [self.step as f64, self.training_error, self.held_out_error]
    }

    /// Of a row of three.
    pub(crate) fn of_row(row: &[f64]) -> Self {
        Self { step: row[0] as u64, training_error: row[1], held_out_error: row[2] }
    }
}

/// A stretch that was taken back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Setback {
    /// Where it ended.
    pub(crate) step: u64,
    /// Its mean error; not finite where a step's was not.
    pub(crate) error: f64,
    /// The learning rate from there on, over the recipe's.
    pub(crate) rate: f64,
}

impl Setback {
    /// As a checkpoint has it.
    pub(crate) fn row(&self) -> [f64; 3] {
        [self.step as f64, self.error, self.rate]
    }

    /// Of a row of three.
    pub(crate) fn of_row(row: &[f64]) -> Self {
        Self { step: row[0] as u64, error: row[1], rate: row[2] }
    }
}

/// How a training went so far.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Health {
    /// The least mean error of a stretch; infinite before the first.
    pub(crate) least: f64,
    pub(crate) setbacks: Vec<Setback>,
}

impl Default for Health {
    fn default() -> Self {
        Self { least: f64::INFINITY, setbacks: Vec::new() }
    }
}

/// What a stretch shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Seen {
    Well(Stretch),
    /// It is to be taken back.
    Setback(Setback),
    /// As that, and once too often.
    Lost,
}

impl Health {
    /// Judges the stretch that ended with `step`, by its steps' errors.
    pub(crate) fn see(&mut self, step: u64, errors: &[f64]) -> Seen {
        self.see_above(LARGE, step, errors)
    }

    /// As [`Self::see`], where no error up to `harmless` is a spike.
    pub(crate) fn see_above(&mut self, harmless: f64, step: u64, errors: &[f64]) -> Seen {
        let stretch = Stretch::of(errors);
        let Some(error) = stretch.mean() else { return Seen::Well(stretch) };
        // The first stretch has none before it: it must not end far above where it began.
        let before = if self.least.is_finite() { self.least } else { errors[0] };
        if error.is_finite() && (error <= SPIKE * before || error <= harmless) {
            self.least = self.least.min(error);
            return Seen::Well(stretch);
        }
        let setback = Setback { step, error, rate: self.rate() * LOWER };
        self.setbacks.push(setback);
        if self.setbacks.len() > SETBACKS { Seen::Lost } else { Seen::Setback(setback) }
    }

    /// The learning rate, over the recipe's.
    pub(crate) fn rate(&self) -> f64 {
        self.setbacks.last().map_or(1.0, |setback| setback.rate)
    }

    /// What went wrong, for people.
    pub(crate) fn story(&self) -> String {
        let one = |setback: &Setback| {
            let rate = setback.rate / LOWER;
            format!("at step {} with {rate} of the learning rate the error was {:.3}", setback.step, setback.error)
        };
        self.setbacks.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_one_only_where_much_of_the_output_is_missed() {
        let mut health = Health::default();
        assert_eq!(health.see(50, &[1.2, 0.8]), Seen::Well(Stretch { sum: 2.0, steps: 2 }));
        // A trained block may get ten times worse and more on its way.
        assert!(matches!(health.see(100, &[1e-4]), Seen::Well(_)));
        assert!(matches!(health.see(150, &[0.4]), Seen::Well(_)));
        assert_eq!(health.see(200, &[0.6]), Seen::Setback(Setback { step: 200, error: 0.6, rate: 0.25 }));
        assert_eq!(health.rate(), 0.25);
    }

    #[test]
    fn numbers_that_mean_nothing_are_setbacks_and_the_fourth_is_the_last() {
        let mut health = Health::default();
        let rates = [0.25, 0.0625, 0.015625];
        for (index, rate) in rates.into_iter().enumerate() {
            let Seen::Setback(setback) = health.see(index as u64, &[0.1, f64::NAN]) else { panic!("not noticed") };
            assert_eq!(setback.rate, rate);
        }
        assert_eq!(health.see(3, &[f64::INFINITY]), Seen::Lost);
        assert!(health.story().ends_with("at step 3 with 0.015625 of the learning rate the error was inf"));
    }

    #[test]
    fn a_first_stretch_that_runs_away_is_one_too() {
        assert!(matches!(Health::default().see(50, &[2.0, 3.0, 1e3]), Seen::Setback(_)));
        assert!(matches!(Health::default().see(50, &[30.0, 20.0, 10.0]), Seen::Well(_)));
    }
}
