//! The matrix product under every convolution, linear and attention: rows of activations times packed weights.
//!
//! An output element is one chain of fused multiply-adds over k from 0 up, kept in a register. So its bits depend
//! neither on which rows are computed together nor on the vector width.

use super::simd::Level;

/// Rows that one register tile computes together.
const TILE_ROWS: usize = 8;
/// Columns of a panel: two vectors of AVX-512.
const PANEL: usize = 32;
/// Columns of the last panel where no more are left.
const HALF_PANEL: usize = 16;

/// A matrix [k, n] in the order in which the product reads it: panels of 32 columns (the last of 16 where that is
/// enough), each [k, columns], padded with zeros.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    pub(super) k: usize,
    pub(super) n: usize,
    panels: Vec<f32>,
}

impl Packed {
    /// Packs the matrix whose element (k, n) is `element(k, n)`.
    pub(super) fn new(k: usize, n: usize, element: impl Fn(usize, usize) -> f32) -> Self {
        let mut panels = vec![0.0; packed_len(k, n)];
        let mut rest = panels.as_mut_slice();
        for first in (0..n).step_by(PANEL) {
            let width = panel_width(n - first);
            let (panel, after) = rest.split_at_mut(k * width);
            for (row, values) in panel.chunks_exact_mut(width).enumerate() {
                for (column, value) in values.iter_mut().enumerate().take(n - first) {
                    *value = element(row, first + column);
                }
            }
            rest = after;
        }
        Self { k, n, panels }
    }

    pub(super) fn view(&self) -> PackedView<'_> {
        PackedView { k: self.k, n: self.n, panels: &self.panels }
    }
}

/// Elements that a packed matrix [k, n] takes.
pub(super) fn packed_len(k: usize, n: usize) -> usize {
    k * (n / PANEL * PANEL + if n % PANEL == 0 { 0 } else { panel_width(n % PANEL) })
}

fn panel_width(columns: usize) -> usize {
    if columns > HALF_PANEL { PANEL } else { HALF_PANEL }
}

/// Packs Kᵀ of one attention head, [d, keys], from rows of `stride` elements: `keys[i·stride + j]` is key i's channel j.
pub(super) fn pack_transposed(keys: &[f32], stride: usize, d: usize, n: usize, panels: &mut [f32]) {
    debug_assert_eq!(panels.len(), packed_len(d, n));
    let mut rest = panels;
    for first in (0..n).step_by(PANEL) {
        let width = panel_width(n - first);
        let (panel, after) = rest.split_at_mut(d * width);
        panel.fill(0.0);
        for column in 0..width.min(n - first) {
            let key = &keys[(first + column) * stride..][..d];
            for (row, value) in key.iter().enumerate() {
                panel[row * width + column] = *value;
            }
        }
        rest = after;
    }
}

/// Packs V of one attention head, [keys, d], from rows of `stride` elements.
pub(super) fn pack_rows(values: &[f32], stride: usize, k: usize, d: usize, panels: &mut [f32]) {
    debug_assert_eq!(panels.len(), packed_len(k, d));
    let mut rest = panels;
    for first in (0..d).step_by(PANEL) {
        let width = panel_width(d - first);
        let used = width.min(d - first);
        let (panel, after) = rest.split_at_mut(k * width);
        for (row, packed) in panel.chunks_exact_mut(width).enumerate() {
            packed[..used].copy_from_slice(&values[row * stride + first..][..used]);
            packed[used..].fill(0.0);
        }
        rest = after;
    }
}

/// A packed matrix that lies elsewhere.
#[derive(Clone, Copy)]
pub(super) struct PackedView<'a> {
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) panels: &'a [f32],
}

/// The left matrix, [rows, k], read in place. Row r starts at element `r / width · line + r % width · pixel`; its k
/// elements are `taps.len()` runs of `run`, each at its tap's offset from there.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) elements: &'a [f32],
    pub(super) width: usize,
    pub(super) line: usize,
    pub(super) pixel: usize,
    pub(super) taps: &'a [usize],
    pub(super) run: usize,
}

