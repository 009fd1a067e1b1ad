use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::activation::exp;
use super::product::{Aligned, Epilogue, PackedView, Rows, multiply, pack_rows, pack_transposed, packed_len};
use super::simd::for_each_level;
use super::slices::{tensor, with_slices};

/// Queries that one thread attends with at a time: their scores are the only ones ever in memory.
pub(super) const QUERIES: usize = 32;

/// Partial maxima and sums of a row of scores.
const LANES: usize = 16;

/// How channels are split.
#[derive(Debug, Clone, Copy)]
pub(in super::super::super) struct Heads {
    /// Heads.
    pub(in super::super::super) count: usize,
    /// Channels of one.
    pub(in super::super::super) dim: usize,
}

/// Queries, keys or values within a tensor whose last dimension may hold more than them.
#[derive(Clone, Copy)]
pub(in super::super::super) struct Projected<'a> {
    /// [B, .., channels].
    pub(in super::super::super) tensor: &'a Tensor,
    /// Their first channel.
    pub(in super::super::super) offset: usize,
}

impl Projected<'_> {
    /// Positions of one sample, and the numbers from one to the next.
    pub(super) fn length(self, batch: usize, inner: usize) -> Result<(usize, usize)> {
        match self.tensor.dims() {
            [b, middle @ .., channels] if *b == batch && channels - self.offset.min(*channels) >= inner => {
                Ok((middle.iter().product(), *channels))
            }
            other => bail!("attention over {inner} channels of {batch} samples cannot take {other:?}"),
        }
    }
}

/// softmax(Q Kᵀ / √d + bias) V for each head: [B, .., heads · d], the leading dimensions those of the queries. The bias is
/// one number a key, [B, keys].
pub(in super::super) fn attention(
    query: Projected<'_>,
    key: Projected<'_>,
    value: Projected<'_>,
    heads: Heads,
    bias: Option<&[f32]>,
) -> Result<Tensor> {
    let inner = heads.count * heads.dim;
    let batch = query.tensor.dim(0)?;
    let (queries, query_stride) = query.length(batch, inner)?;
    let (keys, key_stride) = key.length(batch, inner)?;
    let (values, value_stride) = value.length(batch, inner)?;
    if keys != values || keys == 0 {
        bail!("attention needs as many values as keys, and one at least: {keys} keys, {values} values");
    }
    if let Some(bias) = bias
        && bias.len() != batch * keys
    {
        bail!("attention to {keys} keys of {batch} samples cannot take {} biases", bias.len());
    }
    let mut shape = query.tensor.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = inner;
    }

    let (key_len, value_len) = (packed_len(heads.dim, keys), packed_len(keys, heads.dim));
    let mut packed_keys = Aligned::zeros(batch * heads.count * key_len);
    let mut packed_values = Aligned::zeros(batch * heads.count * value_len);
    let mut out = vec![0.0; batch * queries * inner];
    let scale = 1.0 / (heads.dim as f32).sqrt();
    with_slices([query.tensor, key.tensor, value.tensor], |[q, k, v]| {
        let keys_of_heads = packed_keys.as_mut().par_chunks_mut(key_len);
        let values_of_heads = packed_values.as_mut().par_chunks_mut(value_len);
        keys_of_heads.zip(values_of_heads).enumerate().for_each(|(i, (packed_keys, packed_values))| {
            let (sample, head) = (i / heads.count, i % heads.count * heads.dim);
            let k = &k[sample * keys * key_stride + key.offset + head..];
            let v = &v[sample * keys * value_stride + value.offset + head..];
            pack_transposed(k, key_stride, heads.dim, keys, packed_keys);
            pack_rows(v, value_stride, keys, heads.dim, packed_values);
        });
        let units = out.par_chunks_mut((queries * inner).max(1)).enumerate().flat_map(|(sample, out)| {
            out.par_chunks_mut(QUERIES * inner).enumerate().map(move |(unit, out)| (sample, unit * QUERIES, out))
        });
        units.for_each_init(
            || (Aligned::zeros(QUERIES * keys), [0.0; QUERIES]),
            |(scores, inverses), (sample, first, out)| {
                let count = out.len() / inner;
                let scores = &mut scores.as_mut()[..count * keys];
                for head in 0..heads.count {
                    let at = sample * heads.count + head;
                    let channel = head * heads.dim;
                    let panels = &packed_keys.as_ref()[at * key_len..][..key_len];
                    let packed_keys = PackedView { k: heads.dim, n: keys, panels };
                    let q = &q[(sample * queries + first) * query_stride + query.offset + channel..];
                    let rows = Rows::plain(q, query_stride, heads.dim);
                    multiply(rows, count, packed_keys, Epilogue::default(), scores, keys);
                    if let Some(bias) = bias {
                        add_to_rows(scores, &bias[sample * keys..][..keys], 1.0 / scale);
                    }
                    exponentiate(scores, keys, scale, inverses);
                    let panels = &packed_values.as_ref()[at * value_len..][..value_len];
                    let packed_values = PackedView { k: keys, n: heads.dim, panels };
                    let rows = Rows::plain(scores, keys, keys);
                    multiply(rows, count, packed_values, Epilogue::default(), &mut out[channel..], inner);
                    for (row, inverse) in out.chunks_exact_mut(inner).zip(&*inverses) {
                        row[channel..][..heads.dim].iter_mut().for_each(|y| *y *= inverse);
                    }
                }
            },
        );
        Ok(())
    })?;
    tensor(out, &shape)
}

/// Adds `factor · bias` to every row of scores.
fn add_to_rows(scores: &mut [f32], bias: &[f32], factor: f32) {
    for row in scores.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(score, bias)| *score = bias.mul_add(factor, *score));
    }
}

for_each_level! {
    /// softmax(scale · row) of every row of `keys` scores, but for the division by a row's sum: `inverses` holds one
    /// over it, for the products with the values, which are fewer.
    pub(super) fn exponentiate(scores: &mut [f32], keys: usize, scale: f32, inverses: &mut [f32]) {
        for (row, inverse) in scores.chunks_exact_mut(keys).zip(inverses) {
            let (chunks, rest) = row.as_chunks_mut::<LANES>();
            let mut highest = [f32::NEG_INFINITY; LANES];
            for chunk in &*chunks {
                for (highest, score) in highest.iter_mut().zip(chunk) {
                    *highest = if *score > *highest { *score } else { *highest };
                }
            }
            let highest = highest.iter().chain(&*rest).fold(f32::NEG_INFINITY, |highest, score| highest.max(*score));
            let mut sums = [0.0_f32; LANES];
            for chunk in &mut *chunks {
                for (sum, score) in sums.iter_mut().zip(chunk) {
                    *score = exp((*score - highest) * scale);
                    *sum += *score;
                }
            }
            for (sum, score) in sums.iter_mut().zip(&mut *rest) {
                *score = exp((*score - highest) * scale);
                *sum += *score;
            }
            *inverse = 1.0 / sums.iter().sum::<f32>();
        }
    }
}
