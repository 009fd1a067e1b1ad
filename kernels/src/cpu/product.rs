//! Products of matrices within slices, on one thread.

/// A matrix within a slice: element (i, j) at `i·row + j·column`.
pub(super) struct Matrix<'a, T> {
    pub(super) values: &'a [T],
    pub(super) row: usize,
    pub(super) column: usize,
}

/// Row-major `target [m, n]`, whose rows begin `stride` apart: `scale · lhs [m, k] · rhs [k, n]`, plus `kept` times what it
/// held where that is given.
pub(super) fn multiply<T: Copy + 'static>(
    [m, n, k]: [usize; 3],
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
    (kept, scale): (Option<T>, T),
    (target, stride): (&mut [T], usize),
) {
    let last =
        |matrix: &Matrix<'_, T>, rows: usize, columns: usize| (rows - 1) * matrix.row + (columns - 1) * matrix.column;
    assert!(m > 0 && n > 0 && k > 0, "shapes without values are refused before");
    assert!(last(&lhs, m, k) < lhs.values.len());
    assert!(last(&rhs, k, n) < rhs.values.len());
    assert!(stride >= n && (m - 1) * stride + n <= target.len());
    // SAFETY: the assertions above put every element of the three matrices within its slice, and
    // `target` is borrowed mutably, so it overlaps neither factor.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            target.as_mut_ptr(),
            1,
            stride as isize,
            kept.is_some(),
            lhs.values.as_ptr(),
            lhs.column as isize,
            lhs.row as isize,
            rhs.values.as_ptr(),
            rhs.column as isize,
            rhs.row as isize,
            kept.unwrap_or(scale),
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
