//! The device that models are computed and blocks are trained on, beside the processor.

#[cfg(feature = "cuda")]
use candle_core::DType;
use deltaconv_kernels as kernels;

use crate::teacher::Place;

/// What a worker is asked to compute on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first CUDA device where the build and the machine have one, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The first CUDA device; a worker without one does not start.
    Cuda,
}

/// What it computes on.
#[derive(Clone, Debug)]
pub(crate) enum Accelerator {
    /// The processor.
    None,
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(std::sync::Arc<Cuda>),
}

#[cfg(feature = "cuda")]
pub(crate) use on_cuda::{Cuda, open_device};

impl Accelerator {
    /// Opens what was asked for.
    pub(crate) fn open(choice: Choice) -> Result<Self, kernels::Error> {
        match choice {
            Choice::Cpu => Ok(Self::None),
            Choice::Cuda => Self::cuda(),
            Choice::Auto => Ok(Self::cuda().unwrap_or_else(|error| {
                tracing::info!(%error, "computing on the processor");
                Self::None
            })),
        }
    }

    /// Where teachers and students are computed in f32, or in bf16 where `reduced` is asked for and there is a GPU.
    pub(crate) fn place(&self, reduced: bool) -> Place {
        match self {
            Self::None => {
                let _ = reduced;
                Place::default()
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) if cuda.is_usable() => {
                Place::cuda(&cuda.device, if reduced { DType::BF16 } else { DType::F32 })
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => Place::default(),
        }
    }

    /// After a failure: finds out whether the device can still be used.
    pub(crate) fn examine(&self) {
        #[cfg(feature = "cuda")]
        if let Self::Cuda(cuda) = self
            && let Err(error) = cuda.gpu.synchronize()
        {
            cuda.note(&error);
        }
    }

    /// What the device said when it failed for good.
    pub(crate) fn failure(&self) -> Option<&str> {
        match self {
            Self::None => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.failure(),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda() -> Result<Self, kernels::Error> {
        Cuda::open().map(|cuda| Self::Cuda(std::sync::Arc::new(cuda)))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda() -> Result<Self, kernels::Error> {
        Err(kernels::Error::NoDevice("this build has no CUDA; build it with `--features cuda`".into()))
    }
}

#[cfg(feature = "cuda")]
mod on_cuda {
    use std::sync::{Arc, OnceLock};

    use candle_core::{DType, Device, IndexOp, Tensor};
    use deltaconv_kernels::cuda::Gpu;
    use deltaconv_kernels::{self as kernels, Error};

    /// The first CUDA device.
    #[derive(Debug)]
    pub(crate) struct Cuda {
        pub(crate) gpu: Arc<Gpu>,
        pub(crate) device: Device,
        failed: OnceLock<String>,
    }

    /// A device for tensors, with a stream of its own: candle's default is another stream in every thread, which nothing
    /// makes wait for each other.
    pub(crate) fn open_device(ordinal: usize) -> Result<Device, Error> {
        let device = Device::new_cuda_with_stream(ordinal).map_err(|error| {
            // Without the backtrace that candle may append.
            let text = error.to_string();
            Error::NoDevice(text.lines().next().unwrap_or_default().to_owned())
        })?;
        if let Device::Cuda(cuda) = &device {
            // SAFETY: the tensors are used on this stream alone, except by what waits for it and lets it wait: the kernels'
            // own streams.
            unsafe { cuda.disable_event_tracking() };
        }
        Ok(device)
    }

    /// Uses candle's kernels for the first time: where the driver has not compiled them yet, that takes it 10 s, which a task
    /// would wait for.
    fn warm_up(device: &Device) -> candle_core::Result<()> {
        let x = Tensor::zeros((2, 8), DType::F32, device)?;
        let y = x.to_dtype(DType::F16)?.to_dtype(DType::F32)?.affine(2.0, 1.0)?.sub(&x)?.broadcast_mul(&x.i(..1)?)?;
        y.sqr()?.sum(1)?.to_dtype(DType::BF16)?.add(&Tensor::zeros(2, DType::BF16, device)?)?.to_dtype(DType::F32)?;
        device.synchronize()
    }

    impl Cuda {
        pub(super) fn open() -> Result<Self, Error> {
            let gpu = Gpu::open(0)?;
            let device = open_device(0)?;
            let of_thread = device.clone();
            // What it can't do, whoever needs it hears of.
            std::thread::spawn(move || warm_up(&of_thread).inspect_err(|error| tracing::debug!(%error, "no warm-up")));
            Ok(Self { gpu, device, failed: OnceLock::new() })
        }

        /// The CUDA device of these tensors.
        pub(crate) fn at(device: &Device) -> Result<Self, Error> {
            Ok(Self { gpu: Gpu::open(0)?, device: device.clone(), failed: OnceLock::new() })
        }

        /// Whether the device can still be used. One that failed once fails in everything until the process ends, so
        /// that later tasks are done on the processor.
        pub(crate) fn is_usable(&self) -> bool {
            self.failed.get().is_none()
        }

        /// What it said when it failed for good.
        pub(super) fn failure(&self) -> Option<&str> {
            self.failed.get().map(String::as_str)
        }

        /// Takes note of an error that the device doesn't recover from.
        pub(crate) fn note(&self, error: &kernels::Error) {
            let told = || crate::codes::of_kernels(error).before(error);
            if matches!(error, Error::Gpu { .. }) && self.failed.set(told()).is_ok() {
                tracing::error!(%error, "the GPU is not used any more; restart the worker to try it again");
            }
        }
    }
}
