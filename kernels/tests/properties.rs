//! Properties of the block over random shapes: against a reference in f64 written as plainly as the
//! equations, for any number of threads, and for input that is not finite.

#![allow(clippy::unwrap_used, reason = "a test stops on errors")]

mod reference;

use deltaconv_kernels::cpu::{Aim, Ridge, Target, Workspace, features, forward, gradient, loss_and_gradient};
use deltaconv_kernels::{BlockShape, Error, Gate, Loss, Parameters};
use proptest::prelude::*;

/// Largest ‖f32 − f64‖ / ‖f64‖ of any tensor.
const TOLERANCE: f64 = 2e-5;

/// A block, the size [B, H, W] of its input, and the seed of its values.
#[derive(Debug, Clone)]
struct Case {
    shape: BlockShape,
    size: [usize; 3],
    seed: u64,
    gated: bool,
}

fn cases() -> impl Strategy<Value = Case> {
    let scales = prop::sample::select(vec![vec![1.0], vec![1.0, 0.5], vec![1.0, 0.5, 1.0 / 3.0]]);
    let gate = prop::sample::select(vec![Gate::Scaled, Gate::Sigmoid]);
    let kernel_size = (0usize..7).prop_map(|half| 2 * half + 1);
    let size = (1usize..4, 3usize..12, 3usize..20);
    (2usize..12, kernel_size, scales, gate, size, any::<u64>(), any::<bool>()).prop_map(
        |(quarter, kernel_size, scales, gate, (batch, height, width), seed, gated)| Case {
            shape: BlockShape::new(4 * quarter, 0.5, kernel_size, scales, gate).unwrap(),
            size: [batch, height, width],
            seed,
            gated,
        },
    )
}

/// Everything that a pass over one case gives.
struct Outcome {
    y: Vec<f32>,
    loss: f64,
    gradients: Parameters,
    x_gradient: Vec<f32>,
}

impl Case {
    fn values(&self, stream: u64, len: usize, amplitude: f64) -> Vec<f32> {
        (0..len as u64).map(|index| (amplitude * reference::noise(self.seed, stream, index)) as f32).collect()
    }

    fn parameters(&self) -> Parameters {
        let mut parameters = Parameters::zeros(&self.shape);
        let values = self.values(0, parameters.values().len(), 0.5);
        parameters.values_mut().copy_from_slice(&values);
        parameters
    }

    fn input(&self) -> Vec<f32> {
        self.values(1, self.size.iter().product::<usize>() * self.shape.channels(), 1.0)
    }

    fn target(&self) -> Vec<f32> {
        self.values(2, self.size.iter().product::<usize>() * self.shape.channels(), 1.0)
    }

    /// What the model multiplies the output by.
    fn gates(&self) -> Option<Vec<f32>> {
        self.gated.then(|| self.values(3, self.size[0] * self.shape.channels(), 2.0))
    }

    fn run(&self, x: &[f32], scale: f64, workspace: &mut Workspace) -> Outcome {
        let parameters = self.parameters();
        let mut y = vec![f32::NAN; x.len()];
        let mut gradients = parameters.zeros_like();
        gradients.values_mut().fill(f32::NAN);
        let mut x_gradient = vec![f32::NAN; x.len()];
        forward(&self.shape, &parameters, x, self.size, &mut y, workspace).unwrap();
        let loss = loss_and_gradient(
            &self.shape,
            &parameters,
            x,
            Target { output: &self.target(), gates: self.gates().as_deref(), loss: Loss::Squared },
            self.size,
            scale,
            &mut gradients,
            Some(&mut x_gradient),
            workspace,
        )
        .unwrap();
        Outcome { y, loss, gradients, x_gradient }
    }
}

fn assert_close(what: &str, ours: &[f32], reference: &[f64]) {
    let error = difference(ours, reference);
    assert!(error <= TOLERANCE, "{what} is off by {error:.2e}");
}

