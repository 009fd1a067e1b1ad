//! How far from each query a head's attention reaches.
//!
//! A block's two branches share attention between them: the mean over the map takes what is the same for all keys, the
//! convolution what is near. So a row of probabilities A is split into its mean ū over the keys and what stands above
//! it, its high-pass part max(A − ū, 0): nothing of a uniform row, nearly all of one that looks at a few keys. That mass
//! is summed by the Chebyshev distance max(|Δy|, |Δx|) of key and query, so that the mass up to distance d is what a
//! window of 2d + 1 around the query holds.
//!
//! Keys that all queries attend to say nothing of distances, and make a layer look wider than it is: a key whose mean
//! probability over the queries is [`SINK`] times the uniform one or more is a sink, and its column is left out, of ū too.
//!
//! Every query counts, also those near the border, whose windows are cut by it: the kernel is padded with zeros there,
//! and holds just as much of their mass. A row counts by its high-pass mass, so rows without any count nothing.

/// How many times the mean over all keys a sink gets.
pub const SINK: f64 = 8.0;

/// What was found in attention maps of one layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Distances {
    /// High-pass mass by distance.
    pub(super) mass: Vec<f64>,
    /// All mass: one for each query.
    pub(super) rows: f64,
    /// Sinks.
    pub(super) sinks: usize,
    /// Mass of their columns.
    pub(super) sink_mass: f64,
    /// Attention maps.
    pub(super) maps: usize,
}

impl Distances {
    /// Of one attention map over `height` × `width` positions. `for_each_row` gives a visitor every query's number and
    /// its probabilities, and does so again when it is called again.
    pub(super) fn measure(for_each_row: impl Fn(&mut dyn FnMut(usize, &[f32])), [height, width]: [usize; 2]) -> Self {
        let keys = height * width;
        let mut columns = vec![0.0; keys];
        let mut found = Self::pass(&for_each_row, [height, width], &[], |row| {
            columns.iter_mut().zip(row).for_each(|(sum, p)| *sum += f64::from(*p));
        });
        let least = SINK * found.rows / keys as f64;
        let sinks: Vec<usize> = (0..keys).filter(|key| columns[*key] >= least).collect();
        // Most maps have none, and need no second look.
        if !sinks.is_empty() {
            found = Self::pass(&for_each_row, [height, width], &sinks, |_| {});
            found.sinks = sinks.len();
            found.sink_mass = sinks.iter().map(|key| columns[*key]).sum();
        }
        found
    }

    fn pass(
        for_each_row: &impl Fn(&mut dyn FnMut(usize, &[f32])),
        [height, width]: [usize; 2],
        sinks: &[usize],
        mut see: impl FnMut(&[f32]),
    ) -> Self {
        let mut found = Self { mass: vec![0.0; height.max(width)], maps: 1, ..Self::default() };
        let counted = (height * width - sinks.len()).max(1);
        let mut above = vec![0.0; height * width];
        for_each_row(&mut |query, row| {
            debug_assert_eq!(row.len(), height * width);
            see(row);
            found.rows += 1.0;
            above.copy_from_slice(row);
            sinks.iter().for_each(|key| above[*key] = 0.0);
            let mean = (above.iter().map(|p| f64::from(*p)).sum::<f64>() / counted as f64) as f32;
            above.iter_mut().for_each(|p| *p = (*p - mean).max(0.0));
            add_row(&mut found.mass, &above, [query / width, query % width], width);
        });
        found
    }

    /// Adds another map's. Sums depend on the order.
    pub(super) fn add(&mut self, other: &Self) {
        self.mass.resize(self.mass.len().max(other.mass.len()), 0.0);
        self.mass.iter_mut().zip(&other.mass).for_each(|(sum, mass)| *sum += mass);
        self.rows += other.rows;
        self.sinks += other.sinks;
        self.sink_mass += other.sink_mass;
        self.maps += other.maps;
    }

    /// All high-pass mass.
    pub(super) fn total(&self) -> f64 {
        self.mass.iter().sum()
    }

    /// The share of the high-pass mass up to each distance, the last one 1; empty without such mass.
    pub(super) fn cumulative(&self) -> Vec<f64> {
        let total = self.total();
        if total <= 0.0 {
            return Vec::new();
        }
        let mut sum = 0.0;
        let share = |mass: &f64| {
            sum += mass;
            sum / total
        };
        self.mass.iter().map(share).collect()
    }
}

