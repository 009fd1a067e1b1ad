use candle_core::{Result, bail};
use rayon::prelude::*;

use super::attention::{Heads, Projected, QUERIES, exponentiate};
use super::product::{Aligned, Epilogue, PackedView, Rows, multiply, pack_transposed, packed_len};
use super::slices::with_slices;

/// softmax(Q Kᵀ / √d) of one head of one sample. It is computed a few rows at a time and never held.
pub(crate) struct AttentionMap<'a> {
    /// From the head's first channel on.
    query: &'a [f32],
    query_stride: usize,
    queries: usize,
    packed_keys: PackedView<'a>,
}

impl AttentionMap<'_> {
    /// Calls `visit` with every query's number and its probabilities, one a key, in order.
    pub(crate) fn for_each_row(&self, mut visit: impl FnMut(usize, &[f32])) {
        let (dim, keys) = (self.packed_keys.k, self.packed_keys.n);
        let scale = 1.0 / (dim as f32).sqrt();
        let (mut scores, mut inverses) = (Aligned::zeros(QUERIES * keys), [0.0; QUERIES]);
        for first in (0..self.queries).step_by(QUERIES) {
            let count = QUERIES.min(self.queries - first);
            let scores = &mut scores.as_mut()[..count * keys];
            let rows = Rows::plain(&self.query[first * self.query_stride..], self.query_stride, dim);
            multiply(rows, count, self.packed_keys, Epilogue::default(), scores, keys);
            exponentiate(scores, keys, scale, &mut inverses);
            for (i, (row, inverse)) in scores.chunks_exact_mut(keys).zip(&inverses).enumerate() {
                row.iter_mut().for_each(|p| *p *= inverse);
                visit(first + i, row);
            }
        }
    }
}

/// What `each` makes of every attention map, by sample, then by head. Maps are visited in parallel, each by one thread.
pub(in super::super::super) fn attention_maps<T: Send>(
    query: Projected<'_>,
    key: Projected<'_>,
    heads: Heads,
    each: impl Fn(&AttentionMap<'_>) -> T + Sync,
) -> Result<Vec<T>> {
    let inner = heads.count * heads.dim;
    let batch = query.tensor.dim(0)?;
    let (queries, query_stride) = query.length(batch, inner)?;
    let (keys, key_stride) = key.length(batch, inner)?;
    if keys == 0 {
        bail!("attention needs one key at least");
    }
    with_slices([query.tensor, key.tensor], |[q, k]| {
        let map = |i: usize| {
            let (sample, channel) = (i / heads.count, i % heads.count * heads.dim);
            let k = &k[sample * keys * key_stride + key.offset + channel..];
            let mut panels = Aligned::zeros(packed_len(heads.dim, keys));
            pack_transposed(k, key_stride, heads.dim, keys, panels.as_mut());
            let packed_keys = PackedView { k: heads.dim, n: keys, panels: panels.as_ref() };
            let query = &q[sample * queries * query_stride + query.offset + channel..];
            each(&AttentionMap { query, query_stride, queries, packed_keys })
        };
        Ok((0..batch * heads.count).into_par_iter().map(map).collect())
    })
}
