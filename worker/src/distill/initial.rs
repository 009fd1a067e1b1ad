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

fn fill(values: &mut [f32], bound: f32, rng: &mut impl rand::Rng) {
    use rand::RngExt;
    values.iter_mut().for_each(|value| *value = rng.random_range(-bound..bound));
}
