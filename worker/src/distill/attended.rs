//! What a layer's own attention tells a block to start from: where its heads look, and at what.

use candle_core::{Device, Tensor};
use deltaconv_kernels::{BlockShape, Parameters};
use deltaconv_proto::objects::Objects;
use deltaconv_proto::v1::LayerPlan;

use super::initial;
use crate::models::{self, Values};
use crate::shards::Rows;
use crate::task::{Context, Error};
use crate::teacher::OwnAttention;

/// Samples whose attention is looked at.
const SAMPLES: usize = 8;

/// A layer's own attention, on the processor.
pub(super) struct Attended {
    attention: OwnAttention,
    values: Values,
}

impl Attended {
    /// Reads the layer's weights from the job's teacher, and nothing else.
    pub(super) fn load(context: &Context, layer: &LayerPlan) -> Result<Self, Error> {
        let objects = Objects::open(&context.job.teacher_url)?;
        let read = models::load_attention_and_values(&objects, &context.plan, layer);
        let (attention, values) = context.wait(read)?;
        Ok(Self { attention, values })
    }

    /// The drawn weights with open gates, through which values pass as the heads see them on average: conv_up's rows are those of
    /// the value channels of most energy in W_O · W_V, and their depthwise kernels the mean of their head's attention by where
    /// a key is from its query.
    pub(super) fn gates(&self, drawn: &Parameters, rows: &Rows, size: [usize; 3]) -> Result<Parameters, Error> {
        let [batch, height, width] = size;
        let shape = drawn.shape();
        let of_sample = height * width * shape.channels();
        let samples = batch.min(SAMPLES);
        let x = rows.input[..samples * of_sample].to_vec();
        let x = Tensor::from_vec(x, (samples, height, width, shape.channels()), &Device::Cpu)?;
        let radius = radius(shape);
        let maps = self.attention.maps(&x, |map| around(|visit| map.for_each_row(visit), [height, width], radius))?;
        let heads = self.values.heads;
        let means: Vec<Vec<f64>> = (0..heads).map(|head| mean(maps.iter().skip(head).step_by(heads))).collect();
        with_values(drawn, &self.values, &means, radius)
    }
}

/// How far a block looks, in pixels of the map, by its coarsest scale.
fn radius(shape: &BlockShape) -> usize {
    let least = shape.scales().iter().copied().fold(1.0, f64::min);
    ((shape.kernel_size() as f64 / 2.0) / least).ceil() as usize
}

/// Mean probability of the keys by where they are from their queries, [2 · radius + 1, 2 · radius + 1] rows first. Keys beyond
/// the map have none, and those beyond the window are left out.
fn around(
    for_each_row: impl FnOnce(&mut dyn FnMut(usize, &[f32])),
    [height, width]: [usize; 2],
    radius: usize,
) -> Vec<f64> {
    let side = 2 * radius + 1;
    let mut sums = vec![0.0; side * side];
    for_each_row(&mut |query, row| {
        let (y, x) = (query / width, query % width);
        for key_y in y.saturating_sub(radius)..(y + radius + 1).min(height) {
            for key_x in x.saturating_sub(radius)..(x + radius + 1).min(width) {
                sums[(key_y + radius - y) * side + key_x + radius - x] += f64::from(row[key_y * width + key_x]);
            }
        }
    });
    let queries = (height * width) as f64;
    sums.iter_mut().for_each(|sum| *sum /= queries);
    sums
}

fn mean<'a>(maps: impl Iterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    let (mut sums, mut count) = (Vec::new(), 0.0);
    for map in maps {
        sums.resize(map.len(), 0.0);
        sums.iter_mut().zip(map).for_each(|(sum, value)| *sum += value);
        count += 1.0;
    }
    sums.iter_mut().for_each(|sum: &mut f64| *sum /= count);
    sums
}

/// `means`: by head, as [`around`] gives them.
fn with_values(drawn: &Parameters, values: &Values, means: &[Vec<f64>], radius: usize) -> Result<Parameters, Error> {
    let mut gates = drawn.clone();
    initial::open(&mut gates)?;
    let shape = drawn.shape();
    let (inner, half, kernel, channels) = (shape.inner(), shape.half(), shape.kernel_size(), shape.channels());
    let chosen = values.by_energy();
    let chosen: Vec<usize> = chosen.iter().copied().cycle().take(half).collect();
    for (row, value) in chosen.iter().enumerate() {
        let of_value = &values.to_values[value * channels..][..channels];
        gates.get_mut("conv_up.weight")?[row * channels..][..channels].copy_from_slice(of_value);
        gates.get_mut("conv_up.bias")?[row] = values.bias.get(*value).copied().unwrap_or(0.0);
    }
    let of_head = values.width() / values.heads.max(1);
    for (scale, factor) in shape.scales().to_vec().into_iter().enumerate() {
        let kernels: Vec<Vec<f32>> = means.iter().map(|mean| taps(mean, radius, kernel, factor)).collect();
        let weights = gates.get_mut(&format!("gates.{scale}.conv_spatial.weight"))?;
        for (row, value) in chosen.iter().enumerate() {
            let taps = &kernels[value / of_head.max(1)];
            taps.iter().enumerate().for_each(|(at, tap)| weights[at * inner + row] = *tap);
        }
    }
    Ok(gates)
}