/// ‖ours − reference‖ / ‖reference‖.
fn difference(ours: &[f32], reference: &[f64]) -> f64 {
    assert_eq!(ours.len(), reference.len());
    let pairs = ours.iter().zip(reference);
    let difference: f64 = pairs.map(|(&a, &b)| (f64::from(a) - b).powi(2)).sum();
    let norm: f64 = reference.iter().map(|b| b * b).sum();
    (difference / norm.max(1e-30)).sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn block_and_gradients_match_the_reference(case in cases()) {
        let (x, scale) = (case.input(), 3.0);
        let ours = case.run(&x, scale, &mut Workspace::default());
        let (target, gates) = (case.target(), case.gates());
        let aim = (&target[..], gates.as_deref());
        let reference = reference::run(&case.shape, &case.parameters(), &x, aim, case.size, scale);
        assert_close("y", &ours.y, &reference.y);
        assert_close("loss", &[ours.loss as f32], &[reference.loss]);
        assert_close("x's gradient", &ours.x_gradient, &reference.x_gradient);
        for (tensor, values) in ours.gradients.iter() {
            assert_close(&tensor.name, values, &reference.gradients[&tensor.name]);
        }
    }

    #[test]
    fn losses_go_back_by_their_slopes(case in cases(), huber in any::<bool>()) {
        let (x, scale, parameters) = (case.input(), 3.0, case.parameters());
        let (mut target, gates) = (case.target(), case.gates());
        let mut workspace = Workspace::default();
        let y = case.run(&x, scale, &mut workspace).y;
        let (sample, channels) = (x.len() / case.size[0], case.shape.channels());
        let (delta, unit) = (0.3_f32, 0.7_f32);
        let gate = |i: usize| gates.as_ref().map_or(1.0, |gates| gates[i / sample * channels + i % channels]);
        // The absolute loss' corner is rounded; none is in it.
        for i in 0..x.len() {
            if (gate(i) * (y[i] - target[i])).abs() < 1e-3 {
                target[i] = y[i] - 0.5 / gate(i);
            }
        }
        let y_gradient: Vec<f32> = (0..x.len())
            .map(|i| {
                let gate = gate(i);
                let difference = gate * (y[i] - target[i]);
                let slope = if huber { 2.0 * difference.clamp(-delta, delta) } else { unit * difference.signum() };
                (scale / x.len() as f64) as f32 * gate * slope
            })
            .collect();
        let loss = if huber { Loss::Huber { delta } } else { Loss::Absolute { unit } };
        let aim = Target { output: &target, gates: gates.as_deref(), loss };
        let (mut found, mut expected) = (parameters.zeros_like(), parameters.zeros_like());
        let (shape, size) = (&case.shape, case.size);
        let squares =
            loss_and_gradient(shape, &parameters, &x, aim, size, scale, &mut found, None, &mut workspace).unwrap();
        gradient(shape, &parameters, &x, &y_gradient, size, &mut expected, None, &mut workspace).unwrap();
        // What is measured is the same whatever is lessened.
        let (squared, mut other) = (Target { loss: Loss::Squared, ..aim }, parameters.zeros_like());
        let measured =
            loss_and_gradient(shape, &parameters, &x, squared, size, scale, &mut other, None, &mut workspace).unwrap();
        assert_eq!(squares, measured);
        for ((tensor, found), (_, expected)) in found.iter().zip(expected.iter()) {
            let expected: Vec<f64> = expected.iter().copied().map(f64::from).collect();
            let error = difference(found, &expected);
            prop_assert!(error < TOLERANCE, "{} is off by {error:.1e}", tensor.name);
        }
    }

    #[test]
    fn a_gradient_of_the_output_goes_back_like_that_of_the_error(case in cases()) {
        let (x, scale, parameters) = (case.input(), 3.0, case.parameters());
        let (target, gates) = (case.target(), case.gates());
        let aim = (&target[..], gates.as_deref());
        let reference = reference::run(&case.shape, &parameters, &x, aim, case.size, scale);
        let (sample, channels) = (x.len() / case.size[0], case.shape.channels());
        let y_gradient: Vec<f32> = (0..x.len())
            .map(|i| {
                let gate = gates.as_ref().map_or(1.0, |gates| gates[i / sample * channels + i % channels]);
                let difference = reference.y[i] - f64::from(target[i]);
                (2.0 * scale / x.len() as f64 * f64::from(gate).powi(2) * difference) as f32
            })
            .collect();
        let (mut gradients, mut x_gradient) = (parameters.zeros_like(), vec![f32::NAN; x.len()]);
        gradients.values_mut().fill(f32::NAN);
        let (wanted, mut workspace) = (Some(&mut x_gradient[..]), Workspace::default());
        gradient(&case.shape, &parameters, &x, &y_gradient, case.size, &mut gradients, wanted, &mut workspace).unwrap();
        assert_close("x's gradient", &x_gradient, &reference.x_gradient);
        for (tensor, values) in gradients.iter() {
            assert_close(&tensor.name, values, &reference.gradients[&tensor.name]);
        }
    }

    #[test]
    fn features_are_what_the_linears_see(case in cases()) {
        let (x, [batch, height, width]) = (case.input(), case.size);
        let (c, n) = (case.shape.channels(), case.shape.features());
        let parameters = case.parameters();
        let mut found = vec![f32::NAN; batch * height * width * n];
        let mut means = vec![f32::NAN; batch * c];
        let mut workspace = Workspace::default();
        features(&case.shape, &parameters, &x, case.size, &mut found, &mut means, &mut workspace)
            .unwrap();
        let get = |name: &str| parameters.get(name).unwrap();
        let dot = |row: &[f32], vector: &[f32]| -> f64 {
            row.iter().zip(vector).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let y: Vec<f64> = (0..x.len())
            .map(|index| {
                let (position, channel) = (index / c, index % c);
                let mean = &means[position / (height * width) * c..][..c];
                dot(&get("conv_out.weight")[channel * n..][..n], &found[position * n..][..n])
                    + dot(&get("conv_pool.weight")[channel * c..][..c], mean)
                    + f64::from(get("conv_out.bias")[channel] + get("conv_pool.bias")[channel])
            })
            .collect();
        assert_close("y", &case.run(&x, 1.0, &mut workspace).y, &y);
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads(case in cases()) {
        let x = case.input();
        let outcomes: Vec<Outcome> = [1, 2, 3]
            .into_iter()
            .map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| case.run(&x, 1.0, &mut Workspace::default()))
            })
            .collect();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        for outcome in &outcomes[1..] {
            assert_eq!(bits(&outcome.y), bits(&outcomes[0].y));
            assert_eq!(outcome.loss.to_bits(), outcomes[0].loss.to_bits());
            assert_eq!(bits(&outcome.x_gradient), bits(&outcomes[0].x_gradient));
            assert_eq!(bits(outcome.gradients.values()), bits(outcomes[0].gradients.values()));
        }
    }

    #[test]
    fn a_workspace_carries_nothing_over(first in cases(), second in cases()) {
        let mut used = Workspace::default();
        let poison = vec![f32::NAN; first.input().len()];
        first.run(&poison, 1.0, &mut used);
        let fresh = second.run(&second.input(), 1.0, &mut Workspace::default());
        for _ in 0..2 {
            let again = second.run(&second.input(), 1.0, &mut used);
            assert_eq!(again.y, fresh.y);
            assert_eq!(again.gradients, fresh.gradients);
        }
        let poison = vec![f32::NAN; second.input().len()];
        second.run(&poison, 1.0, &mut used);
        assert_eq!(second.run(&second.input(), 1.0, &mut used).gradients, fresh.gradients);
    }

    #[test]
    fn a_single_nan_shows(case in cases(), place in any::<prop::sample::Index>()) {
        let mut x = case.input();
        let index = place.index(x.len());
        x[index] = f32::NAN;
        let outcome = case.run(&x, 1.0, &mut Workspace::default());
        assert!(outcome.loss.is_nan());
        let out = outcome.gradients.get("conv_out.bias").unwrap();
        assert!(out.iter().all(|value| value.is_nan()));
    }
}

