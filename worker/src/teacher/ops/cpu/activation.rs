//! Activations, element by element.

use candle_core::{Result, Tensor};
use deltaconv_proto::teacher::Activation;

use super::simd::for_each_level;
use super::slices::{tensor, with_slices};

/// eˣ to 2 ulp, the same bits at every vector width; below −87 the smallest normal numbers instead of less.
///
/// Cephes' reduction and polynomial: eˣ = 2ⁿ eʳ, |r| ≤ ln 2 / 2.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³: adding it leaves the nearest integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // The comparisons keep a NaN.
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.987_569_1e-4_f32;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, coefficient);
    }
    let p = p.mul_add(r * r, r) + 1.0;
    p * f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// The error function to 2e-7 (Abramowitz and Stegun 7.1.26).
#[inline(always)]
fn erf(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / 0.327_591_1_f32.mul_add(a, 1.0);
    let mut p = 1.061_405_4_f32;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = p.mul_add(t, coefficient);
    }
    (1.0 - p * t * exp(-a * a)).copysign(x)
}

/// x · sigmoid(x).
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// x · Φ(x).
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// x · Φ(x), approximated by ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))) = x · sigmoid(2 √(2/π) (…)).
#[inline(always)]
pub(super) fn gelu_tanh(x: f32) -> f32 {
    const SLOPE: f32 = 1.595_769; // 2 √(2/π)
    x / (1.0 + exp(-SLOPE * (x * x * x).mul_add(0.044_715, x)))
}

/// x · tanh(ln(1 + eˣ)), with tanh(ln u) = (u² − 1) / (u² + 1).
#[inline(always)]
pub(super) fn mish(x: f32) -> f32 {
    let e = exp(if x > 20.0 { 20.0 } else { x });
    let n = e * (e + 2.0);
    x * (n / (n + 2.0))
}

for_each_level! {
    /// [`gelu_tanh`] of every element.
    pub(super) fn gelu_tanh_slice(elements: &mut [f32]) {
        elements.iter_mut().for_each(|x| *x = gelu_tanh(*x));
    }
}

for_each_level! {
    /// Applies an activation to every element.
    pub(super) fn activate_slice(activation: Activation, elements: &mut [f32]) {
        match activation {
            Activation::Silu => elements.iter_mut().for_each(|x| *x = silu(*x)),
            Activation::Gelu => elements.iter_mut().for_each(|x| *x = gelu(*x)),
            Activation::Mish => elements.iter_mut().for_each(|x| *x = mish(*x)),
            Activation::Relu => elements.iter_mut().for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x }),
        }
    }
}

/// φ(x) = e^(−x²/2) / √(2π), the derivative of Φ.
#[inline(always)]
fn density(x: f32) -> f32 {
    const FACTOR: f32 = 0.398_942_3; // 1 / √(2π)
    FACTOR * exp(-0.5 * x * x)
}

/// The derivative of [`gelu`]: Φ(x) + x φ(x).
#[inline(always)]
pub(super) fn gelu_derivative(x: f32) -> f32 {
    x.mul_add(density(x), 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)))
}

/// The derivative of [`gelu_tanh`], x · s(u) with u = 2 √(2/π) (x + 0.044715 x³) and s the sigmoid.
#[inline(always)]
pub(super) fn gelu_tanh_derivative(x: f32) -> f32 {
    const SLOPE: f32 = 1.595_769; // 2 √(2/π)
    let s = 1.0 / (1.0 + exp(-SLOPE * (x * x * x).mul_add(0.044_715, x)));
    let du = SLOPE * (x * x).mul_add(3.0 * 0.044_715, 1.0);
    (x * du).mul_add(s * (1.0 - s), s)
}

