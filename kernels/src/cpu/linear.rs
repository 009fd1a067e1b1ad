//! Linears on row-major matrices, on one thread; the samples are what runs in parallel.

use super::product::{Matrix, multiply};

/// `output [rows, outputs] = input [rows, inputs] · weightᵀ`, for `weight` `[outputs, inputs]`.
pub(super) fn apply(input: &[f32], inputs: usize, weight: &[f32], output: &mut [f32]) {
    let outputs = weight.len() / inputs;
    let rows = input.len() / inputs;
    let lhs = Matrix { values: input, row: inputs, column: 1 };
    let rhs = Matrix { values: weight, row: 1, column: inputs };
    multiply([rows, outputs, inputs], lhs, rhs, (None, 1.0), (output, outputs));
}

/// `input_gradient [rows, inputs] = gradient [rows, outputs] · weight`.
pub(super) fn input_gradient(gradient: &[f32], inputs: usize, weight: &[f32], input_gradient: &mut [f32]) {
    let outputs = weight.len() / inputs;
    let rows = gradient.len() / outputs;
    let lhs = Matrix { values: gradient, row: outputs, column: 1 };
    let rhs = Matrix { values: weight, row: inputs, column: 1 };
    multiply([rows, inputs, outputs], lhs, rhs, (None, 1.0), (input_gradient, inputs));
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
    multiply([outputs, inputs, rows], lhs, rhs, (accumulate.then_some(1.0), 1.0), (weight_gradient, inputs));
}
