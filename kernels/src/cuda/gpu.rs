//! One device: its streams, the compiled kernels and cuBLASLt.

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cudarc::cublaslt::{result as lt, sys as lt_sys};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaModule, CudaSlice, CudaStream, DevicePtr, DriverError, result, sys,
};
use cudarc::nvrtc::Ptx;

use crate::error::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/fused.rs"));

const PLANES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/planes.fatbin"));
const STEP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/step.fatbin"));
const OPTIMISER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/optimiser.fatbin"));
const NORMS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/norms.fatbin"));
const GATHER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gather.fatbin"));
const ATTENTION: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/attention.fatbin"));
const GRADIENTS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gradients.fatbin"));
/// What cuBLASLt may use on each stream; the size that its documentation recommends for Hopper.
pub(super) const WORKSPACE: usize = 32 << 20;

/// A driver's address on the device.
pub(super) type Address = u64;

/// A CUDA device with its streams, on which blocks are computed and trained. Shared by all blocks on the device.
pub struct Gpu {
    pub(super) context: Arc<CudaContext>,
    /// Where everything runs, in order.
    pub(super) stream: Arc<CudaStream>,
    /// Where small things run beside it, between a fork and a join.
    pub(super) side: Arc<CudaStream>,
    /// Where samples come to the device meanwhile.
    pub(super) copies: Arc<CudaStream>,
    functions: Mutex<HashMap<(Source, String), CudaFunction>>,
    modules: Mutex<HashMap<Source, Arc<CudaModule>>>,
    handle: lt_sys::cublasLtHandle_t,
    _workspaces: [CudaSlice<u8>; 2],
    workspaces: [Address; 2],
    /// Bytes of shared memory that one block may have.
    pub(super) shared_limit: usize,
    pub(super) multiprocessors: usize,
}

// SAFETY: cuBLASLt's handle may be used from any thread (its documentation, "Thread safety"); everything else is Send
// and Sync by itself.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// The compiled sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Planes,
    Step,
    Optimiser,
    /// The fused middle for one kernel size.
    Fused(usize),
    /// Of a teacher: norms and activations.
    Norms,
    /// Of a teacher: what convolutions multiply.
    Gather,
    /// Of a teacher.
    Attention,
    /// The way back through a teacher.
    Gradients,
}

impl Source {
    fn image(self) -> Option<&'static [u8]> {
        match self {
            Self::Planes => Some(PLANES),
            Self::Step => Some(STEP),
            Self::Optimiser => Some(OPTIMISER),
            Self::Norms => Some(NORMS),
            Self::Gather => Some(GATHER),
            Self::Attention => Some(ATTENTION),
            Self::Gradients => Some(GRADIENTS),
            Self::Fused(kernel) => FUSED.iter().find(|(size, _)| *size == kernel).map(|(_, image)| *image),
        }
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("ordinal", &self.context.ordinal()).finish_non_exhaustive()
    }
}

