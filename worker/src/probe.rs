//! What this machine has, for whoever asks before a worker starts.

use deltaconv_kernels as kernels;
use deltaconv_proto::code::Code;
use deltaconv_proto::v1;

use crate::accelerator::{Accelerator, Choice};
use crate::agent;

/// What the system calls the processor.
pub fn processor() -> String {
    agent::device::processor()
}

/// Bytes of memory that are available and that there are.
pub fn memory() -> Option<(u64, u64)> {
    agent::device::memory()
}

/// The device that a worker with this choice would compute on, as it would tell the coordinator.
///
/// # Errors
/// Where a GPU is asked for and there is none that can be used.
pub fn device(choice: Choice) -> Result<v1::Device, kernels::Error> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Ok(agent::device::describe(threads, &Accelerator::open(choice)?))
}

/// Why no GPU can be used; `None` where one can.
pub fn why_no_gpu() -> Option<String> {
    Accelerator::open(Choice::Cuda).err().map(|error| error.to_string())
}

/// The code of what keeps a device from being used.
pub fn code(error: &kernels::Error) -> Code {
    crate::codes::of_kernels(error)
}

/// The version of the GPU's driver, where its management library says it.
pub fn driver() -> Option<String> {
    #[cfg(feature = "cuda")]
    return nvml_wrapper::Nvml::init().ok()?.sys_driver_version().ok();
    #[cfg(not(feature = "cuda"))]
    None
}
