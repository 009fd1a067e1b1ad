//! Linears on row-major matrices, on one thread; the samples are what runs in parallel.

/// A matrix within a slice: element (i, j) at `i·row + j·column`.
struct Matrix<'a> {
    values: &'a [f32],
    row: usize,
    column: usize,
}

/// `output [rows, outputs] = input [rows, inputs] · weightᵀ`, for `weight` `[outputs, inputs]`.
pub(super) fn apply(input: &[f32], inputs: usize, weight: &[f32], output: &mut [f32]) {
    let outputs = weight.len() / inputs;
    let rows = input.len() / inputs;
    let lhs = Matrix { values: input, row: inputs, column: 1 };
    let rhs = Matrix { values: weight, row: 1, column: inputs };
    multiply([rows, outputs, inputs], lhs, rhs, false, output);
}

/// `input_gradient [rows, inputs] = gradient [rows, outputs] · weight`.
pub(super) fn input_gradient(gradient: &[f32], inputs: usize, weight: &[f32], input_gradient: &mut [f32]) {
    let outputs = weight.len() / inputs;
    let rows = gradient.len() / outputs;
    let lhs = Matrix { values: gradient, row: outputs, column: 1 };
    let rhs = Matrix { values: weight, row: inputs, column: 1 };
    multiply([rows, inputs, outputs], lhs, rhs, false, input_gradient);
}

/// `weight_gradient [outputs, inputs] = gradientᵀ · input`, written or, if `accumulate`, added.
pub(super) fn weight_gradient(
    gradient: &[f32],
    input: &[f32],
    inputs: usize,
    accumulate: bool,
    weight_gradient: &mut [f32],
) {
    let outputs = weight_gradient.len() / inputs;
    let rows = input.len() / inputs;
    let lhs = Matrix { values: gradient, row: 1, column: outputs };
    let rhs = Matrix { values: input, row: inputs, column: 1 };
    multiply([outputs, inputs, rows], lhs, rhs, accumulate, weight_gradient);
}

/// Row-major `target [m, n] = lhs [m, k] · rhs [k, n]`, plus what it held if `accumulate`.
fn multiply([m, n, k]: [usize; 3], lhs: Matrix<'_>, rhs: Matrix<'_>, accumulate: bool, target: &mut [f32]) {
    let last =
        |matrix: &Matrix<'_>, rows: usize, columns: usize| (rows - 1) * matrix.row + (columns - 1) * matrix.column;
    assert!(m > 0 && n > 0 && k > 0, "shapes without values are refused before");
    assert!(last(&lhs, m, k) < lhs.values.len());
    assert!(last(&rhs, k, n) < rhs.values.len());
    assert_eq!(target.len(), m * n);
    // SAFETY: the assertions above put every element of the three matrices within its slice, and
    // `target` is borrowed mutably, so it overlaps neither factor.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            target.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            lhs.values.as_ptr(),
            lhs.column as isize,
            lhs.row as isize,
            rhs.values.as_ptr(),
            rhs.column as isize,
            rhs.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