impl Gpu {
    /// Opens the device with this number, or takes the one that is open already. Fails with a clear error where there is
    /// none, or where its driver is older than the kernels.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        static OPEN: Mutex<BTreeMap<usize, Weak<Gpu>>> = Mutex::new(BTreeMap::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = open.get(&ordinal).and_then(Weak::upgrade) {
            return Ok(gpu);
        }
        let gpu = Self::open_anew(ordinal)?;
        open.insert(ordinal, Arc::downgrade(&gpu));
        Ok(gpu)
    }

    fn open_anew(ordinal: usize) -> Result<Arc<Self>> {
        let count = CudaContext::device_count().map_err(opening)?;
        if ordinal >= usize::try_from(count).unwrap_or(0) {
            return Err(Error::NoDevice(format!("device {ordinal} was asked for, and the driver lists {count}")));
        }
        Self::in_context(CudaContext::new(ordinal).map_err(opening)?)
    }

    fn in_context(context: Arc<CudaContext>) -> Result<Arc<Self>> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as SHARED,
            CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
        };
        let capability = context.compute_capability().map_err(opening)?;
        if capability < (8, 0) {
            let (major, minor) = capability;
            return Err(Error::NoDevice(format!(
                "device {} has compute capability {major}.{minor}; the kernels need 8.0 or newer",
                context.ordinal()
            )));
        }
        let shared_limit = context.attribute(SHARED).map_err(opening)?.max(0) as usize;
        let multiprocessors = context.attribute(MULTIPROCESSORS).map_err(opening)?.max(1) as usize;
        let stream = context.new_stream().map_err(opening)?;
        let side = context.new_stream().map_err(opening)?;
        let copies = context.new_stream().map_err(opening)?;
        let workspace = || {
            // SAFETY: cuBLASLt writes its workspace before it reads it.
            unsafe { stream.alloc::<u8>(WORKSPACE) }.map_err(|error| memory(&context, WORKSPACE, error))
        };
        let owned = [workspace()?, workspace()?];
        let workspaces = [address(&owned[0], &stream), address(&owned[1], &stream)];
        stream.synchronize().map_err(opening)?;
        let handle =
            lt::create_handle().map_err(|error| Error::Gpu { what: "opening cuBLASLt", reason: error.to_string() })?;
        let gpu = Self {
            stream,
            side,
            copies,
            functions: Mutex::default(),
            modules: Mutex::default(),
            handle,
            _workspaces: owned,
            workspaces,
            shared_limit,
            multiprocessors,
            context,
        };
        // An old driver refuses the images here and not in the middle of a task.
        gpu.function(Source::Step, "reduce_sums")?;
        Ok(Arc::new(gpu))
    }

    /// The device's name, as its driver gives it.
    pub fn name(&self) -> Result<String> {
        self.context.name().map_err(failed("asking for the device's name"))
    }

    /// The device's name among all devices, as the driver's management library knows it: `GPU-` and 32 hex digits in groups of
    /// 8, 4, 4, 4 and 12.
    pub fn uuid(&self) -> Result<String> {
        let uuid = self.context.uuid().map_err(failed("asking for the device's UUID"))?;
        let digits: String = uuid.bytes.iter().map(|byte| format!("{:02x}", *byte as u8)).collect();
        let [a, b, c, d, e] = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
        Ok(format!("GPU-{a}-{b}-{c}-{d}-{e}"))
    }

    /// Major and minor compute capability.
    pub fn compute_capability(&self) -> Result<(i32, i32)> {
        self.context.compute_capability().map_err(failed("asking for the compute capability"))
    }

    /// Bytes of device memory: free and in all.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(failed("asking for the device's memory"))
    }

    /// Waits for everything that was started, and reports what failed on the way.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(failed("waiting for the device"))
    }

    pub(super) fn handle(&self) -> lt_sys::cublasLtHandle_t {
        self.handle
    }

    /// cuBLASLt's workspace on a stream.
    pub(super) fn workspace(&self, on: On) -> (Address, usize) {
        (self.workspaces[on as usize], WORKSPACE)
    }

    pub(super) fn stream(&self, on: On) -> &Arc<CudaStream> {
        match on {
            On::Main => &self.stream,
            On::Side => &self.side,
        }
    }

    /// Bytes of device memory with whatever they held.
    pub(super) fn alloc(&self, bytes: usize) -> Result<CudaSlice<u8>> {
        // SAFETY: any bytes are valid u8s; what reads them was written before.
        unsafe { self.stream.alloc::<u8>(bytes.max(1)) }.map_err(|error| memory(&self.context, bytes, error))
    }

    /// Bytes of device memory, all zero.
    pub(super) fn zeros(&self, bytes: usize) -> Result<CudaSlice<u8>> {
        self.stream.alloc_zeros::<u8>(bytes.max(1)).map_err(|error| memory(&self.context, bytes, error))
    }

    /// A copy of the values on the device.
    pub(super) fn upload(&self, values: &[f32]) -> Result<CudaSlice<f32>> {
        self.stream.clone_htod(values).map_err(|error| memory(&self.context, std::mem::size_of_val(values), error))
    }

    pub(super) fn function(&self, source: Source, name: &str) -> Result<CudaFunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (source, name.to_owned());
        if let Some(function) = functions.get(&key) {
            return Ok(function.clone());
        }
        let module = self.module(source)?;
        let function = module.load_function(name).map_err(failed("finding a kernel"))?;
        if matches!(source, Source::Fused(_) | Source::Attention | Source::Gradients) {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // The kernel's own variables share the limit.
            let own = function.shared_size_bytes().map_err(failed("asking about a kernel"))?;
            let limit = self.shared_limit as i32 - own;
            function.set_attribute(attribute, limit).map_err(failed("raising a kernel's shared memory"))?;
        }
        functions.insert(key, function.clone());
        Ok(function)
    }

    fn module(&self, source: Source) -> Result<Arc<CudaModule>> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(&source) {
            return Ok(module.clone());
        }
        let Some(image) = source.image() else {
            return Err(Error::Gpu { what: "loading kernels", reason: format!("{source:?} was not compiled") });
        };
        let module = self.context.load_module(Ptx::from_binary(image.to_vec())).map_err(loading)?;
        modules.insert(source, module.clone());
        Ok(module)
    }

    /// Lets the side stream go on from where the main one is.
    pub(super) fn fork(&self) -> Result<()> {
        self.side.join(&self.stream).map_err(failed("forking a stream"))
    }

    /// Lets the main stream wait for the side stream.
    pub(super) fn join(&self) -> Result<()> {
        self.stream.join(&self.side).map_err(failed("joining a stream"))
    }

    /// What `work` starts on the main stream, and on the side stream between fork and join, to be started again as one.
    pub(super) fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
        const WHAT: &str = "capturing a graph";
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(failed(WHAT))?;
        let captured = work();
        // Ended whether the work could be started or not.
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0)).map_err(failed(WHAT));
        captured?;
        graph?.ok_or(Error::Gpu { what: WHAT, reason: "nothing was captured".into() })
    }

    /// Starts a kernel.
    ///
    /// # Safety
    /// The arguments must be the kernel's, in order and type, with addresses that hold what it reads and writes.
    pub(super) unsafe fn launch(
        &self,
        on: On,
        function: &CudaFunction,
        grid: Grid,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        let Grid { blocks, threads, shared } = grid;
        // SAFETY: the caller's promise.
        unsafe { self.launch_on(self.stream(on), function, blocks, (threads, 1), shared, arguments) }
    }

    /// Starts a kernel on any stream of the device, on blocks of `threads` (x, y).
    ///
    /// # Safety
    /// As [`Self::launch`].
    pub(super) unsafe fn launch_on(
        &self,
        stream: &CudaStream,
        function: &CudaFunction,
        blocks: (u32, u32, u32),
        (x, y): (u32, u32),
        shared: u32,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        self.context.bind_to_thread().map_err(failed("using the device"))?;
        // SAFETY: the caller's promise.
        unsafe {
            result::launch_kernel(function.cu_function(), blocks, (x, y, 1), shared, stream.cu_stream(), arguments)
        }
        .map_err(failed("starting a kernel"))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: the handle is this value's own, and nobody can use it any more. An error has nobody to go to.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum On {
    Main = 0,
    Side = 1,
}

