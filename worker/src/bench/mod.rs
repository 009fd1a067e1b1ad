//! What `deltaconv bench` measures and checks, on a CPU or a GPU.

pub mod cluster;
pub mod data;
pub mod readers;
pub mod teacher;
pub mod writing;

use deltaconv_kernels::bench;
use deltaconv_proto::code::Code;

use crate::codes::of_kernels;

/// The device that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// This machine's processor, f32.
    Cpu,
    /// The first CUDA device, bf16.
    Cuda,
}

impl Device {
    /// The GPU where this build and machine have one.
    pub fn default_here() -> Self {
        #[cfg(feature = "cuda")]
        if deltaconv_kernels::cuda::Gpu::open(0).is_ok() {
            return Self::Cuda;
        }
        Self::Cpu
    }
}

/// Times of one block and batch.
#[derive(Clone, Debug)]
pub struct Measured {
    /// `16×64×64×320 K7`.
    pub name: String,
    /// [B, H, W, C].
    pub dims: [usize; 4],
    /// K.
    pub kernel_size: usize,
    /// Whether the gate is the sigmoid.
    pub sigmoid: bool,
    /// Seconds.
    pub forward: f64,
    /// Seconds; absent where only the forward pass was measured.
    pub step: Option<f64>,
    /// Seconds that an H200 would need at the least.
    pub forward_limit: f64,
    /// As above.
    pub step_limit: f64,
    /// Memory of a step over that of one [B, H, W, C].
    pub activations: Option<f64>,
}

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The block or the device.
    #[error(transparent)]
    Kernels(#[from] deltaconv_kernels::Error),
    /// The teacher.
    #[error("the teacher can't be measured: {message}")]
    Model {
        /// What is wrong.
        message: String,
        /// Names it.
        code: Code,
    },
    /// The data plane.
    #[error("{message}")]
    Data {
        /// What is wrong.
        message: String,
        /// Names it.
        code: Code,
    },
    /// The build.
    #[error("this build of deltaconv has no CUDA: build it with `--features cuda`, or measure with --device cpu")]
    NoCuda,
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Kernels(error) => of_kernels(error),
            Self::Model { code, .. } | Self::Data { code, .. } => *code,
            Self::NoCuda => Code::NoDevice,
        }
    }
}

impl From<deltaconv_proto::objects::Error> for Error {
    fn from(error: deltaconv_proto::objects::Error) -> Self {
        Self::Data { message: error.to_string(), code: error.code() }
    }
}

impl From<crate::task::Error> for Error {
    fn from(error: crate::task::Error) -> Self {
        Self::Model { message: error.to_string(), code: error.code() }
    }
}

/// Measures the kernels on the shapes whose names contain `only`, giving each result as it comes. Returns the device's name.
pub fn kernels(device: Device, only: &str, mut each: impl FnMut(Measured)) -> Result<String, Error> {
    match device {
        Device::Cpu => {
            for case in bench::small_cases().into_iter().filter(|case| case.name().contains(only)) {
                let (forward, step) = bench::measure_cpu(&case)?;
                each(measured(&case, forward, Some(step), None)?);
            }
            Ok("cpu".into())
        }
        Device::Cuda => cuda(only, each),
    }
}

fn measured(case: &bench::Case, forward: f64, step: Option<f64>, activations: Option<f64>) -> Result<Measured, Error> {
    let (forward_limit, step_limit) = case.limit()?;
    let [batch, height, width] = case.size;
    Ok(Measured {
        name: case.name(),
        dims: [batch, height, width, case.channels],
        kernel_size: case.kernel_size,
        sigmoid: case.gate == deltaconv_kernels::Gate::Sigmoid,
        forward,
        step,
        forward_limit,
        step_limit,
        activations,
    })
}

#[cfg(feature = "cuda")]
fn cuda(only: &str, mut each: impl FnMut(Measured)) -> Result<String, Error> {
    use deltaconv_kernels::cuda::{Gpu, measure};

    let gpu = Gpu::open(0)?;
    let device = crate::accelerator::open_device(0)?;
    let all = bench::cases().into_iter().map(|case| (case, true));
    let all = all.chain(bench::resolutions().into_iter().map(|case| (case, false)));
    for (case, step) in all.filter(|(case, _)| case.name().contains(only)) {
        let times = measure(&gpu, &device, &case, step)?;
        each(measured(&case, times.forward, times.step, times.activations)?);
    }
    Ok(gpu.name()?)
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: &str, _: impl FnMut(Measured)) -> Result<String, Error> {
    Err(Error::NoCuda)
}

/// Compares the GPU with the CPU on `count` random blocks and batches, giving a line for each that does not hold.
/// Returns how many held.
#[cfg(feature = "cuda")]
pub fn check(seed: u64, count: u64, mut each: impl FnMut(String)) -> Result<u64, Error> {
    use deltaconv_kernels::cuda::{Gpu, check};

    let gpu = Gpu::open(0)?;
    let device = crate::accelerator::open_device(0)?;
    let mut held = 0;
    for index in 0..count {
        let case = check::case(seed, index)?;
        let outcome = check::run(&gpu, &device, &case)?;
        if outcome.holds() {
            held += 1;
            continue;
        }
        let errors: Vec<String> = outcome
            .errors
            .iter()
            .filter(|error| error.1 > outcome.tolerance)
            .map(|(n, e)| format!("{n} {e:.1e}"))
            .collect();
        let repeats = if outcome.repeats { "" } else { ", a second run gave other bits" };
        each(format!("case {index} {case:?}: {}{repeats}", errors.join(", ")));
    }
    Ok(held)
}

/// Needs a build with CUDA.
#[cfg(not(feature = "cuda"))]
pub fn check(_: u64, _: u64, _: impl FnMut(String)) -> Result<u64, Error> {
    Err(Error::NoCuda)
}