/// Adds one row's mass, [height, width], by the distance from its query.
fn add_row(mass: &mut [f64], row: &[f32], [y, x]: [usize; 2], width: usize) {
    for (key_y, line) in row.chunks_exact(width).enumerate() {
        let rows_apart = key_y.abs_diff(y);
        // Between these columns the rows are further apart than the columns.
        let (first, end) = (x.saturating_sub(rows_apart), (x + rows_apart + 1).min(width));
        mass[rows_apart] += line[first..end].iter().map(|p| f64::from(*p)).sum::<f64>();
        for (sum, p) in mass[x + 1 - first..].iter_mut().zip(line[..first].iter().rev()) {
            *sum += f64::from(*p);
        }
        for (sum, p) in mass[end - x..].iter_mut().zip(&line[end..]) {
            *sum += f64::from(*p);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: [usize; 2] = [9, 12];
    const KEYS: usize = 9 * 12;

    fn distance(a: usize, b: usize) -> usize {
        let apart = |f: fn(usize) -> usize| f(a).abs_diff(f(b));
        apart(|i| i / 12).max(apart(|i| i % 12))
    }

    /// Of a map whose rows are made of weights, which need not sum to 1.
    fn measure(weight: impl Fn(usize, usize) -> f64) -> Distances {
        let for_each = |visit: &mut dyn FnMut(usize, &[f32])| {
            for query in 0..KEYS {
                let weights: Vec<f64> = (0..KEYS).map(|key| weight(query, key)).collect();
                let sum: f64 = weights.iter().sum();
                let row: Vec<f32> = weights.iter().map(|w| (w / sum) as f32).collect();
                visit(query, &row);
            }
        };
        Distances::measure(for_each, MAP)
    }

    #[test]
    fn uniform_attention_has_no_high_pass_mass() {
        let found = measure(|_, _| 1.0);
        assert!(found.total() < 1e-4 * found.rows, "{found:?}");
        assert_eq!((found.rows, found.sinks), (KEYS as f64, 0));
        assert_eq!(Distances::default().cumulative(), Vec::<f64>::new());
    }

    #[test]
    fn every_pair_is_counted_at_its_distance() {
        // Rows whose mass tells every key from the others.
        let weight = |query: usize, key: usize| 1.0 + ((query * 31 + key * 17) % 101) as f64;
        let found = measure(weight);
        let mut expected = vec![0.0; 12];
        for query in 0..KEYS {
            let sum: f64 = (0..KEYS).map(|key| weight(query, key)).sum();
            for key in 0..KEYS {
                expected[distance(query, key)] += (weight(query, key) / sum - 1.0 / KEYS as f64).max(0.0);
            }
        }
        for (found, expected) in found.mass.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    #[test]
    fn a_window_is_held_by_its_kernel_and_by_no_smaller_one() {
        let cumulative = measure(|query, key| f64::from(u8::from(distance(query, key) <= 2))).cumulative();
        assert!(cumulative[1] < 0.5, "{cumulative:?}");
        assert!((cumulative[2] - 1.0).abs() < 1e-6, "{cumulative:?}");
        // A uniform part beside it changes nothing.
        let both = measure(|query, key| if distance(query, key) <= 2 { 1.0 } else { 0.1 }).cumulative();
        assert!((both[2] - 1.0).abs() < 1e-6, "{both:?}");
    }

    #[test]
    fn sinks_are_left_out() {
        let local = |query: usize, key: usize| f64::from(u8::from(distance(query, key) <= 1));
        let sink = KEYS - 1;
        let found = measure(|query, key| local(query, key) + if key == sink { 9.0 } else { 0.0 });
        assert_eq!(found.sinks, 1);
        assert!(found.sink_mass > 0.5 * found.rows, "{found:?}");
        assert!(found.cumulative()[1] > 0.999_999, "{found:?}");
        // As far as it is no sink, a key counts like all others.
        let weak = measure(|query, key| local(query, key) + if key == sink { 0.5 } else { 0.0 });
        assert_eq!(weak.sinks, 0);
        assert!(weak.cumulative()[1] < 0.95, "{weak:?}");
    }
}
