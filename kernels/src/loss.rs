/// What training lessens: the mean of this of every output's difference d from its target, times its gate where there is one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Loss {
    /// d².
    #[default]
    Squared,
    /// d² up to |d| = `delta`, and straight on beyond it: δ (2 |d| − δ) (Huber, Annals of Mathematical Statistics 35, 1964).
    Huber {
        /// δ, above 0.
        delta: f32,
    },
    /// `unit` · |d|, rounded off where |d| is below a 20 000th of the unit.
    Absolute {
        /// What |d| is measured in, above 0.
        unit: f32,
    },
}

impl Loss {
    /// Its slope is 2 · (gain · d, kept within ± limit).
    pub(crate) fn slope(self) -> Slope {
        match self {
            Self::Squared => Slope { gain: 1.0, limit: f32::INFINITY },
            Self::Huber { delta } => Slope { gain: 1.0, limit: delta },
            Self::Absolute { unit } => Slope { gain: 1e4, limit: unit / 2.0 },
        }
    }
}

/// Half a loss' slope.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Slope {
    pub(crate) gain: f32,
    pub(crate) limit: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_losses() {
        let slope = |loss: Loss, d: f32| {
            let Slope { gain, limit } = loss.slope();
            2.0 * (gain * d).clamp(-limit, limit)
        };
        let value = |loss: Loss, d: f32| match loss {
            Loss::Squared => d * d,
            Loss::Huber { delta } if d.abs() <= delta => d * d,
            Loss::Huber { delta } => delta * (2.0 * d.abs() - delta),
            Loss::Absolute { unit } => unit * d.abs(),
        };
        for loss in [Loss::Squared, Loss::Huber { delta: 0.3 }, Loss::Absolute { unit: 0.7 }] {
            for d in [-2.0, -0.31, -0.1, 0.02, 0.29, 0.5, 3.0] {
                let difference = (value(loss, d + 1e-3) - value(loss, d - 1e-3)) / 2e-3;
                assert!((slope(loss, d) - difference).abs() < 2e-3, "{loss:?} at {d}: {difference}");
            }
        }
    }
}
