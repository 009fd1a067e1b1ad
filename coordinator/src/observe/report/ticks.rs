//! Where the axes of a plot have their ticks.

/// An axis of logarithmic scale.
#[derive(Debug)]
pub(super) struct LogAxis {
    low: f64,
    high: f64,
}

impl LogAxis {
    /// Around all positive values, from a labelled tick to a labelled tick. None without such a value.
    pub(super) fn around(values: impl Iterator<Item = f64>) -> Option<Self> {
        let positive = values.filter(|value| *value > 0.0);
        let (low, high) = positive.fold((f64::INFINITY, 0.0_f64), |(low, high), v| (low.min(v), high.max(v)));
        if !low.is_finite() {
            return None;
        }
        // A value far below the others would press them together.
        let low = low.max(high * 1e-8);
        let below = candidates(low).into_iter().rfind(|tick| *tick <= low * 1.000_001)?;
        let above = candidates(high).into_iter().find(|tick| *tick >= high * 0.999_999 && *tick > below)?;
        Some(Self { low: below, high: above })
    }

    /// Place on the axis: 0 at its low end, 1 at its high end; what is beyond sits at the end.
    pub(super) fn place(&self, value: f64) -> f64 {
        if value <= self.low {
            return 0.0;
        }
        ((value / self.low).log10() / (self.high / self.low).log10()).min(1.0)
    }

    /// Values of the ticks with their labels, rising: 1, 2 and 5 of each decade, or only 1 where there are many.
    pub(super) fn ticks(&self) -> Vec<(f64, String)> {
        let decades = (self.high / self.low).log10();
        let steps: &[i32] = if decades <= 3.5 { &[1, 2, 5] } else { &[1] };
        let (first, last) = (self.low.log10().floor() as i32 - 1, self.high.log10().ceil() as i32 + 1);
        let all = (first..=last).flat_map(|e| steps.iter().map(move |&digit| (digit, e)));
        let inside = |value: f64| value >= self.low * 0.999_999 && value <= self.high * 1.000_001;
        let tick = |(digit, exponent)| (f64::from(digit) * 10_f64.powi(exponent), label(digit, exponent));
        all.map(tick).filter(|(value, _)| inside(*value)).collect()
    }
}

/// Digit × 10^exponent, exactly.
fn label(digit: i32, exponent: i32) -> String {
    match exponent {
        ..-4 | 5.. => format!("{digit}e{exponent}"),
        -4..0 => format!("0.{}{digit}", "0".repeat((-exponent - 1) as usize)),
        0..5 => format!("{digit}{}", "0".repeat(exponent as usize)),
    }
}

/// Round numbers around a positive value, rising.
fn candidates(value: f64) -> Vec<f64> {
    let exponent = value.log10().floor() as i32;
    (exponent - 1..=exponent + 1).flat_map(|e| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(e))).collect()
}

/// Round numbers from 0 to `most`, at most six of them.
pub(super) fn linear(most: u64) -> Vec<u64> {
    let mut step = 1_u64;
    let mut factors = [2, 5, 10].into_iter().cycle();
    let mut scale = 1_u64;
    while most / step > 5 {
        let factor = factors.next().unwrap_or(10);
        step = scale.saturating_mul(factor);
        if factor == 10 {
            scale = step;
        }
    }
    (0..=most / step).map(|i| i * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(linear(600), [0, 200, 400, 600]);
        assert_eq!(linear(0), [0]);
        assert_eq!(linear(7), [0, 2, 4, 6]);
        assert!(linear(u64::MAX).len() <= 6);

        let axis = LogAxis::around([0.013, 0.9, 0.0].into_iter()).expect("values");
        let labels: Vec<String> = axis.ticks().into_iter().map(|(_, label)| label).collect();
        assert_eq!(labels, ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]);
        assert_eq!((axis.place(0.01), axis.place(1.0), axis.place(0.0)), (0.0, 1.0, 0.0));
        assert!((axis.place(0.1) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn any_values_make_an_axis() {
        assert!(LogAxis::around([0.0].into_iter()).is_none());
        for values in [[1.0, 1.0], [1e-300, 1e300], [5e-7, 3e5], [f64::MIN_POSITIVE, f64::MIN_POSITIVE]] {
            if let Some(axis) = LogAxis::around(values.into_iter()) {
                assert!(axis.ticks().len() < 400 && axis.place(values[0]).is_finite(), "{values:?}");
            }
        }
    }
}
