use candle_core::{Result, Tensor};
use deltaconv_proto::teacher::TimeEmbedding;

use super::slices::tensor;

/// diffusers' `get_timestep_embedding`: timesteps [B] → [B, channels].
pub(in super::super) fn sinusoids(timesteps: &[f32], time: &TimeEmbedding) -> Result<Tensor> {
    let half = time.channels / 2;
    let mut embedding = Vec::with_capacity(timesteps.len() * time.channels);
    for timestep in timesteps {
        let angles = (0..half).map(|i| {
            // In f32 as there, since sines of angles near 1000 show the rounding.
            let exponent = -(10_000_f64.ln() as f32) * i as f32 / (half as f64 - time.freq_shift) as f32;
            timestep * exponent.exp()
        });
        let (sines, cosines): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
        let (first, second) = if time.flip_sin_to_cos { (cosines, sines) } else { (sines, cosines) };
        embedding.extend(first);
        embedding.extend(second);
        // An odd number of channels ends with a zero.
        embedding.extend(std::iter::repeat_n(0.0, time.channels % 2));
    }
    tensor(embedding, &[timesteps.len(), time.channels])
}
