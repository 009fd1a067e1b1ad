//! Register tiles in AVX-512 and AVX2.
//!
//! Vectors are read and written as arrays, which are transmuted: the load and store intrinsics check their pointers in
//! builds with debug assertions, and a whole test run would be spent there.

use std::arch::x86_64::{
    __m256, __m512, _mm256_add_ps, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm512_add_ps, _mm512_fmadd_ps,
    _mm512_set1_ps, _mm512_setzero_ps,
};
use std::mem::transmute;

use super::{Epilogue, PANEL, PackedView, Rows, Sums, TILE_ROWS, Tile, run_at, tiles};

/// # Safety
/// The machine must have the instructions.
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) unsafe fn multiply_avx512(
    rows: Rows<'_>,
    count: usize,
    weights: PackedView<'_>,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
    out_stride: usize,
) {
    // SAFETY: this function is compiled for them.
    unsafe { tiles::<Avx512>(rows, count, weights, epilogue, out, out_stride) }
}

/// # Safety
/// The machine must have the instructions.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply_avx2(
    rows: Rows<'_>,
    count: usize,
    weights: PackedView<'_>,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
    out_stride: usize,
) {
    // SAFETY: this function is compiled for them.
    unsafe { tiles::<Avx2>(rows, count, weights, epilogue, out, out_stride) }
}

/// Sixteen accumulators: two vectors a row, which covers the latency of a multiply-add.
struct Avx512;

impl Tile for Avx512 {
    #[inline(always)]
    unsafe fn sum<const COLUMNS: usize>(rows: &Rows<'_>, starts: [usize; TILE_ROWS], panel: &[f32], sums: &mut Sums) {
        // SAFETY: the caller is compiled for AVX-512F; the arrays have a vector's size.
        unsafe {
            let mut left = [_mm512_setzero_ps(); TILE_ROWS];
            let mut right = [_mm512_setzero_ps(); TILE_ROWS];
            for tap in 0..rows.taps.len() {
                let (x, weights) = run_at::<COLUMNS>(rows, starts, tap, panel);
                let mut i = 0;
                while i < rows.run {
                    let (halves, _) = weights[i].as_chunks::<16>();
                    let w0 = transmute::<[f32; 16], __m512>(halves[0]);
                    let w1 = transmute::<[f32; 16], __m512>(halves[halves.len() - 1]);
                    for r in 0..TILE_ROWS {
                        let x = _mm512_set1_ps(x[r][i]);
                        left[r] = _mm512_fmadd_ps(x, w0, left[r]);
                        if COLUMNS == PANEL {
                            right[r] = _mm512_fmadd_ps(x, w1, right[r]);
                        }
                    }
                    i += 1;
                }
            }
            for r in 0..TILE_ROWS {
                let (halves, _) = sums[r].as_chunks_mut::<16>();
                halves[0] = transmute::<__m512, [f32; 16]>(left[r]);
                if COLUMNS == PANEL {
                    halves[1] = transmute::<__m512, [f32; 16]>(right[r]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn add(sums: &mut [f32; 16], added: &[f32; 16]) {
        // SAFETY: the caller is compiled for AVX-512F; the arrays have a vector's size.
        unsafe {
            let sum = _mm512_add_ps(transmute::<[f32; 16], __m512>(*sums), transmute::<[f32; 16], __m512>(*added));
            *sums = transmute::<__m512, [f32; 16]>(sum);
        }
    }
}

/// Four rows by sixteen columns at a time: eight accumulators.
struct Avx2;

impl Tile for Avx2 {
    #[inline(always)]
    unsafe fn sum<const COLUMNS: usize>(rows: &Rows<'_>, starts: [usize; TILE_ROWS], panel: &[f32], sums: &mut Sums) {
        const ROWS: usize = 4;
        for first_row in [0, ROWS] {
            for half in 0..COLUMNS / 16 {
                // SAFETY: the caller is compiled for AVX2 and FMA; the arrays have a vector's size.
                unsafe {
                    let mut left = [_mm256_setzero_ps(); ROWS];
                    let mut right = [_mm256_setzero_ps(); ROWS];
                    for tap in 0..rows.taps.len() {
                        let (x, weights) = run_at::<COLUMNS>(rows, starts, tap, panel);
                        let x = [x[first_row], x[first_row + 1], x[first_row + 2], x[first_row + 3]];
                        let mut i = 0;
                        while i < rows.run {
                            let (quarters, _) = weights[i].as_chunks::<8>();
                            let w0 = transmute::<[f32; 8], __m256>(quarters[2 * half]);
                            let w1 = transmute::<[f32; 8], __m256>(quarters[2 * half + 1]);
                            for r in 0..ROWS {
                                let x = _mm256_set1_ps(x[r][i]);
                                left[r] = _mm256_fmadd_ps(x, w0, left[r]);
                                right[r] = _mm256_fmadd_ps(x, w1, right[r]);
                            }
                            i += 1;
                        }
                    }
                    for r in 0..ROWS {
                        let (quarters, _) = sums[first_row + r].as_chunks_mut::<8>();
                        quarters[2 * half] = transmute::<__m256, [f32; 8]>(left[r]);
                        quarters[2 * half + 1] = transmute::<__m256, [f32; 8]>(right[r]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn add(sums: &mut [f32; 16], added: &[f32; 16]) {
        let (sums, _) = sums.as_chunks_mut::<8>();
        let (added, _) = added.as_chunks::<8>();
        for (sums, added) in sums.iter_mut().zip(added) {
            // SAFETY: the caller is compiled for AVX2; the arrays have a vector's size.
            unsafe {
                let sum = _mm256_add_ps(transmute::<[f32; 8], __m256>(*sums), transmute::<[f32; 8], __m256>(*added));
                *sums = transmute::<__m256, [f32; 8]>(sum);
            }
        }
    }
}
