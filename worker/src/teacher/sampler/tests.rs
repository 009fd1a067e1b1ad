//! Sampling against diffusers' schedulers, as recorded by `tests/sampler_reference.py`, and with a model.

use std::path::{Path, PathBuf};
use std::{fs, iter};

use deltaconv_proto::teacher::Teacher;
use serde_json::Value;

use super::super::{LoadOptions, Original, Weights};
use super::*;

/// Largest difference, of the larger of the largest number and 1, which is what unit noise and latents are like. (One run
/// is of much smaller numbers: Euler's single step from timestep 0, of whose σ diffusers' f32 has four digits.)
const TOLERANCE: f64 = 1e-5;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/samplers")
}

fn sampler(name: &str) -> Sampler {
    let file = fs::read(golden().join(name).join("scheduler_config.json")).unwrap();
    Sampler::new(Scheduler::parse(&file).unwrap())
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// The largest difference.
fn gap(found: &Tensor, expected: &[f32]) -> f64 {
    let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|number| number.is_finite()), "{found:?}");
    let gaps = iter::zip(found, expected).map(|(found, expected)| f64::from((found - expected).abs()));
    gaps.fold(0.0, f64::max)
}

/// `model` of the script.
fn model(x: &Tensor, timestep: f64) -> Result<Tensor, Error> {
    Ok(x.affine(0.8, 0.5 * timestep / 1000.0 - 0.2)?.tanh()?)
}

#[test]
fn golden_samples_are_those_of_diffusers() {
    let mut runs = 0;
    for folder in fs::read_dir(golden()).unwrap() {
        let folder = folder.unwrap();
        let name = folder.file_name().into_string().unwrap();
        let sampler = sampler(&name);
        let recording: Value =
            serde_json::from_slice(&fs::read(folder.path().join("recording.json")).unwrap()).unwrap();
        let shape: Vec<usize> = numbers(&recording["shape"]).into_iter().map(|n| n as usize).collect();
        let noise = Tensor::from_vec(numbers(&recording["noise"]), shape, &Device::Cpu).unwrap();
        for run in recording["runs"].as_array().unwrap() {
            let solver: Solver = run["solver"].as_str().unwrap().parse().unwrap();
            let steps = Steps { solver, count: run["steps"].as_u64().unwrap() as usize };
            let (mut timesteps, mut given) = (Vec::new(), Vec::new());
            let x = sampler.solve(&noise, steps, |x, timestep| {
                timesteps.push(timestep as f32);
                given.push(x.clone());
                model(x, timestep)
            });
            let what = format!("{name}, {solver}, {} steps", steps.count);
            assert_eq!(timesteps, numbers(&run["timesteps"]), "{what}");
            // Euler's x at σ = 4096 is so much larger than the sample that diffusers, which takes one f32 of that size from
            // another, is off by its rounding (4e-4 after one step; in f64 its formulas give our numbers).
            let rounding = match sampler.scheduler.rescale_betas_zero_snr && solver == Solver::Euler {
                true => f64::from(f32::EPSILON) * run["largest"].as_f64().unwrap(),
                false => 0.0,
            };
            for (field, found) in [("middle", &given[steps.count / 2]), ("final", &x.unwrap())] {
                let expected = numbers(&run[field]);
                let size = expected.iter().fold(1.0_f32, |largest, number| largest.max(number.abs()));
                let gap = gap(found, &expected);
                println!("{what}: {field} is {:.1e} off", gap / f64::from(size));
                assert!(gap <= TOLERANCE * f64::from(size) + rounding, "{what}: {field} is {gap:.1e} off {size}");
            }
            runs += 1;
        }
    }
    assert_eq!(runs, 6 * 3 * 3);
}