impl<'a> Rows<'a> {
    /// Rows of `k` elements, `stride` apart.
    pub(super) fn plain(elements: &'a [f32], stride: usize, k: usize) -> Self {
        Self { elements, width: usize::MAX, line: 0, pixel: stride, taps: &[0], run: k }
    }

    /// Where the rows of a tile start. A tile that is not full has its last row several times over.
    #[inline(always)]
    fn starts(&self, first: usize, used: usize) -> [*const f32; TILE_ROWS] {
        let (mut line, mut column) = (first / self.width, first % self.width);
        let mut row = 0;
        std::array::from_fn(|i| {
            if i > row && i < used {
                row = i;
                column += 1;
                if column == self.width {
                    (line, column) = (line + 1, 0);
                }
            }
            self.elements.as_ptr().wrapping_add(line * self.line + column * self.pixel)
        })
    }
}

/// What is added to a row of the product before it is stored: y = (x·w + bias + residual) / divisor.
#[derive(Clone, Copy, Default)]
pub(super) struct Epilogue<'a> {
    /// [n].
    pub(super) bias: Option<&'a [f32]>,
    /// [n], after the bias: what one sample adds to all its rows.
    pub(super) shift: Option<&'a [f32]>,
    /// [rows, n], dense.
    pub(super) residual: Option<&'a [f32]>,
    /// 1 unless given.
    pub(super) divisor: Option<f32>,
}

/// Writes `count` rows of the product to `out`, `out_stride` elements apart.
pub(super) fn multiply(
    rows: Rows<'_>,
    count: usize,
    weights: PackedView<'_>,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
    out_stride: usize,
) {
    multiply_at(Level::detect(), rows, count, weights, epilogue, out, out_stride);
}

fn multiply_at(
    level: Level,
    rows: Rows<'_>,
    count: usize,
    weights: PackedView<'_>,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
    out_stride: usize,
) {
    if count == 0 || weights.n == 0 {
        return;
    }
    // What the unchecked reads of the tiles rely on. Starts grow along a line and from line to line.
    let widest = rows.width.min(count) - 1;
    let last_line = (count - 1) / rows.width * rows.line;
    let furthest_tap = rows.taps.iter().copied().max().unwrap_or(0);
    let end = last_line + widest * rows.pixel + furthest_tap + rows.run;
    assert!(end <= rows.elements.len(), "rows end at {end} of {}", rows.elements.len());
    assert_eq!(rows.taps.len() * rows.run, weights.k);
    assert_eq!(weights.panels.len(), packed_len(weights.k, weights.n));
    assert!(out_stride >= weights.n && out.len() >= (count - 1) * out_stride + weights.n);
    for per_column in [epilogue.bias, epilogue.shift].into_iter().flatten() {
        assert_eq!(per_column.len(), weights.n);
    }
    if let Some(residual) = epilogue.residual {
        assert_eq!(residual.len(), count * weights.n);
    }

    match level {
        // SAFETY: `Level::detect` found the instructions; the bounds were checked above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { x86::multiply_avx512(rows, count, weights, epilogue, out, out_stride) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::multiply_avx2(rows, count, weights, epilogue, out, out_stride) },
        // SAFETY: the bounds were checked above.
        Level::Portable => unsafe { tiles::<Portable>(rows, count, weights, epilogue, out, out_stride) },
    }
}

/// A register tile: 8 rows times one panel.
trait Tile {
    /// `sums[r][c] = Σ_k starts[r][tap(k)] · panel[k][c]` for the panel's `COLUMNS` columns.
    ///
    /// # Safety
    /// Every `starts[r] + tap + 0..run` must be readable, and `panel` must have `taps.len() · run · COLUMNS` elements.
    unsafe fn sum<const COLUMNS: usize>(
        starts: [*const f32; TILE_ROWS],
        taps: &[usize],
        run: usize,
        panel: *const f32,
        sums: &mut [[f32; PANEL]; TILE_ROWS],
    );
}

