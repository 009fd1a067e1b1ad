//! Training of all blocks of the shipped teachers together.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{Device, Tensor};
use deltaconv_kernels::{BlockShape, Gate, Parameters};
use deltaconv_proto::teacher::{Scheduler, Teacher as Configuration};
use deltaconv_proto::v1::{Finetune, Recipe};

use super::checkpoint::decode;
use super::student::{Blocks, in_place};
use super::training::{Looked, Snapshot, State, Training};
use super::{BATCHES_AHEAD, Part, ahead};
use crate::accelerator::Accelerator;
use crate::blocks::InPlace;
use crate::capture::Inputs;
use crate::checkpoints::Snapshot as _;
use crate::models::Teacher;
use crate::teacher::{Conditions, Denoiser, LoadOptions, Original, Sampler, Weights};

/// A shipped teacher with blocks of small random weights in place of its last layer and of the one two before it, with attention
/// between them through which gradients go.
fn student(name: &str, folder: &str, gate: Gate) -> (Teacher, Blocks) {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../cli/teachers").join(name);
    let config = Configuration::parse(&fs::read(root.join(folder).join("config.json")).unwrap()).unwrap();
    let mut weights = Weights::open([root.join(folder).join("diffusion_pytorch_model.safetensors")]).unwrap();
    let denoiser = Denoiser::load(&config, &mut weights, &LoadOptions::default()).unwrap();
    let scheduler = fs::read(root.join("scheduler/scheduler_config.json")).unwrap();
    let sampler = Sampler::new(Scheduler::parse(&scheduler).unwrap());
    let (height, width) = config.sample_size().unwrap();
    let mut blocks = Blocks::new();
    let layers = config.layers(height, width).unwrap();
    for layer in layers.iter().filter(|layer| [1, 3].contains(&(layers.len() - layer.index))) {
        let shape = BlockShape::new(layer.channels, 0.5, 3, vec![1.0, 0.5], gate).unwrap();
        let mut block = Parameters::zeros(&shape);
        for (i, value) in block.values_mut().iter_mut().enumerate() {
            *value = 0.2 * ((i * 7919 + layer.index * 31) % 1009) as f32 / 1009.0 - 0.1;
        }
        blocks.insert(layer.name.clone(), Arc::new(block));
    }
    (Teacher { denoiser, sampler, vae: None }, blocks)
}

fn inputs(seed: usize) -> Inputs {
    let numbers =
        |len: usize| (0..len).map(|i| ((i * 7919 + seed * 101) % 1000) as f32 / 500.0 - 1.0).collect::<Vec<_>>();
    let noised = Tensor::from_vec(numbers(2 * 3 * 32 * 32), (2, 3, 32, 32), &Device::Cpu).unwrap();
    let text = Tensor::from_vec(numbers(2 * 4 * 64), (2, 4, 64), &Device::Cpu).unwrap();
    let timesteps = Tensor::new(&[20.0_f32, 400.0], &Device::Cpu).unwrap();
    Inputs { noised, timesteps, conditions: Conditions::from(text) }
}

fn part(seed: usize, share: f64) -> Part {
    Part { inputs: inputs(seed), weights: vec![0.7, 1.3], share }
}

/// The error of the predicted noise, in f64.
fn error(teacher: &Teacher, blocks: &Blocks, inputs: &Inputs) -> f64 {
    let noise = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let expected = noise(inputs.predict(teacher, &mut Original).unwrap());
    let found = noise(inputs.predict(teacher, &mut InPlace(&in_place(blocks))).unwrap());
    let squares = |of: &dyn Fn(usize) -> f32| (0..expected.len()).map(|i| f64::from(of(i)).powi(2)).sum::<f64>();
    squares(&|i| found[i] - expected[i]) / squares(&|i| expected[i])
}

const SETTINGS: Finetune = Finetune { steps: 12, batch: 2, learning_rate: 2e-3, features: 0.1 };

fn recipe() -> Recipe {
    Recipe { clip_norm: 1.0, ema_decay: 0.5, ..Recipe::default() }
}

fn training(teacher: &Teacher, from: Snapshot, settings: Finetune) -> Training {
    Training::new(from, &recipe(), settings, &Accelerator::None, teacher.denoiser.place()).unwrap()
}

/// Begins a training from these blocks.
fn started(teacher: &Teacher, blocks: &Blocks, settings: Finetune) -> Training {
    let mut training = training(teacher, State::new(blocks.clone(), &recipe()).into(), settings);
    measure(teacher, &mut training);
    training.keep_start().unwrap();
    training
}