/// A block with the first one's gates and other linears, and batches in which it gives the targets, all of them of samples
/// that are weighted but for one that counts nothing and has another target.
fn regression() -> (Parameters, Parameters, Ridge) {
    let shape = BlockShape::new(16, 0.5, 3, vec![1.0, 0.5], Gate::Sigmoid).unwrap();
    let case = Case { shape: shape.clone(), size: [12, 5, 6], seed: 3, gated: false };
    let block = case.parameters();
    let mut started = block.clone();
    for name in ["conv_out.weight", "conv_out.bias", "conv_pool.weight", "conv_pool.bias"] {
        started.get_mut(name).unwrap().fill(0.25);
    }
    let (mut ridge, mut workspace) = (Ridge::new(&shape), Workspace::default());
    for stream in 10..14 {
        let x = case.values(stream, 12 * 5 * 6 * 16, 1.0);
        let mut target = vec![0.0; x.len()];
        forward(&shape, &block, &x, case.size, &mut target, &mut workspace).unwrap();
        let weights: Vec<f64> = (0..12).map(|sample| f64::from(sample) / 4.0).collect();
        target[..5 * 6 * 16].fill(1e3);
        let aim = Aim { target: &target, weights: &weights };
        ridge.add(&started, &x, aim, case.size, &mut workspace).unwrap();
    }
    (block, started, ridge)
}