/// All tiles of a product.
///
/// # Safety
/// The bounds of `multiply_at`, and the instructions of `T`.
#[inline(always)]
unsafe fn tiles<T: Tile>(
    rows: Rows<'_>,
    count: usize,
    weights: PackedView<'_>,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
    out_stride: usize,
) {
    let mut sums = [[0.0; PANEL]; TILE_ROWS];
    let mut panels = weights.panels;
    for first_column in (0..weights.n).step_by(PANEL) {
        let columns = (weights.n - first_column).min(PANEL);
        let (panel, after) = panels.split_at(weights.k * panel_width(columns));
        panels = after;
        for first_row in (0..count).step_by(TILE_ROWS) {
            let used = (count - first_row).min(TILE_ROWS);
            let starts = rows.starts(first_row, used);
            // SAFETY: starts and panel are as `sum` wants them.
            unsafe {
                if columns > HALF_PANEL {
                    T::sum::<PANEL>(starts, rows.taps, rows.run, panel.as_ptr(), &mut sums);
                } else {
                    T::sum::<HALF_PANEL>(starts, rows.taps, rows.run, panel.as_ptr(), &mut sums);
                }
            }
            for (i, sums) in sums.iter_mut().enumerate().take(used) {
                let row = first_row + i;
                let sums = &mut sums[..columns];
                for per_column in [epilogue.bias, epilogue.shift].into_iter().flatten() {
                    for (sum, value) in sums.iter_mut().zip(&per_column[first_column..]) {
                        *sum += value;
                    }
                }
                if let Some(residual) = epilogue.residual {
                    for (sum, value) in sums.iter_mut().zip(&residual[row * weights.n + first_column..]) {
                        *sum += value;
                    }
                }
                if let Some(divisor) = epilogue.divisor {
                    for sum in sums.iter_mut() {
                        *sum /= divisor;
                    }
                }
                out[row * out_stride + first_column..][..columns].copy_from_slice(sums);
            }
        }
    }
}

/// Without vector instructions that are certain to be there.
struct Portable;

impl Tile for Portable {
    unsafe fn sum<const COLUMNS: usize>(
        starts: [*const f32; TILE_ROWS],
        taps: &[usize],
        run: usize,
        panel: *const f32,
        sums: &mut [[f32; PANEL]; TILE_ROWS],
    ) {
        for (start, sums) in starts.into_iter().zip(sums) {
            let mut chains = [0.0_f32; COLUMNS];
            let mut k = 0;
            for tap in taps {
                for i in 0..run {
                    // SAFETY: `sum`'s contract.
                    let (x, weights) = unsafe { (*start.add(tap + i), &*panel.add(k * COLUMNS).cast::<[f32; COLUMNS]>()) };
                    for (chain, w) in chains.iter_mut().zip(weights) {
                        *chain = x.mul_add(*w, *chain);
                    }
                    k += 1;
                }
            }
            sums[..COLUMNS].copy_from_slice(&chains);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{Epilogue, PANEL, PackedView, Rows, TILE_ROWS, Tile, tiles};

    /// # Safety
    /// The bounds of `multiply_at`.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub(super) unsafe fn multiply_avx512(
        rows: Rows<'_>,
        count: usize,
        weights: PackedView<'_>,
        epilogue: Epilogue<'_>,
        out: &mut [f32],
        out_stride: usize,
    ) {
        // SAFETY: passed on.
        unsafe { tiles::<Avx512>(rows, count, weights, epilogue, out, out_stride) }
    }

    /// # Safety
    /// The bounds of `multiply_at`.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn multiply_avx2(
        rows: Rows<'_>,
        count: usize,
        weights: PackedView<'_>,
        epilogue: Epilogue<'_>,
        out: &mut [f32],
        out_stride: usize,
    ) {
        // SAFETY: passed on.
        unsafe { tiles::<Avx2>(rows, count, weights, epilogue, out, out_stride) }
    }

    /// Sixteen accumulators: two vectors a row, which covers the latency of a multiply-add.
    struct Avx512;

