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
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) k: usize,
    pub(super) n: usize,
    panels: Aligned,
}

impl Packed {
    /// Packs the matrix whose element (k, n) is `element(k, n)`.
    pub(super) fn new(k: usize, n: usize, element: impl Fn(usize, usize) -> f32) -> Self {
        let mut panels = Aligned::zeros(packed_len(k, n));
        let mut rest = panels.as_mut();
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
        PackedView { k: self.k, n: self.n, panels: self.panels.as_ref() }
    }

    /// The element (k, n).
    pub(super) fn get(&self, k: usize, n: usize) -> f32 {
        let first = n / PANEL * PANEL;
        self.panels.as_ref()[self.k * first + k * panel_width(self.n - first) + n - first]
    }
}

/// Elements that start at a cache line: vectors that straddle two take twice as long to load.
#[derive(Debug)]
pub(super) struct Aligned {
    elements: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub(super) fn zeros(len: usize) -> Self {
        const LINE: usize = 64;
        let elements = vec![0.0; len + LINE / size_of::<f32>()];
        let start = elements.as_ptr().align_offset(LINE).min(LINE / size_of::<f32>());
        Self { elements, start, len }
    }

    pub(super) fn as_ref(&self) -> &[f32] {
        &self.elements[self.start..][..self.len]
    }

    pub(super) fn as_mut(&mut self) -> &mut [f32] {
        &mut self.elements[self.start..][..self.len]
    }
}

/// Elements that a packed matrix [k, n] takes.
pub(super) fn packed_len(k: usize, n: usize) -> usize {
    k * (n / PANEL * PANEL + if n.is_multiple_of(PANEL) { 0 } else { panel_width(n % PANEL) })
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
    fn starts(&self, first: usize, used: usize) -> [usize; TILE_ROWS] {
        let (mut line, mut column) = (first / self.width, first % self.width);
        let mut starts = [line * self.line + column * self.pixel; TILE_ROWS];
        for (i, start) in starts.iter_mut().enumerate() {
            if (1..used).contains(&i) {
                column += 1;
                if column == self.width {
                    (line, column) = (line + 1, 0);
                }
            }
            *start = line * self.line + column * self.pixel;
        }
        starts
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
        // SAFETY: only levels that this machine has are ever made.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { x86::multiply_avx512(rows, count, weights, epilogue, out, out_stride) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::multiply_avx2(rows, count, weights, epilogue, out, out_stride) },
        // SAFETY: it needs nothing.
        Level::Portable => unsafe { tiles::<Portable>(rows, count, weights, epilogue, out, out_stride) },
    }
}

/// The sums of one register tile: 8 rows times one panel.
type Sums = [[f32; PANEL]; TILE_ROWS];

/// How a register tile is computed.
trait Tile {
    /// `sums[r][c] = Σ_k x_r[k] · panel[k][c]` for the panel's `COLUMNS` columns.
    ///
    /// # Safety
    /// The caller must be compiled for the instructions that are used.
    unsafe fn sum<const COLUMNS: usize>(rows: &Rows<'_>, starts: [usize; TILE_ROWS], panel: &[f32], sums: &mut Sums);

    /// `sums += added`.
    ///
    /// # Safety
    /// As for `sum`.
    unsafe fn add(sums: &mut [f32; HALF_PANEL], added: &[f32; HALF_PANEL]);
}

/// All tiles of a product.
///
/// # Safety
/// The caller must be compiled for the instructions of `T`.
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
            // SAFETY: passed on.
            unsafe {
                if columns > HALF_PANEL {
                    T::sum::<PANEL>(&rows, starts, panel, &mut sums);
                } else {
                    T::sum::<HALF_PANEL>(&rows, starts, panel, &mut sums);
                }
            }
            for (i, sums) in sums.iter_mut().enumerate().take(used) {
                let row = first_row + i;
                let residual = epilogue.residual.map(|residual| &residual[row * weights.n..][..weights.n]);
                let y = &mut out[row * out_stride + first_column..][..columns];
                // SAFETY: passed on.
                unsafe {
                    for added in [epilogue.bias, epilogue.shift, residual].into_iter().flatten() {
                        add::<T>(&mut sums[..columns], &added[first_column..][..columns]);
                    }
                }
                if let Some(divisor) = epilogue.divisor {
                    sums.iter_mut().for_each(|sum| *sum /= divisor);
                }
                store(&sums[..columns], y);
            }
        }
    }
}

