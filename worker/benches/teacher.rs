//! Samples a second that the shipped teacher captures: forward passes in batches, inputs and outputs observed.
//!
//! `cargo bench -p deltaconv-worker --bench teacher -- [batch] [seconds]`

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use deltaconv_proto::teacher::Teacher;
use deltaconv_worker::teacher::{Conditions, LoadOptions, Original, UNet, Weights};

#[allow(clippy::print_stdout)] // its output is the measurement
fn main() -> Result<(), Box<dyn Error>> {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let batch = numbers.first().copied().unwrap_or(8);
    let seconds = numbers.get(1).copied().unwrap_or(10);

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/teachers/tiny-unet/unet");
    let Teacher::UNet(config) = Teacher::parse(&fs::read(folder.join("config.json"))?)? else {
        return Err("the shipped teacher is a UNet".into());
    };
    let mut weights = Weights::open([folder.join("diffusion_pytorch_model.safetensors")])?;
    let model = UNet::load(&config, &mut weights, &LoadOptions::default())?;
    let (height, width) = config.sample_size.unwrap_or((32, 32));
    let sample = Tensor::randn(0_f32, 1.0, (batch, config.in_channels, height, width), &Device::Cpu)?;
    let timestep = Tensor::full(500_f32, batch, &Device::Cpu)?;
    let conditions = Conditions::from(Tensor::randn(0_f32, 1.0, (batch, 4, 64), &Device::Cpu)?);

    model.forward(&sample, &timestep, &conditions, &mut Original)?;
    let start = Instant::now();
    let mut samples = 0;
    let mut fastest = Duration::MAX;
    while start.elapsed() < Duration::from_secs(seconds as u64) {
        let start = Instant::now();
        model.forward(&sample, &timestep, &conditions, &mut Original)?;
        fastest = fastest.min(start.elapsed());
        samples += batch;
    }
    let elapsed = start.elapsed();
    println!(
        "{samples} samples in {:.2} s: {:.1} samples/s, fastest batch {:.1} samples/s, batch {batch}, {} threads",
        elapsed.as_secs_f64(),
        samples as f64 / elapsed.as_secs_f64(),
        batch as f64 / fastest.as_secs_f64(),
        rayon::current_num_threads(),
    );
    Ok(())
}