/// How a kernel is started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) blocks: (u32, u32, u32),
    pub(super) threads: u32,
    /// Bytes of dynamic shared memory.
    pub(super) shared: u32,
}

impl Grid {
    /// Blocks of 256 threads, one a value, but no more than loops over the values need to fill a device.
    pub(super) fn over(values: usize) -> Self {
        Self { blocks: (values.div_ceil(256).clamp(1, 8192) as u32, 1, 1), threads: 256, shared: 0 }
    }
}

/// Starts a kernel with the given arguments: each a variable of the type that the kernel declares.
macro_rules! launch {
    ($gpu:expr, $on:expr, $function:expr, $grid:expr, [$($argument:expr),* $(,)?]) => {{
        let mut arguments = [$(std::ptr::from_ref(&$argument).cast_mut().cast::<std::ffi::c_void>()),*];
        $gpu.launch($on, &$function, $grid, &mut arguments)
    }};
}
pub(super) use launch;

/// As [`launch`] on any stream of the device.
macro_rules! launch_on {
    ($gpu:expr, $stream:expr, $function:expr, $grid:expr, [$($argument:expr),* $(,)?]) => {{
        let Grid { blocks, threads, shared } = $grid;
        let mut arguments = [$(std::ptr::from_ref(&$argument).cast_mut().cast::<std::ffi::c_void>()),*];
        $gpu.launch_on($stream, &$function, blocks, (threads, 1), shared, &mut arguments)
    }};
}
pub(super) use launch_on;

/// Where a slice lies. Not to be asked while a stream is captured: cudarc may wait for the slice's events.
pub(super) fn address<T>(slice: &impl DevicePtr<T>, stream: &CudaStream) -> Address {
    slice.device_ptr(stream).0
}

/// What the driver says when a device is opened.
fn opening(error: DriverError) -> Error {
    use sys::CUresult::{CUDA_ERROR_NO_DEVICE, CUDA_ERROR_SYSTEM_DRIVER_MISMATCH};
    match error.0 {
        CUDA_ERROR_NO_DEVICE => Error::NoDevice("the driver lists none".into()),
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => Error::OldDriver(error.to_string()),
        _ => Error::Gpu { what: "opening the device", reason: error.to_string() },
    }
}

fn loading(error: DriverError) -> Error {
    use sys::CUresult::{CUDA_ERROR_INVALID_IMAGE, CUDA_ERROR_NO_BINARY_FOR_GPU, CUDA_ERROR_UNSUPPORTED_PTX_VERSION};
    match error.0 {
        CUDA_ERROR_NO_BINARY_FOR_GPU | CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUDA_ERROR_INVALID_IMAGE => {
            Error::OldDriver(error.to_string())
        }
        _ => Error::Gpu { what: "loading kernels", reason: error.to_string() },
    }
}

/// An allocation that failed.
pub(super) fn memory(context: &CudaContext, bytes: usize, error: DriverError) -> Error {
    match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            Error::OutOfMemory { bytes, free: context.mem_get_info().ok().map(|(free, _)| free) }
        }
        _ => Error::Gpu { what: "allocating memory", reason: error.to_string() },
    }
}

/// Any other failure, which the device may not recover from.
pub(super) fn failed(what: &'static str) -> impl Fn(DriverError) -> Error {
    move |error| Error::Gpu { what, reason: error.to_string() }
}
