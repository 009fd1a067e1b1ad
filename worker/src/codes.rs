//! Codes of errors that come from where no codes are known.

use deltaconv_kernels::Error as Kernels;
use deltaconv_proto::code::Code;

/// The code of an error of the kernels.
pub(crate) fn of_kernels(error: &Kernels) -> Code {
    match error {
        Kernels::Inner { .. }
        | Kernels::KernelSize(_)
        | Kernels::Scales(_)
        | Kernels::MapTooSmall { .. }
        | Kernels::TooLarge(_) => Code::BlockShape,
        // Slices and tensors that the worker itself made.
        Kernels::EmptyBatch
        | Kernels::Length { .. }
        | Kernels::OtherShape(_)
        | Kernels::TooEarly(_)
        | Kernels::Tensor { .. }
        | Kernels::UnknownTensor(_) => Code::Fault,
        Kernels::NoDevice(_) => Code::NoDevice,
        Kernels::OldDriver(_) => Code::OldDriver,
        Kernels::OutOfMemory { .. } => Code::DeviceMemory,
        Kernels::Gpu { .. } => Code::DeviceFailed,
        Kernels::Singular { .. } => Code::NoSolution,
    }
}

/// The code of an error of candle, which tells of a device without memory by its text alone.
pub(crate) fn of_tensors(error: &candle_core::Error) -> Code {
    if error.to_string().contains("OUT_OF_MEMORY") { Code::DeviceMemory } else { Code::TensorOperation }
}
