//! What can be wrong with a block's shape or with the slices given for it.

/// A result whose error is [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a shape, a set of parameters or a call was refused. Nothing is written before a refusal.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// `channels · inter_ratio` must be a whole, even number of at least 2, because the gate
    /// multiplies one half of it by the other.
    #[error("{channels} channels × inter_ratio {inter_ratio} is no even whole number of at least 2")]
    Inner {
        /// C.
        channels: usize,
        /// The ratio asked for.
        inter_ratio: f64,
    },
    /// The kernel size must be odd and within 1..=31.
    #[error("kernel size {0} is not an odd number from 1 to 31")]
    KernelSize(usize),
    /// The first scale must be 1 and every scale within (0, 1].
    #[error("scales {0:?} do not begin with 1 or leave the range (0, 1]")]
    Scales(Vec<f64>),
    /// A map that a scale shrinks to nothing, or one without positions.
    #[error("a map of {height}×{width} positions has none left at scale {scale}")]
    MapTooSmall {
        /// H.
        height: usize,
        /// W.
        width: usize,
        /// The scale that leaves no row or no column.
        scale: f64,
    },
    /// The sizes of the call multiply to more than the address space.
    #[error("[B, H, W] = {0:?} overflows the address space")]
    TooLarge([usize; 3]),
    /// A batch without samples has no mean squared error.
    #[error("the batch is empty")]
    EmptyBatch,
    /// A slice of another length than the shape asks for.
    #[error("`{what}` has {found} values where the shape asks for {expected}")]
    Length {
        /// The argument or tensor.
        what: String,
        /// Values that the shape asks for.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// Parameters, gradients or moments that belong to a block of another shape.
    #[error("`{0}` was laid out for a block of another shape")]
    OtherShape(&'static str),
    /// What has to come first has not.
    #[error("{0} was asked for before it was there")]
    TooEarly(&'static str),
    /// There is no CUDA device that the kernels can run on.
    #[error("no usable CUDA device: {0}; run on the CPU, or check `nvidia-smi` and CUDA_VISIBLE_DEVICES")]
    NoDevice(String),
    /// The driver can't run what the kernels were compiled to.
    #[error("the CUDA driver is too old for this build ({0}); update it to one of CUDA 13.0 (580) or newer")]
    OldDriver(String),
    /// The device has too little free memory.
    #[error(
        "the device has no {bytes} bytes of memory left{}; take smaller batches or a larger device",
        free.map(|free| format!(" ({free} are free)")).unwrap_or_default()
    )]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes free, where the device says so.
        free: Option<usize>,
    },
    /// The device or one of CUDA's libraries failed. What ran on the device is lost; other devices can go on with it.
    #[error("the device failed while {what}: {reason}")]
    Gpu {
        /// What was being done.
        what: &'static str,
        /// What the driver or library says.
        reason: String,
    },
    /// A tensor of another dtype, device or layout than the call takes.
    #[error("`{what}` is {found}, the block takes {expected}")]
    Tensor {
        /// The argument.
        what: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// A regression with many solutions, or with numbers that are not finite.
    #[error(
        "the regression of {unknowns} unknowns on {rows} rows has no single solution: the pivot of unknown {unknown} is {pivot:e}"
    )]
    Singular {
        /// The first one that isn't determined.
        unknown: usize,
        /// Unknowns of each channel.
        unknowns: usize,
        /// Pixels of all samples.
        rows: usize,
        /// What is left of it, over its column's square.
        pivot: f64,
    },
    /// A tensor name that the block does not have.
    #[error("the block has no tensor named `{0}`")]
    UnknownTensor(String),
}

#[cfg(feature = "cuda")]
impl Error {
    /// What candle says of a device, without the backtrace that it may append, when `bytes` were to be allocated.
    pub(crate) fn of_candle(what: &'static str, bytes: usize, error: &candle_core::Error) -> Self {
        let text = error.to_string();
        if text.contains("CUDA_ERROR_OUT_OF_MEMORY") {
            return Self::OutOfMemory { bytes, free: None };
        }
        let reason = text.lines().next().unwrap_or_default().to_owned();
        Self::Gpu { what, reason }
    }
}

/// Refuses a slice whose length is not the expected one.
pub(crate) fn check_length(what: &str, expected: usize, found: usize) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::Length { what: what.to_owned(), expected, found })
}
