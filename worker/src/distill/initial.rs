//! The weights that training starts from.

use deltaconv_kernels::{BlockShape, Parameters};
use deltaconv_proto::draw::{self, Purpose};

use crate::task::Error;

/// Initial weights of the block of layer `index`.
///
/// Uniform within ±1/√fan_in, as linears and convolutions are usually started, but for the depthwise kernels: they
/// start as the identity, so that all of the layer's input reaches the gate, with a little noise so that taps differ.
pub(super) fn weights(shape: &BlockShape, seed: u64, index: u32) -> Result<Parameters, Error> {
    drawn(shape, &mut draw::generator(seed, Purpose::Weights, u64::from(index)))
}

/// The same, drawn from any generator.
pub(super) fn drawn(shape: &BlockShape, rng: &mut impl rand::Rng) -> Result<Parameters, Error> {
    let mut parameters = Parameters::zeros(shape);
    for tensor in shape.tensors() {
        let values = parameters.get_mut(&tensor.name)?;
        match tensor.dims.as_slice() {
            [kernel, _, inner] => {
                let noise = 0.1 / *kernel as f32;
                fill(values, noise, rng);
                let centre = (kernel * kernel / 2) * inner;
                values[centre..centre + inner].iter_mut().for_each(|tap| *tap += 1.0);
            }
            [_, inputs] => fill(values, 1.0 / (*inputs as f32).sqrt(), rng),
            _ => {}
        }
    }
    Ok(parameters)
}

/// Has the gates let through what is linear in the input: b is 1 and, beside it, as random as it was, over √(d/2) where the
/// gate multiplies by that. A product of two random projections of numbers around zero follows none of them.
pub(super) fn open(parameters: &mut Parameters) -> Result<(), Error> {
    let shape = parameters.shape().clone();
    let (inner, half) = (shape.inner(), shape.half());
    parameters.get_mut("conv_up.bias")?[half..].fill(1.0);
    let scale = 1.0 / (half as f32).sqrt();
    for name in kernels(&shape) {
        let pixels = parameters.get_mut(&name)?.chunks_exact_mut(inner);
        pixels.flat_map(|tap| &mut tap[half..]).for_each(|value| *value *= scale);
    }
    Ok(())
}

/// Has the depthwise kernels of what passes the gates look further, each another way: from the pixel itself to a window as wide
/// as the kernel, as heads of attention do.
pub(super) fn widen(parameters: &mut Parameters) -> Result<(), Error> {
    let shape = parameters.shape().clone();
    let (inner, half, kernel) = (shape.inner(), shape.half(), shape.kernel_size());
    let centre = (kernel / 2) as f32;
    for name in kernels(&shape) {
        let values = parameters.get_mut(&name)?;
        for channel in 1..half {
            let width = centre * channel as f32 / half as f32;
            let tap = |at: usize| {
                let [y, x] = [at / kernel, at % kernel].map(|i| (i as f32 - centre) / width.max(0.1));
                (-0.5 * (y * y + x * x)).exp()
            };
            let sum: f32 = (0..kernel * kernel).map(tap).sum();
            values[kernel * kernel / 2 * inner + channel] -= 1.0;
            (0..kernel * kernel).for_each(|at| values[at * inner + channel] += tap(at) / sum);
        }
    }
    Ok(())
}

fn kernels(shape: &BlockShape) -> impl Iterator<Item = String> {
    (0..shape.scales().len()).map(|scale| format!("gates.{scale}.conv_spatial.weight"))
}

fn fill(values: &mut [f32], bound: f32, rng: &mut impl rand::Rng) {
    use rand::RngExt;
    values.iter_mut().for_each(|value| *value = rng.random_range(-bound..bound));
}
