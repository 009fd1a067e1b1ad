//! AdamW against the equations of the paper in f64, and what a checkpoint must keep.

#![allow(clippy::unwrap_used, reason = "a test stops on errors")]

use deltaconv_kernels::adamw::State;
use deltaconv_kernels::{AdamW, BlockShape, Error, Gate, Parameters};

fn filled(shape: &BlockShape, phase: f32) -> Parameters {
    let mut parameters = Parameters::zeros(shape);
    for (index, value) in parameters.values_mut().iter_mut().enumerate() {
        *value = (index as f32 * 0.7 + phase).sin();
    }
    parameters
}

fn shape(channels: usize) -> BlockShape {
    // Large enough for several pieces of the pass.
    BlockShape::new(channels, 0.5, 7, vec![1.0, 0.5], Gate::Scaled).unwrap()
}

#[test]
fn steps_follow_the_equations() {
    let shape = shape(64);
    let optimiser = AdamW { clip_norm: Some(5.0), ema_decay: 0.9, ..AdamW::default() };
    let (lr, lambda) = (1e-2, optimiser.weight_decay);
    let mut weights = filled(&shape, 0.0);
    let mut state = State::new(&weights, true);
    let wide = |p: &Parameters| p.values().iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let mut expected = wide(&weights);
    let mut average = expected.clone();
    let (mut m, mut v) = (vec![0.0; expected.len()], vec![0.0; expected.len()]);
    for step in 1..=5 {
        let gradients = filled(&shape, step as f32);
        let norm = wide(&gradients).iter().map(|g| g * g).sum::<f64>().sqrt();
        let found = optimiser.step(lr, &mut weights, &gradients, &mut state).unwrap();
        assert!(norm > 5.0 && (found - norm).abs() < 1e-9 * norm);
        for (index, gradient) in wide(&gradients).iter().enumerate() {
            let gradient = gradient * 5.0 / norm;
            m[index] = 0.9 * m[index] + 0.1 * gradient;
            v[index] = 0.999 * v[index] + 0.001 * gradient * gradient;
            let m_hat = m[index] / (1.0 - 0.9f64.powi(step));
            let v_hat: f64 = v[index] / (1.0 - 0.999f64.powi(step));
            expected[index] *= 1.0 - lr * lambda;
            expected[index] -= lr * m_hat / (v_hat.sqrt() + 1e-8);
            average[index] = 0.9 * average[index] + 0.1 * expected[index];
        }
    }
    assert_eq!(state.step, 5);
    let near = |ours: &Parameters, theirs: &[f64]| wide(ours).iter().zip(theirs).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(near(&weights, &expected));
    assert!(near(state.ema.as_ref().unwrap(), &average));
}

#[test]
fn a_restored_state_goes_on_exactly() {
    let shape = shape(64);
    let optimiser = AdamW { clip_norm: Some(1.0), ..AdamW::default() };
    let run = |weights: &mut Parameters, state: &mut State, steps: std::ops::Range<i32>| {
        for step in steps {
            optimiser.step(1e-3, weights, &filled(&shape, step as f32), state).unwrap();
        }
    };
    let mut weights = filled(&shape, 0.0);
    let mut state = State::new(&weights, true);
    run(&mut weights, &mut state, 0..3);
    let (mut restored, mut restored_state) = (weights.clone(), state.clone());
    run(&mut weights, &mut state, 3..6);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    pool.install(|| run(&mut restored, &mut restored_state, 3..6));
    assert_eq!(weights, restored);
    assert_eq!(state, restored_state);
}

#[test]
fn nan_gradients_show_and_other_shapes_are_refused() {
    let shape_here = shape(8);
    let optimiser = AdamW { clip_norm: Some(1.0), ..AdamW::default() };
    let mut weights = filled(&shape_here, 0.0);
    let mut state = State::new(&weights, false);
    let mut gradients = weights.zeros_like();
    let other = Parameters::zeros(&shape(16));
    let refused = optimiser.step(1e-3, &mut weights, &other, &mut state);
    assert_eq!(refused, Err(Error::OtherShape("gradients")));
    assert_eq!(state.step, 0);
    gradients.values_mut()[3] = f32::NAN;
    let norm = optimiser.step(1e-3, &mut weights, &gradients, &mut state).unwrap();
    assert!(norm.is_nan() && weights.values()[3].is_nan());
}
