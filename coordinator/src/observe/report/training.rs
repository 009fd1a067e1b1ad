//! How a block's training went, from the metadata of its object: `relative_error`, and `curve`, a JSON array of
//! [step, training loss, held-out error or null], both over the output's mean square, and `setbacks`, one of [step, error or
//! null, learning rate from there on over the recipe's]. And where training ended with a regression `solved`, [held-out error
//! before, after]; the block is what does better.

use std::collections::BTreeMap;

use serde::Serialize;

use super::part::PartError;

/// More than any training has.
const MOST_SETBACKS: usize = 100;

/// One point of a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Steps done.
    pub step: u64,
    /// Training loss over the output's mean square.
    pub loss: f64,
    /// Held-out error over the output's mean square, where it was measured.
    pub held_out: Option<f64>,
}

/// What a block says of its training.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// Held-out error of the block over the output's mean square.
    pub relative_error: f64,
    /// In order of steps.
    pub curve: Vec<Point>,
    /// The steps at which training had diverged, went back, and went on with a lower rate.
    pub setbacks: Vec<u64>,
    /// What a regression at its end came to.
    pub solved: Option<Solved>,
}

/// A regression for the best block's last linears: its held-out errors over the output's mean square.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Solved {
    /// As training left it.
    pub before: f64,
    /// With the solution, which becomes the block if this is less.
    pub after: f64,
}

impl Solved {
    /// Whether the solution became the block.
    pub fn is_kept(&self) -> bool {
        self.after < self.before
    }
}

impl Training {
    /// Reads the metadata of a block's object. Its numbers are finite and not negative, its steps in order.
    ///
    /// # Errors
    /// [`PartError::Metadata`] for an entry that is missing or malformed.
    pub fn parse(metadata: &BTreeMap<String, String>) -> Result<Self, PartError> {
        let entry = |name| metadata.get(name).map(String::as_str).unwrap_or_default();
        let error = |name, expected| {
            let found = entry(name).chars().take(80).collect();
            PartError::Metadata { name, found, expected }
        };

        let relative_error = entry("relative_error").parse::<f64>().ok().filter(|e| is_error(*e));
        let relative_error = relative_error.ok_or_else(|| error("relative_error", "a finite decimal number from 0"))?;

        let malformed = || error("curve", "a JSON array of [step, training loss, held-out error or null], by step");
        let curve: Vec<(u64, f64, Option<f64>)> = serde_json::from_str(entry("curve")).map_err(|_| malformed())?;
        let point = |(step, loss, held_out)| Point { step, loss, held_out };
        let curve: Vec<Point> = curve.into_iter().map(point).collect();
        let is_valid = |point: &Point| is_error(point.loss) && point.held_out.is_none_or(is_error);
        let is_in_order = curve.windows(2).all(|pair| pair[0].step < pair[1].step);
        if !is_in_order || !curve.iter().all(is_valid) {
            return Err(malformed());
        }
        let malformed = || error("setbacks", "a JSON array of [step, error or null, learning rate's share], by step");
        let setbacks: Vec<(u64, Option<f64>, f64)> = match metadata.get("setbacks") {
            None => Vec::new(),
            Some(json) => serde_json::from_str(json).map_err(|_| malformed())?,
        };
        let is_in_order = setbacks.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if !is_in_order || setbacks.len() > MOST_SETBACKS || !setbacks.iter().all(|(_, _, rate)| is_error(*rate)) {
            return Err(malformed());
        }
        let setbacks = setbacks.into_iter().map(|(step, ..)| step).collect();
        let malformed = || error("solved", "a JSON array of [held-out error before, after]");
        let solved: Option<(f64, f64)> = match metadata.get("solved") {
            None => None,
            Some(json) => Some(serde_json::from_str(json).map_err(|_| malformed())?),
        };
        if solved.is_some_and(|(before, after)| !is_error(before) || !is_error(after)) {
            return Err(malformed());
        }
        let solved = solved.map(|(before, after)| Solved { before, after });
        Ok(Self { relative_error, curve, setbacks, solved })
    }

    /// With at most so many points: of each group the mean loss, and the newest held-out error.
    pub(crate) fn thinned(mut self, most: usize) -> Self {
        let group = self.curve.len().div_ceil(most).max(1);
        let merge = |points: &[Point]| {
            let loss = points.iter().map(|point| point.loss).sum::<f64>() / points.len() as f64;
            let measured = points.iter().rev().find(|point| point.held_out.is_some());
            let at = measured.or(points.last())?;
            Some(Point { step: at.step, loss, held_out: at.held_out })
        };
        self.curve = self.curve.chunks(group).filter_map(merge).collect();
        self
    }
}

fn is_error(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(relative_error: &str, curve: &str) -> BTreeMap<String, String> {
        let entries = [("relative_error", relative_error), ("curve", curve)];
        entries.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn curves_are_read_and_thinned() {
        let training = Training::parse(&metadata("0.0125", "[[10, 0.5, null], [20, 0.25, 0.3]]")).expect("valid");
        assert_eq!(training.relative_error, 0.0125);
        assert_eq!(training.curve[1], Point { step: 20, loss: 0.25, held_out: Some(0.3) });

        let mut went_back = metadata("0.5", "[]");
        went_back.insert("setbacks".to_owned(), "[[50, null, 0.25], [100, 7.5, 0.0625]]".to_owned());
        assert_eq!(Training::parse(&went_back).expect("valid").setbacks, [50, 100]);
        went_back.insert("setbacks".to_owned(), "[[50, null, 0.25], [50, 7.5, 0.0625]]".to_owned());
        assert!(Training::parse(&went_back).is_err());

        let mut solved = metadata("0.5", "[]");
        solved.insert("solved".to_owned(), "[0.75, 0.5]".to_owned());
        let found = Training::parse(&solved).expect("valid").solved.expect("solved");
        assert!(found == Solved { before: 0.75, after: 0.5 } && found.is_kept());
        solved.insert("solved".to_owned(), "[0.75, -0.5]".to_owned());
        assert!(Training::parse(&solved).is_err());

        let points: Vec<_> = (1..=10_000).map(|step| format!("[{step}, 1, 2]")).collect();
        let long = Training::parse(&metadata("0", &format!("[{}]", points.join(",")))).expect("valid").thinned(300);
        assert!(long.curve.len() <= 300, "{} points are left", long.curve.len());
        assert_eq!(long.curve.last(), Some(&Point { step: 10_000, loss: 1.0, held_out: Some(2.0) }));
    }

    #[test]
    fn what_a_worker_made_up_is_refused() {
        for (error, curve) in [
            ("NaN", "[]"),
            ("-1", "[]"),
            ("", "[]"),
            ("0.1", ""),
            ("0.1", "[[1]]"),
            ("0.1", "[[1, -2, null]]"),
            ("0.1", "[[2, 1, null], [1, 1, null]]"),
            ("0.1", "[[1, 1e999, null]]"),
        ] {
            assert!(Training::parse(&metadata(error, curve)).is_err(), "{error:?}, {curve:?} were accepted");
        }
    }
}
