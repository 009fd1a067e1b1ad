//! How the errors of a job's layers went, for whoever looks: kept in memory alone, from the start of this process on.

use std::collections::BTreeMap;

use deltaconv_proto::v1;

/// Points of a layer; where more come, every second one of them goes.
const POINTS: usize = 64;

/// The curves of a job's layers, by position in the plan.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    layers: BTreeMap<usize, Vec<v1::LayerPoint>>,
}

impl History {
    /// Takes what was reported of a layer's training, where it says something new.
    pub(super) fn note(&mut self, layer: usize, round: u32, progress: &v1::Progress, unix_ms: u64) {
        let point = v1::LayerPoint {
            unix_ms,
            round,
            step: progress.step,
            held_out_error: progress.held_out_error as f32,
            training_error: progress.training_error as f32,
        };
        if !is_known(point.held_out_error) && !is_known(point.training_error) {
            return;
        }
        let points = self.layers.entry(layer).or_default();
        let figures =
            |point: &v1::LayerPoint| (point.round, point.held_out_error.to_bits(), point.training_error.to_bits());
        if points.last().is_some_and(|last| figures(last) == figures(&point)) {
            return;
        }
        points.push(point);
        if points.len() > POINTS {
            let mut index = 0;
            // The last one stays: it is how things stand.
            points.retain(|_| {
                index += 1;
                index % 2 == 1 || index > POINTS
            });
        }
    }

    /// The oldest first.
    pub(super) fn of(&self, layer: usize) -> &[v1::LayerPoint] {
        self.layers.get(&layer).map_or(&[], Vec::as_slice)
    }
}

fn is_known(figure: f32) -> bool {
    figure.is_finite() && figure > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(step: u64, error: f64) -> v1::Progress {
        v1::Progress { step, held_out_error: error, ..v1::Progress::default() }
    }

    #[test]
    fn a_curve_is_bounded_and_ends_with_what_was_said_last() {
        let mut history = History::default();
        history.note(3, 0, &progress(0, f64::NAN), 1);
        assert_eq!(history.of(3), []);
        for step in 1..=10_000 {
            history.note(3, 0, &progress(step, 1.0 / step as f64), step);
            // What says nothing new is no point.
            history.note(3, 0, &progress(step, 1.0 / step as f64), step + 1);
        }
        let points = history.of(3);
        assert!((POINTS / 2..=POINTS).contains(&points.len()), "{}", points.len());
        assert_eq!(points.last().map(|point| point.step), Some(10_000));
        assert!(points.is_sorted_by(|a, b| a.step < b.step), "{points:?}");
        assert_eq!(points[0].step, 1);
        assert_eq!(history.of(2), []);
    }
}