/// # Safety
/// The caller must be compiled for the instructions of `T`.
#[inline(always)]
unsafe fn add<T: Tile>(sums: &mut [f32], added: &[f32]) {
    let (sums, last_sums) = sums.as_chunks_mut::<HALF_PANEL>();
    let (added, last_added) = added.as_chunks::<HALF_PANEL>();
    for (sums, added) in sums.iter_mut().zip(added) {
        // SAFETY: passed on.
        unsafe { T::add(sums, added) };
    }
    for (sum, added) in last_sums.iter_mut().zip(last_added) {
        *sum += added;
    }
}

/// A copy in vectors; so few elements are not worth a call.
#[inline(always)]
fn store(sums: &[f32], y: &mut [f32]) {
    let (sums, last_sums) = sums.as_chunks::<HALF_PANEL>();
    let (y, last_y) = y.as_chunks_mut::<HALF_PANEL>();
    for (y, sums) in y.iter_mut().zip(sums) {
        *y = *sums;
    }
    for (y, sum) in last_y.iter_mut().zip(last_sums) {
        *y = *sum;
    }
}

/// One run of every row of a tile, and the panel's rows that belong to it.
#[inline(always)]
fn run_at<'a, const COLUMNS: usize>(
    rows: &Rows<'a>,
    starts: [usize; TILE_ROWS],
    tap: usize,
    panel: &'a [f32],
) -> ([&'a [f32]; TILE_ROWS], &'a [[f32; COLUMNS]]) {
    // A plain loop: the compiler must see that all have one length, or it checks every access of the innermost loop.
    let mut x = [&[][..]; TILE_ROWS];
    for r in 0..TILE_ROWS {
        x[r] = &rows.elements[starts[r] + rows.taps[tap]..][..rows.run];
    }
    let weights = &panel.as_chunks::<COLUMNS>().0[tap * rows.run..][..rows.run];
    (x, weights)
}

/// Without vector instructions that are certain to be there.
struct Portable;

impl Tile for Portable {
    unsafe fn sum<const COLUMNS: usize>(rows: &Rows<'_>, starts: [usize; TILE_ROWS], panel: &[f32], sums: &mut Sums) {
        let mut chains = [[0.0_f32; COLUMNS]; TILE_ROWS];
        for tap in 0..rows.taps.len() {
            let (x, weights) = run_at::<COLUMNS>(rows, starts, tap, panel);
            for (i, weights) in weights.iter().enumerate() {
                for (chains, x) in chains.iter_mut().zip(x) {
                    for (chain, w) in chains.iter_mut().zip(weights) {
                        *chain = x[i].mul_add(*w, *chain);
                    }
                }
            }
        }
        for (sums, chains) in sums.iter_mut().zip(chains) {
            sums[..COLUMNS].copy_from_slice(&chains);
        }
    }

    unsafe fn add(sums: &mut [f32; HALF_PANEL], added: &[f32; HALF_PANEL]) {
        for (sum, added) in sums.iter_mut().zip(added) {
            *sum += added;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86;

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
                    let chain =
                        (0..k).fold(0.0_f32, |sum, k_| x[row * k + k_].mul_add(value(k_ * 91 + column * 7 + 3), sum));
                    assert_eq!(
                        y.to_bits(),
                        (chain + bias[column]).to_bits(),
                        "{level:?} {count}×{k}×{n} at {row},{column}"
                    );
                }
            }
        }
    }
}