    impl Tile for Avx512 {
        #[inline(always)]
        unsafe fn sum<const COLUMNS: usize>(
            starts: [*const f32; TILE_ROWS],
            taps: &[usize],
            run: usize,
            panel: *const f32,
            sums: &mut [[f32; PANEL]; TILE_ROWS],
        ) {
            // SAFETY: `sum`'s contract; the caller is compiled for AVX-512F.
            unsafe {
                let mut left = [_mm512_setzero_ps(); TILE_ROWS];
                let mut right = [_mm512_setzero_ps(); TILE_ROWS];
                let mut weights = panel;
                for tap in taps {
                    let x = starts.map(|start| start.add(*tap));
                    let mut i = 0;
                    while i < run {
                        let w0 = _mm512_loadu_ps(weights);
                        let w1 = if COLUMNS == PANEL { _mm512_loadu_ps(weights.add(16)) } else { w0 };
                        for r in 0..TILE_ROWS {
                            let x = _mm512_set1_ps(x[r].add(i).read_unaligned());
                            left[r] = _mm512_fmadd_ps(x, w0, left[r]);
                            if COLUMNS == PANEL {
                                right[r] = _mm512_fmadd_ps(x, w1, right[r]);
                            }
                        }
                        weights = weights.add(COLUMNS);
                        i += 1;
                    }
                }
                for r in 0..TILE_ROWS {
                    _mm512_storeu_ps(sums[r].as_mut_ptr(), left[r]);
                    if COLUMNS == PANEL {
                        _mm512_storeu_ps(sums[r].as_mut_ptr().add(16), right[r]);
                    }
                }
            }
        }
    }

    /// Four rows by sixteen columns at a time: eight accumulators.
    struct Avx2;

    impl Tile for Avx2 {
        #[inline(always)]
        unsafe fn sum<const COLUMNS: usize>(
            starts: [*const f32; TILE_ROWS],
            taps: &[usize],
            run: usize,
            panel: *const f32,
            sums: &mut [[f32; PANEL]; TILE_ROWS],
        ) {
            const ROWS: usize = 4;
            for first_row in (0..TILE_ROWS).step_by(ROWS) {
                for first_column in (0..COLUMNS).step_by(16) {
                    // SAFETY: `sum`'s contract; the caller is compiled for AVX2 and FMA.
                    unsafe {
                        let mut left = [_mm256_setzero_ps(); ROWS];
                        let mut right = [_mm256_setzero_ps(); ROWS];
                        let mut weights = panel.add(first_column);
                        for tap in taps {
                            let x: [*const f32; ROWS] = std::array::from_fn(|r| starts[first_row + r].add(*tap));
                            let mut i = 0;
                            while i < run {
                                let w0 = _mm256_loadu_ps(weights);
                                let w1 = _mm256_loadu_ps(weights.add(8));
                                for r in 0..ROWS {
                                    let x = _mm256_set1_ps(x[r].add(i).read_unaligned());
                                    left[r] = _mm256_fmadd_ps(x, w0, left[r]);
                                    right[r] = _mm256_fmadd_ps(x, w1, right[r]);
                                }
                                weights = weights.add(COLUMNS);
                                i += 1;
                            }
                        }
                        for r in 0..ROWS {
                            let sums = sums[first_row + r].as_mut_ptr().add(first_column);
                            _mm256_storeu_ps(sums, left[r]);
                            _mm256_storeu_ps(sums.add(8), right[r]);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_gives_the_bits_of_one_chain() {
        let value = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0;
        for (count, k, n) in [(1, 3, 1), (7, 5, 17), (19, 33, 70), (8, 64, 32)] {
            let x: Vec<f32> = (0..count * k).map(value).collect();
            let weights = Packed::new(k, n, |k, n| value(k * 91 + n * 7 + 3));
            let bias: Vec<f32> = (0..n).map(|n| value(n + 11)).collect();
            let epilogue = Epilogue { bias: Some(&bias), ..Epilogue::default() };
            for level in Level::available() {
                let mut out = vec![0.0; count * n];
                multiply_at(*level, Rows::plain(&x, k, k), count, weights.view(), epilogue, &mut out, n);
                for (i, y) in out.iter().enumerate() {
                    let (row, column) = (i / n, i % n);
                    let chain = (0..k).fold(0.0_f32, |sum, k_| x[row * k + k_].mul_add(value(k_ * 91 + column * 7 + 3), sum));
                    assert_eq!(y.to_bits(), (chain + bias[column]).to_bits(), "{level:?} {count}×{k}×{n} at {row},{column}");
                }
            }
        }
    }
}
