//! A trained block made wider, so that it computes what it did and can learn more.

use deltaconv_kernels::{BlockShape, Gate, Parameters};
use deltaconv_proto::draw::{self, Purpose};

use super::initial;
use crate::task::Error;

/// The block of layer `index` with the inner width of `shape`, which is like its own but for being larger.
///
/// Each half of the gate's channels keeps those that were trained in front and gets new ones behind them: so do the rows of
/// conv_up, the channels of the depthwise kernels, and by scale the columns of conv_out. The new ones are drawn as training
/// starts from them, but for the columns, which are zero: the block computes the same, and its first step gives the columns a
/// gradient. The scaled gate's factor √(d/2) grows with d, which the trained columns make up for.
pub(super) fn widened(block: &Parameters, shape: &BlockShape, seed: u64, index: u32) -> Result<Parameters, Error> {
    let (from, to) = (block.shape().half(), shape.half());
    let mut rng = draw::generator(seed, Purpose::Widening, u64::from(index));
    let mut wide = initial::drawn(shape, &mut rng)?;
    let factor = match shape.gate() {
        Gate::Scaled => (from as f32 / to as f32).sqrt(),
        Gate::Sigmoid => 1.0,
    };
    for (tensor, values) in block.iter() {
        let target = wide.get_mut(&tensor.name)?;
        match tensor.name.as_str() {
            // [d, C] and [d].
            "conv_up.weight" => halves(values, target, (from, to), block.shape().channels()),
            "conv_up.bias" => halves(values, target, (from, to), 1),
            // [C, S·d/2].
            "conv_out.weight" => {
                target.fill(0.0);
                for (of_scale, target) in values.chunks_exact(from).zip(target.chunks_exact_mut(to)) {
                    target.iter_mut().zip(of_scale).for_each(|(target, value)| *target = factor * value);
                }
            }
            // [K, K, d].
            name if name.starts_with("gates.") => {
                for (tap, target) in values.chunks_exact(2 * from).zip(target.chunks_exact_mut(2 * to)) {
                    halves(tap, target, (from, to), 1);
                }
            }
            _ => target.copy_from_slice(values),
        }
    }
    Ok(wide)
}

/// Copies the two halves of `from` rows each to the fronts of those of `to` rows.
fn halves(values: &[f32], target: &mut [f32], (from, to): (usize, usize), row: usize) {
    let halves = values.chunks_exact(from * row).zip(target.chunks_exact_mut(to * row));
    halves.for_each(|(values, target)| target[..values.len()].copy_from_slice(values));
}

#[cfg(test)]
mod tests {
    use deltaconv_kernels::cpu::{self, Target, Workspace};

    use super::*;

    const SIZE: [usize; 3] = [2, 6, 5];

    fn shape(inter_ratio: f64, gate: Gate) -> BlockShape {
        BlockShape::new(16, inter_ratio, 3, vec![1.0, 0.5], gate).expect("a block")
    }

    fn numbers(seed: u64) -> Vec<f32> {
        let mut rng = draw::generator(seed, Purpose::Capture, 0);
        draw::normal(&mut rng, SIZE.iter().product::<usize>() * 16)
    }

    fn computed(block: &Parameters, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        cpu::forward(block.shape(), block, x, SIZE, &mut y, &mut Workspace::default()).expect("computes");
        y
    }

    #[test]
    fn a_widened_block_computes_the_same_and_all_that_is_new_can_learn() {
        for gate in [Gate::Scaled, Gate::Sigmoid] {
            let narrow = initial::weights(&shape(0.5, gate), 1, 3).expect("weights");
            let mut wide = widened(&narrow, &shape(1.0, gate), 1, 3).expect("wider");
            let (x, target) = (numbers(1), numbers(2));
            let (before, after) = (computed(&narrow, &x), computed(&wide, &x));
            let off = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let largest = before.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            assert!(off <= 1e-5 * largest, "off by {off} of {largest}");

            // The new columns learn at once, and what is before them as soon as they are not zero.
            let mut gradients = Parameters::zeros(wide.shape());
            let gradient = |wide: &Parameters, gradients: &mut Parameters| {
                let (shape, target) = (wide.shape(), Target::from(&target[..]));
                cpu::loss_and_gradient(shape, wide, &x, target, SIZE, 1.0, gradients, None, &mut Workspace::default())
                    .expect("computes");
            };
            gradient(&wide, &mut gradients);
            assert!(gradients.get("conv_out.weight").expect("known").iter().all(|gradient| *gradient != 0.0));
            let stepped = wide.values().iter().zip(gradients.values()).map(|(w, g)| w - 0.01 * g).collect::<Vec<_>>();
            wide.values_mut().copy_from_slice(&stepped);
            gradient(&wide, &mut gradients);
            assert!(gradients.get("conv_up.weight").expect("known").iter().all(|gradient| *gradient != 0.0));
        }
    }
}