/// The training that another attempt has from this one's checkpoint.
fn handed_over(teacher: &Teacher, blocks: &Blocks, mut before: Training, settings: Finetune) -> Training {
    let bytes = before.snapshot().unwrap().encode().unwrap();
    let start = State::new(blocks.clone(), &recipe());
    for end in [0, 100, bytes.len() - 1] {
        assert!(decode("checkpoint", &bytes[..end], &start).is_err(), "{end} bytes were taken");
    }
    let mut resumed = training(teacher, decode("checkpoint", &bytes, &start).unwrap(), settings);
    resumed.keep_start().unwrap();
    resumed
}

fn measure(teacher: &Teacher, training: &mut Training) {
    let averaged = training.averaged().unwrap();
    let error = error(teacher, &averaged, &inputs(7));
    training.note(averaged, error);
}

fn train(teacher: &Teacher, training: &mut Training, steps: usize) {
    for _ in 0..steps {
        for (seed, share) in [(training.record.step as usize % 3, 0.75), (3, 0.25)] {
            part(seed, share).pass(teacher, |pass| training.add(pass)).unwrap();
        }
        training.step().unwrap();
        if training.is_look() {
            let looked = training.look().unwrap();
            if training.is_curve_point() {
                measure(teacher, training);
            }
            training.keep(looked).unwrap();
        }
    }
}

#[test]
fn blocks_that_are_trained_together_predict_the_noise_better_and_a_resumed_training_ends_with_the_same_bits() {
    for (name, folder, gate) in [("tiny-unet", "unet", Gate::Scaled), ("tiny-pixart", "transformer", Gate::Sigmoid)] {
        let (teacher, blocks) = student(name, folder, gate);
        let mut whole = started(&teacher, &blocks, SETTINGS);
        train(&teacher, &mut whole, 12);
        let (first, least) = (whole.record.curve[0].held_out_error, whole.least_error());
        assert!(least < 0.7 * first, "{name}: {first} became {least}");
        assert!((error(&teacher, &whole.record.best, &inputs(7)) / least - 1.0).abs() < 1e-9);

        let mut resumed = started(&teacher, &blocks, SETTINGS);
        for taken in 1..=12 {
            train(&teacher, &mut resumed, 1);
            resumed = handed_over(&teacher, &blocks, resumed, SETTINGS);
            assert_eq!(resumed.record.step, taken);
        }
        assert_eq!(resumed.record.curve, whole.record.curve);
        assert_eq!(resumed.averaged().unwrap(), whole.averaged().unwrap());
        assert_eq!(resumed.record.best, whole.record.best);
    }
}

#[test]
fn a_training_that_diverges_goes_back_and_ends_with_its_story() {
    let (teacher, blocks) = student("tiny-unet", "unet", Gate::Scaled);
    let settings = Finetune { steps: 40, learning_rate: 1e30, ..SETTINGS };
    let mut training = started(&teacher, &blocks, settings);
    let mut looks = Vec::new();
    let mut steps = 0;
    let story = loop {
        part(0, 1.0).pass(&teacher, |pass| training.add(pass)).unwrap();
        training.step().unwrap();
        if training.is_look() {
            match training.look() {
                Ok(looked) => {
                    looks.push(looked);
                    training.keep(looked).unwrap();
                }
                Err(error) => break error.to_string(),
            }
            assert!(training.averaged().unwrap() == blocks, "it goes back to where it was");
        }
        // Whoever goes on from there, in the middle of a stretch that will be taken back, sees the same.
        steps += 1;
        if steps % 3 == 0 {
            training = handed_over(&teacher, &blocks, training, settings);
        }
    };
    assert_eq!(looks, [Looked::WentBack; 3]);
    assert!(training.record.step <= 50 && story.contains("all blocks together"), "{story}");
    assert_eq!(training.record.best, blocks);
    assert!(training.record.health.rate() < 0.02);
}

#[test]
fn a_training_that_ends_early_waits_for_no_batch_that_is_to_come() {
    let made = AtomicU64::new(0);
    let make = |step: u64| {
        made.fetch_add(1, Ordering::Relaxed);
        2 * step
    };
    assert_eq!(ahead(5..1_000_000, make, |batches| batches.iter().take(3).collect::<Vec<_>>()), [10, 12, 14]);
    // Those that were taken, those that waited, and the one that nobody took.
    assert!(made.load(Ordering::Relaxed) <= 3 + BATCHES_AHEAD as u64 + 1);
    assert_eq!(ahead(0..3, make, |batches| batches.iter().collect::<Vec<_>>()), [0, 2, 4]);
}
