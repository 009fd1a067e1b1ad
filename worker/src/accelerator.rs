//! The device that blocks are trained on, beside the processor.

use deltaconv_kernels as kernels;

/// What a worker is asked to train on.
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

/// What it trains on.
#[derive(Clone, Debug)]
pub(crate) enum Accelerator {
    /// The processor.
    None,
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(std::sync::Arc<Cuda>),
}

#[cfg(feature = "cuda")]
pub(crate) use on_cuda::Cuda;

impl Accelerator {
    /// Opens what was asked for.
    pub(crate) fn open(choice: Choice) -> Result<Self, kernels::Error> {
        match choice {
            Choice::Cpu => Ok(Self::None),
            Choice::Cuda => Self::cuda(),
            Choice::Auto => Ok(Self::cuda().unwrap_or_else(|error| {
                tracing::info!(%error, "training on the processor");
                Self::None
            })),
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use candle_core::Device;
    use deltaconv_kernels::cuda::Gpu;
    use deltaconv_kernels::{self as kernels, Error};

    /// The first CUDA device.
    #[derive(Debug)]
    pub(crate) struct Cuda {
        pub(crate) gpu: Arc<Gpu>,
        pub(crate) device: Device,
        failed: AtomicBool,
    }

    impl Cuda {
        pub(super) fn open() -> Result<Self, Error> {
            let gpu = Gpu::open(0)?;
            let device = Device::new_cuda(0).map_err(|error| Error::NoDevice(error.to_string()))?;
            Ok(Self { gpu, device, failed: AtomicBool::new(false) })
        }

        /// Whether the device can still be used. One that failed once fails in everything until the process ends, so
        /// that later tasks are done on the processor.
        pub(crate) fn is_usable(&self) -> bool {
            !self.failed.load(Ordering::Relaxed)
        }

        /// Takes note of an error that the device doesn't recover from.
        pub(crate) fn note(&self, error: &kernels::Error) {
            if matches!(error, Error::Gpu { .. }) && !self.failed.swap(true, Ordering::Relaxed) {
                tracing::error!(%error, "the GPU is not used any more; restart the worker to try it again");
            }
        }
    }
}
