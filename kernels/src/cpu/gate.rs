//! The gate: one half of the convolved channels times a function of the other, in f32.

use super::grouped::Extent;
use super::instruction_set::multiversion;
use super::lanes::{Group, LANES};
use crate::shape::Gate;

multiversion! {
    /// `p = a·b·√(d/2)` or `p = a·sigmoid(b)`, over the planes of the halves a and b. For the
    /// sigmoid, `b` is replaced by sigmoid(b), which is all that the gradient needs of it.
    pub(super) fn apply<V>(
        gate: Gate,
        half: usize,
        a: &[Group],
        b: &mut [Group],
        output: &mut [Group],
    ) {
        let groups = a.iter().zip(b).zip(output);
        match gate {
            Gate::Scaled => {
                let factor = (half as f32).sqrt();
                for ((a, b), output) in groups {
                    for lane in 0..LANES {
                        output.0[lane] = a.0[lane] * b.0[lane] * factor;
                    }
                }
            }
            Gate::Sigmoid => {
                for ((a, b), output) in groups {
                    for lane in 0..LANES {
                        b.0[lane] = 1.0 / (1.0 + (-b.0[lane]).exp());
                        output.0[lane] = a.0[lane] * b.0[lane];
                    }
                }
            }
        }
    }
}

multiversion! {
    /// The gradients of the halves a and b, into planes with margins (which stay as they are),
    /// given that of p in planes without margins, and b as [`apply`] left it.
    pub(super) fn gradient<V>(
        gate: Gate,
        half: usize,
        extent: Extent,
        halves: [&[Group]; 2],
        output_gradient: &[Group],
        gradients: [&mut [Group]; 2],
    ) {
        let ([a, b], [a_gradient, b_gradient]) = (halves, gradients);
        let factor = (half as f32).sqrt();
        let width = extent.width;
        let inputs = a.chunks_exact(width).zip(b.chunks_exact(width));
        let inputs = inputs.zip(output_gradient.chunks_exact(width));
        let targets = a_gradient.chunks_exact_mut(extent.row());
        let targets = targets.zip(b_gradient.chunks_exact_mut(extent.row()));
        for (((a, b), gradient), (a_row, b_row)) in inputs.zip(targets) {
            let a_row = &mut a_row[extent.margin..extent.margin + width];
            let b_row = &mut b_row[extent.margin..extent.margin + width];
            let targets = a_row.iter_mut().zip(b_row);
            for (((a, b), gradient), (da, db)) in a.iter().zip(b).zip(gradient).zip(targets) {
                for lane in 0..LANES {
                    let (a, b, g) = (a.0[lane], b.0[lane], gradient.0[lane]);
                    (da.0[lane], db.0[lane]) = match gate {
                        Gate::Scaled => (g * factor * b, g * factor * a),
                        Gate::Sigmoid => (g * b, g * a * (b * (1.0 - b))),
                    };
                }
            }
        }
    }
}
