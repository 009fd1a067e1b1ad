//! How a layer's error went, as a row of small bars.

use std::collections::BTreeMap;

use deltaconv_proto::v1;

/// From the least to the most.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Characters of a row.
const WIDTH: usize = 12;
/// Points that are kept of a layer.
const POINTS: usize = 240;

/// The errors that were seen of each layer.
#[derive(Debug, Default)]
pub(crate) struct Curves(BTreeMap<String, Vec<f64>>);

impl Curves {
    /// Takes what a status tells of its layers.
    pub(crate) fn note(&mut self, layers: &[v1::LayerStatus]) {
        for layer in layers {
            let points = self.0.entry(layer.name.clone()).or_default();
            if !layer.history.is_empty() {
                *points = layer
                    .history
                    .iter()
                    .map(|point| error(point.training_error.into(), point.held_out_error.into()))
                    .collect();
                points.retain(|error| is_known(*error));
            }
            let now = error(layer.training_error, layer.held_out_error);
            if is_known(now) && points.last() != Some(&now) {
                points.push(now);
            }
            if points.len() > POINTS {
                let mut index = 0;
                points.retain(|_| {
                    index += 1;
                    index % 2 == 1 || index > POINTS
                });
            }
        }
    }

    /// The row of a layer; empty while it would have a single bar.
    pub(crate) fn row(&self, layer: &str) -> String {
        self.0.get(layer).map(|points| row(points)).unwrap_or_default()
    }
}

/// Of the samples that are trained on where that is known, since it changes most; of held-out ones else.
fn error(training: f64, held_out: f64) -> f64 {
    if is_known(training) { training } else { held_out }
}

fn is_known(error: f64) -> bool {
    error.is_finite() && error > 0.0
}

/// By the logarithm, since errors fall by factors.
fn row(points: &[f64]) -> String {
    if points.len() < 2 {
        return String::new();
    }
    let count = points.len().min(WIDTH);
    let chosen: Vec<f64> = (0..count).map(|index| points[index * (points.len() - 1) / (count - 1)].ln()).collect();
    let low = chosen.iter().copied().fold(f64::INFINITY, f64::min);
    let high = chosen.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let step = |value: f64| match high - low {
        range if range > 0.0 => ((value - low) / range * (BARS.len() - 1) as f64).round() as usize,
        _ => 0,
    };
    chosen.iter().map(|value| BARS[step(*value).min(BARS.len() - 1)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_falls_as_the_error_does() {
        assert_eq!(row(&[1.0, 0.1, 0.01]), "█▅▁");
        assert_eq!(row(&[0.5, 0.5]), "▁▁");
        assert_eq!(row(&[0.5]), "");
        let many: Vec<f64> = (1..=1000).map(|step| 1.0 / f64::from(step)).collect();
        let row = row(&many);
        assert_eq!(row.chars().count(), WIDTH);
        assert!(row.starts_with('█') && row.ends_with('▁'), "{row}");
    }

    #[test]
    fn a_first_status_brings_what_was_before_and_later_ones_add_to_it() {
        let point = |error: f32| v1::LayerPoint { held_out_error: error, ..v1::LayerPoint::default() };
        let layer = |error: f64, history: Vec<v1::LayerPoint>| v1::LayerStatus {
            name: "mid".into(),
            held_out_error: error,
            training_error: f64::NAN,
            history,
            ..v1::LayerStatus::default()
        };
        let mut curves = Curves::default();
        curves.note(&[layer(0.25, vec![point(1.0), point(0.5), point(0.25)])]);
        curves.note(&[layer(0.25, Vec::new())]);
        curves.note(&[layer(0.125, Vec::new())]);
        assert_eq!(curves.0["mid"], [1.0, 0.5, 0.25, 0.125]);
        curves.note(&[layer(f64::NAN, Vec::new())]);
        assert_eq!(curves.row("mid").chars().count(), 4);
        assert_eq!(curves.row("other"), "");
    }
}