/// A kernel [K, K] over a map that is scaled by `factor`, of attention around a query: a tap has all of it that comes to lie there.
fn taps(around: &[f64], radius: usize, kernel: usize, factor: f64) -> Vec<f32> {
    let (side, centre) = (2 * radius + 1, (kernel / 2) as f64);
    let mut taps = vec![0.0; kernel * kernel];
    let place = |at: usize| {
        let tap = ((at as f64 - radius as f64) * factor).round() + centre;
        (tap >= 0.0 && tap < kernel as f64).then_some(tap as usize)
    };
    for (at, share) in around.iter().enumerate() {
        if let (Some(y), Some(x)) = (place(at / side), place(at % side)) {
            taps[y * kernel + x] += *share as f32;
        }
    }
    taps
}

#[cfg(test)]
mod tests {
    use deltaconv_kernels::Gate;

    use super::*;

    /// Attention of every query to the key that is `by` away from it, or to itself where there is none.
    fn shifted([height, width]: [usize; 2], by: [isize; 2], radius: usize) -> Vec<f64> {
        let rows = |visit: &mut dyn FnMut(usize, &[f32])| {
            for query in 0..height * width {
                let [y, x] = [(query / width) as isize + by[0], (query % width) as isize + by[1]];
                let inside = (0..height as isize).contains(&y) && (0..width as isize).contains(&x);
                let key = if inside { y as usize * width + x as usize } else { query };
                let mut row = vec![0.0; height * width];
                row[key] = 1.0;
                visit(query, &row);
            }
        };
        around(rows, [height, width], radius)
    }

    #[test]
    fn kernels_look_where_heads_do() {
        let shape = BlockShape::new(8, 1.0, 5, vec![1.0, 0.5], Gate::Scaled).unwrap();
        let radius = radius(&shape);
        assert_eq!(radius, 5);
        let means = [shifted([6, 8], [0, 2], radius), shifted([6, 8], [-3, 0], radius)];
        assert_eq!(means[0][radius * 11 + radius + 2], 36.0 / 48.0);
        assert_eq!(means[0].iter().sum::<f64>(), 1.0);

        // Of two heads of four channels the second one's are the ones that reach the output.
        let mut values = Values {
            heads: 2,
            to_values: (0..64).map(|i| i as f32).collect(),
            bias: (0..8).map(|i| i as f32 / 10.0).collect(),
            to_outputs: vec![0.0; 64],
        };
        let mut out = |value: usize, weight: f32| values.to_outputs[5 * 8 + value] = weight;
        out(6, 1.0);
        out(4, 1.0);
        out(0, 0.5);
        let drawn = initial::weights(&shape, 3, 1).unwrap();
        let gates = with_values(&drawn, &values, &means, radius).unwrap();
        let rows = gates.get("conv_up.weight").unwrap();
        // Energies: 1 · ‖W_V row‖², so 6 comes before 4, and 0 third.
        assert_eq!(rows[..8], values.to_values[48..56]);
        assert_eq!(rows[8..16], values.to_values[32..40]);
        assert_eq!(rows[16..24], values.to_values[..8]);
        assert_eq!(gates.get("conv_up.bias").unwrap()[..3], [0.6, 0.4, 0.0]);
        let tap = |scale: usize, y: usize, x: usize, channel: usize| {
            gates.get(&format!("gates.{scale}.conv_spatial.weight")).unwrap()[(y * 5 + x) * 8 + channel]
        };
        // Value 6 is of the second head, which looks three lines up: beyond the fine kernel, and two lines of the coarse map.
        assert_eq!([tap(0, 2, 2, 0), tap(0, 0, 2, 0), tap(1, 0, 2, 0)], [0.5, 0.0, 0.5]);
        assert_eq!([tap(0, 2, 4, 2), tap(1, 2, 3, 2), tap(1, 2, 2, 2)], [0.75, 0.75, 0.25]);
    }
}