/// Where the model is always right, every x lies between the noise and the sample, however few the steps.
#[test]
fn right_predictions_lead_to_the_sample() {
    let noise = Tensor::new(&[[[[1.5_f32, 0.75, -0.5]]]], &Device::Cpu).unwrap();
    let x0 = Tensor::new(&[[[[0.5_f32, -0.25, 2.0]]]], &Device::Cpu).unwrap();
    let schedules = [
        ("epsilon", r#""timestep_spacing": "leading", "steps_offset": 1"#),
        ("sample", r#""timestep_spacing": "trailing""#),
        ("v_prediction", r#""timestep_spacing": "trailing""#),
        ("v_prediction", r#""timestep_spacing": "trailing", "rescale_betas_zero_snr": true"#),
    ];
    for (predicted, fields) in schedules {
        let json =
            format!(r#"{{"_class_name": "EulerDiscreteScheduler", "prediction_type": "{predicted}", {fields}}}"#);
        let sampler = Sampler::new(Scheduler::parse(json.as_bytes()).unwrap());
        for steps in Solver::ALL.into_iter().flat_map(|solver| [2, 9].map(|count| Steps { solver, count })) {
            let predict = |x: &Tensor, timestep: f64| {
                let alpha = sampler.alpha_cumprod(timestep as usize)?;
                let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
                let epsilon = mix(1.0 / noise, x, -signal / noise, &x0)?;
                Ok(match predicted {
                    "epsilon" => epsilon,
                    "sample" => x0.clone(),
                    _ => mix(signal, &epsilon, -noise, &x0)?,
                })
            };
            let x = sampler.solve(&noise, steps, predict).unwrap();
            let gap = gap(&x, &[0.5, -0.25, 2.0]);
            assert!(gap < 1e-5, "{predicted} {fields}, {steps:?}: {gap:.1e}");
        }
    }
}

#[test]
fn steps_that_a_schedule_cannot_take_are_refused() {
    let refused = |fields: &str, solver, count| {
        let json = format!(r#"{{"_class_name": "DDIMScheduler"{fields}}}"#);
        let sampler = Sampler::new(Scheduler::parse(json.as_bytes()).unwrap());
        let noise = Tensor::zeros((1, 1, 1, 1), DType::F32, &Device::Cpu).unwrap();
        sampler.solve(&noise, Steps { solver, count }, model).unwrap_err().to_string()
    };
    let again = refused("", Solver::DpmSolverPlusPlus, 1000);
    assert!(again.contains("1000 go from timestep") && again.contains("take fewer"), "{again}");
    let silent = refused(r#", "beta_start": 0.0"#, Solver::Euler, 1);
    assert!(silent.contains("timestep 0 has no noise or no signal: σ = 0"), "{silent}");
    let rescaled = r#", "rescale_betas_zero_snr": true, "timestep_spacing": "trailing""#;
    assert!(refused(rescaled, Solver::Ddim, 4).contains("timestep 999 is pure noise"));
}

/// Numbers of about −1 to 1 that follow from the shape.
fn arbitrary(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| (i as f32 * 12.9898).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

#[test]
fn guidance_is_that_of_each_sample_alone() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/teachers/tiny-unet/unet");
    let config = Teacher::parse(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    let mut weights = Weights::open([folder.join("diffusion_pytorch_model.safetensors")]).unwrap();
    let denoiser = Denoiser::load(&config, &mut weights, &LoadOptions::default()).unwrap();
    let (noise, prompts, empty) = (arbitrary(&[2, 3, 32, 32]), arbitrary(&[2, 4, 64]), arbitrary(&[1, 4, 64]));
    let sampler = sampler("sdxl");
    let guided = |scale: f64, steps: Steps| {
        let guidance = Guidance { scale, negative: empty.clone().into() };
        let prompts = prompts.clone().into();
        sampler.sample(&denoiser, &noise, &prompts, Some(&guidance), steps, &mut Original).unwrap()
    };
    let rows = |tensor: &Tensor| tensor.flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
    for solver in Solver::ALL {
        let steps = Steps { solver, count: 2 };
        let (three, one) = (rows(&guided(3.0, steps)), rows(&guided(1.0, steps)));
        for row in 0..2 {
            let of_row = |tensor: &Tensor| tensor.narrow(0, row, 1).unwrap();
            let predict = |x: &Tensor, timestep: f64, text: &Tensor| {
                let timestep = Tensor::new(&[timestep as f32], &Device::Cpu)?;
                denoiser.predict(x, &timestep, &text.clone().into(), &mut Original)
            };
            let prompt = of_row(&prompts);
            let alone = sampler.solve(&of_row(&noise), steps, |x, t| {
                let without = predict(x, t, &empty)?;
                Ok(without.add(&predict(x, t, &prompt)?.sub(&without)?.affine(3.0, 0.0)?)?)
            });
            assert_eq!(rows(&alone.unwrap())[0], three[row], "{solver}");
            let alone = sampler.solve(&of_row(&noise), steps, |x, t| predict(x, t, &prompt));
            assert_eq!(rows(&alone.unwrap())[0], one[row], "{solver}");
        }
    }
}
