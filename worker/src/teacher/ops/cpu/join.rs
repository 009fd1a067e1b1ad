use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::slices::{tensor, with_slices};

/// [B, H, W, C₁] and [B, H, W, C₂] → [B, H, W, C₁ + C₂].
pub(in super::super) fn join_channels(first: &Tensor, second: &Tensor) -> Result<Tensor> {
    let (batch, h, w, c1) = first.dims4()?;
    let (batch2, h2, w2, c2) = second.dims4()?;
    if (batch, h, w) != (batch2, h2, w2) {
        bail!("maps of {:?} and {:?} cannot be joined", first.dims(), second.dims());
    }
    let mut joined = vec![0.0; batch * h * w * (c1 + c2)];
    with_slices([first, second], |[first, second]| {
        let line = w.max(1);
        joined.par_chunks_mut(line * (c1 + c2)).enumerate().for_each(|(i, joined)| {
            let first = first[i * line * c1..].chunks_exact(c1);
            let second = second[i * line * c2..].chunks_exact(c2);
            for ((joined, first), second) in joined.chunks_exact_mut(c1 + c2).zip(first).zip(second) {
                joined[..c1].copy_from_slice(first);
                joined[c1..].copy_from_slice(second);
            }
        });
        Ok(())
    })?;
    tensor(joined, &[batch, h, w, c1 + c2])
}