#[inline(always)]
fn derivative(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Silu => {
            let s = 1.0 / (1.0 + exp(-x));
            s * x.mul_add(1.0 - s, 1.0)
        }
        Activation::Gelu => gelu_derivative(x),
        Activation::Mish => {
            // With t = tanh(ln(1 + eˣ)): t + x (1 − t²) sigmoid(x).
            let e = exp(if x > 20.0 { 20.0 } else { x });
            let n = e * (e + 2.0);
            let t = n / (n + 2.0);
            (x * (1.0 - t * t)).mul_add(e / (1.0 + e), t)
        }
        Activation::Relu => f32::from(u8::from(x > 0.0)),
    }
}

for_each_level! {
    /// Multiplies every gradient of an activation's result by the derivative at `x`.
    pub(super) fn activation_gradient(activation: Activation, x: &[f32], gradient: &mut [f32]) {
        gradient.iter_mut().zip(x).for_each(|(gradient, x)| *gradient *= derivative(activation, *x));
    }
}

/// An activation of a tensor of any shape.
pub(in super::super) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    with_slices([x], |[x_elements]| {
        let mut y = x_elements.to_vec();
        activate_slice(activation, &mut y);
        tensor(y, x.dims())
    })
}

/// [`gelu_tanh`] of a tensor of any shape.
pub(in super::super) fn activate_gelu_tanh(x: &Tensor) -> Result<Tensor> {
    with_slices([x], |[x_elements]| {
        let mut y = x_elements.to_vec();
        gelu_tanh_slice(&mut y);
        tensor(y, x.dims())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_are_those_of_their_functions() {
        let activations = [Activation::Silu, Activation::Gelu, Activation::Mish, Activation::Relu];
        let named = activations.map(|activation| {
            let of = move |x: f32| match activation {
                Activation::Silu => silu(x),
                Activation::Gelu => gelu(x),
                Activation::Mish => mish(x),
                Activation::Relu => x.max(0.0),
            };
            (Box::new(of) as Box<dyn Fn(f32) -> f32>, derivative(activation, 0.75), derivative(activation, -1.5))
        });
        let tanh = (Box::new(gelu_tanh) as Box<_>, gelu_tanh_derivative(0.75), gelu_tanh_derivative(-1.5));
        for (index, (of, right, left)) in named.into_iter().chain([tanh]).enumerate() {
            for (x, found) in [(0.75_f32, right), (-1.5, left)] {
                const STEP: f32 = 1.0 / 64.0;
                // Fourth order, since f32 leaves no room for small steps.
                let near = |steps: f32| f64::from(of(x + steps * STEP));
                let expected = (8.0 * (near(1.0) - near(-1.0)) - (near(2.0) - near(-2.0))) / (12.0 * f64::from(STEP));
                assert!((f64::from(found) - expected).abs() < 3e-5, "{index} at {x}: {found}, not {expected}");
            }
        }
    }

    #[test]
    fn activations_are_those_of_their_definitions() {
        for i in -4000..4000 {
            let x = i as f32 / 200.0;
            let wide = f64::from(x);
            assert!((f64::from(exp(x)) / wide.exp() - 1.0).abs() < 3e-7, "exp({x})");
            assert!((f64::from(silu(x)) - wide / (1.0 + (-wide).exp())).abs() < 2e-6, "silu({x})");
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            assert!((f64::from(gelu_tanh(x)) - 0.5 * wide * (1.0 + inner.tanh())).abs() < 2e-6, "gelu_tanh({x})");
            let mish_wide = wide * wide.exp().ln_1p().tanh();
            assert!((f64::from(mish(x)) - mish_wide).abs() < 2e-6 * wide.abs().max(1.0), "mish({x})");
        }
        // Φ from tables.
        for (x, phi) in
            [(0.0, 0.5), (1.0, 0.841_344_746), (-1.0, 0.158_655_254), (2.5, 0.993_790_335), (-3.0, 0.001_349_898)]
        {
            assert!((f64::from(gelu(x)) - f64::from(x) * phi).abs() < 1e-6, "gelu({x})");
        }
        assert!(silu(f32::NAN).is_nan() && gelu(f32::NAN).is_nan());
        assert!(silu(-200.0).abs() < 1e-30);
    }
}