#[test]
fn a_regression_finds_the_linears_that_gave_its_targets() {
    let (block, started, ridge) = regression();
    let mut found = started.clone();
    ridge.solve(0.0, &mut found).unwrap();
    let off = |name: &str| {
        let pairs = block.get(name).unwrap().iter().zip(found.get(name).unwrap());
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    for name in ["conv_out.weight", "conv_pool.weight"] {
        assert!(off(name) < 1e-5, "{name}: {}", off(name));
    }
    assert_eq!((off("conv_up.weight"), off("gates.1.conv_spatial.weight")), (0.0, 0.0));
    // The two act as one.
    let bias = |of: &Parameters, channel: usize| {
        of.get("conv_out.bias").unwrap()[channel] + of.get("conv_pool.bias").unwrap()[channel]
    };
    assert!((0..16).all(|channel| (bias(&block, channel) - bias(&found, channel)).abs() < 1e-5));
    // Unknowns that are penalised are smaller.
    let mut penalised = started;
    ridge.solve(9.0, &mut penalised).unwrap();
    let square = |of: &Parameters| of.get("conv_pool.weight").unwrap().iter().map(|value| value * value).sum::<f32>();
    assert!(square(&penalised) < 0.5 * square(&found));
}

#[test]
fn a_regression_has_the_same_bits_for_any_number_of_threads() {
    let solved = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (_, mut block, ridge) = regression();
            ridge.solve(1e-6, &mut block).unwrap();
            block.values().iter().map(|value| value.to_bits()).collect::<Vec<_>>()
        })
    };
    assert_eq!(solved(1), solved(8));
}

#[test]
fn a_regression_without_a_single_solution_is_refused_and_changes_nothing() {
    let shape = BlockShape::new(16, 0.5, 3, vec![1.0, 0.5], Gate::Scaled).unwrap();
    let case = Case { shape: shape.clone(), size: [3, 5, 6], seed: 3, gated: false };
    let (block, x, mut workspace) = (case.parameters(), case.input(), Workspace::default());
    let refused = |target: &[f32], lambda: f64, workspace: &mut Workspace| {
        let mut ridge = Ridge::new(&shape);
        ridge.add(&block, &x, Aim { target, weights: &[1.0; 3] }, case.size, workspace).unwrap();
        let mut solved = block.clone();
        let result = ridge.solve(lambda, &mut solved);
        assert!(result.is_ok() || solved == block);
        result
    };
    // Three samples have three means, of 16 channels.
    let error = refused(&case.target(), 0.0, &mut workspace);
    assert!(matches!(error, Err(Error::Singular { unknown: 8.., unknowns: 25, rows: 90, .. })), "{error:?}");
    assert_eq!(refused(&case.target(), 1e-6, &mut workspace), Ok(()));
    let mut ridge = Ridge::new(&shape);
    let broken: Vec<f32> = x.iter().map(|_| f32::NAN).collect();
    ridge.add(&block, &broken, Aim { target: &x, weights: &[1.0; 3] }, case.size, &mut workspace).unwrap();
    assert!(matches!(ridge.solve(1e-6, &mut block.clone()), Err(Error::Singular { .. })));
}

/// What this machine's widest instruction set computes is compared above; the narrower ones take
/// their turn in a process of their own, because a process decides once.
#[test]
fn narrower_instruction_sets_match_the_reference() {
    const VARIABLE: &str = "DELTACONV_INSTRUCTION_SET";
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    for set in ["avx2", "portable"] {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["block_and_gradients_match_the_reference", "--exact"])
            .env(VARIABLE, set)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{set}: {text}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let shape = |channels| BlockShape::new(channels, 0.5, 3, vec![1.0, 0.5], Gate::Scaled).unwrap();
    let (block, other) = (shape(8), shape(16));
    let parameters = Parameters::zeros(&block);
    let mut workspace = Workspace::default();
    let mut call = |parameters: &Parameters, x: usize, y: usize, size| {
        let (x, mut y) = (vec![0.0; x], vec![0.0; y]);
        forward(&block, parameters, &x, size, &mut y, &mut workspace)
    };
    assert_eq!(call(&parameters, 32, 32, [1, 2, 2]), Ok(()));
    assert!(matches!(call(&parameters, 31, 32, [1, 2, 2]), Err(Error::Length { .. })));
    assert!(matches!(call(&parameters, 32, 31, [1, 2, 2]), Err(Error::Length { .. })));
    assert!(matches!(call(&parameters, 32, 32, [1, 1, 4]), Err(Error::MapTooSmall { .. })));
    assert!(matches!(call(&parameters, 0, 0, [1, 0, 4]), Err(Error::MapTooSmall { .. })));
    assert_eq!(call(&parameters, 0, 0, [0, 2, 2]), Err(Error::EmptyBatch));
    let huge = [usize::MAX, 2, 2];
    assert_eq!(call(&parameters, 32, 32, huge), Err(Error::TooLarge(huge)));
    let other = Parameters::zeros(&other);
    assert!(matches!(call(&other, 32, 32, [1, 2, 2]), Err(Error::OtherShape("parameters"))));
}
