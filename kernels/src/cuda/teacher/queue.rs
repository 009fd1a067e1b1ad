use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use candle_core::cuda_backend::DeviceId;
use candle_core::{CpuStorage, CudaDevice, DType, Device, Storage, Tensor};
use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, PinnedHostSlice, result, sys};
use half::{bf16, f16};
use rayon::prelude::*;

use super::super::gpu::{Address, Gpu, Source, WORKSPACE, address, failed};
use super::super::product::{Epilogue, Matrix, Operands, Product, Shape, Type};
use super::super::tensor::{self, View};
use super::super::weights::suffix;
use crate::error::{Error, Result};

/// Buffers for what is sent to the device: two batches' inputs.
const SENDING: usize = 16;

/// The stream of a candle device, on which a teacher's operations run in the order of their calls. They are started and
/// not waited for; reading a tensor waits, and reports what failed.
pub struct Queue {
    pub(super) gpu: Arc<Gpu>,
    pub(super) device: Device,
    pub(super) stream: Arc<CudaStream>,
    _workspace: CudaSlice<u8>,
    workspace: Address,
    products: Mutex<HashMap<Shape, Product>>,
    /// Buffers of downloads that are done: to lock pages takes longer than to copy what they hold.
    buffers: Mutex<Vec<PinnedHostSlice<f16>>>,
    /// What is on its way to the device, or was, and when it has arrived.
    sending: Mutex<Vec<(PinnedHostSlice<u8>, CudaEvent)>>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("gpu", &self.gpu).finish_non_exhaustive()
    }
}

/// y [batch, rows, output] = epilogue(x [batch, rows, input] · weightᵀ + residual), weight [output, input]; or, the way back,
/// of x · weight, weight [input, output].
pub(super) struct Multiplication {
    pub(super) kind: Type,
    pub(super) batch: usize,
    pub(super) rows: usize,
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) epilogue: Epilogue,
    pub(super) back: bool,
    pub(super) x: Address,
    pub(super) weight: Address,
    /// [batch, output]; not read without an epilogue.
    pub(super) bias: Address,
    /// As y.
    pub(super) residual: Option<Address>,
    pub(super) y: Address,
}

impl Queue {
    /// The queue of `device`: the one that is open already, where something still holds it.
    ///
    /// # Errors
    /// A device that is no CUDA device, and whatever the driver refuses.
    pub fn of(device: &Device) -> Result<Arc<Self>> {
        static OPEN: Mutex<Vec<(DeviceId, Weak<Queue>)>> = Mutex::new(Vec::new());
        let Device::Cuda(cuda) = device else {
            return Err(Error::NoDevice("a teacher's queue was asked for on the processor".into()));
        };
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let found = open.iter().find(|(id, _)| *id == cuda.id());
        if let Some(queue) = found.and_then(|(_, queue)| queue.upgrade()) {
            return Ok(queue);
        }
        open.retain(|(_, queue)| queue.strong_count() > 0);
        let queue = Self::open(cuda, device)?;
        open.push((cuda.id(), Arc::downgrade(&queue)));
        Ok(queue)
    }

    fn open(cuda: &CudaDevice, device: &Device) -> Result<Arc<Self>> {
        let stream = cuda.cuda_stream();
        let gpu = Gpu::open(stream.context().ordinal())?;
        keep_freed_memory(&stream)?;
        let workspace = gpu.alloc(WORKSPACE)?;
        let at = address(&workspace, &gpu.stream);
        gpu.synchronize()?;
        Ok(Arc::new(Self {
            gpu,
            device: device.clone(),
            stream,
            _workspace: workspace,
            workspace: at,
            products: Mutex::default(),
            buffers: Mutex::default(),
            sending: Mutex::default(),
        }))
    }

    /// A tensor of these values, row-major, rounded to `dtype`.
    ///
    /// # Errors
    /// A dtype that no teacher is held in; too little memory.
    pub fn parameters(&self, values: &[f32], dims: &[usize], dtype: DType) -> Result<Tensor> {
        let tensor = match kind(dtype, "weight")? {
            Type::F32 => Tensor::from_slice(values, dims, &self.device),
            Type::Bf16 => {
                let values: Vec<bf16> = values.iter().map(|value| bf16::from_f32(*value)).collect();
                Tensor::from_vec(values, dims, &self.device)
            }
            Type::F16 => {
                let values: Vec<f16> = values.iter().map(|value| f16::from_f32(*value)).collect();
                Tensor::from_vec(values, dims, &self.device)
            }
        };
        let bytes = values.len() * dtype.size_in_bytes();
        tensor.map_err(|error| Error::of_candle("copying weights to the device", bytes, &error))
    }

    /// Page-locked host memory for so many values or more, with whatever it held.
    pub(super) fn buffer(&self, values: usize) -> Result<PinnedHostSlice<f16>> {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let large = buffers.iter().enumerate().filter(|(_, buffer)| buffer.len() >= values);
        if let Some((index, _)) = large.min_by_key(|(_, buffer)| buffer.len()) {
            return Ok(buffers.swap_remove(index));
        }
        // Those of another model, or of smaller batches.
        buffers.clear();
        // SAFETY: read only after a copy has filled it. Flags 0: for the processor to read, so not write-combined.
        let buffer = unsafe { self.gpu.context.alloc_pinned_with_flags::<f16>(values, 0) };
        buffer.map_err(failed("allocating page-locked host memory"))
    }

    /// Takes buffers back that nothing is copied to any more.
    pub(super) fn keep(&self, buffers: impl IntoIterator<Item = PinnedHostSlice<f16>>) {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).extend(buffers);
    }

    /// A tensor in host memory on the device, rounded to `dtype`. Behind what was started before, and without waiting for it,
    /// as a copy from pageable memory would.
    ///
    /// # Errors
    /// A tensor that is not in host memory, f32 and contiguous; a dtype that no teacher is held in; too little memory.
    pub fn send(&self, tensor: &Tensor, dtype: DType) -> Result<Tensor> {
        const WHAT: &str = "copying a tensor to the device";
        let kind = kind(dtype, "tensor")?;
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets())
        else {
            let (found, expected) =
                (format!("{:?}, {layout:?}", tensor.dtype()), "contiguous F32 in host memory".into());
            return Err(Error::Tensor { what: "tensor", found, expected });
        };
        let values = &values[start..end];
        let (sent, at) = self.empty(tensor.dims(), kind)?;
        let bytes = values.len() * kind.bytes();

        let mut sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let known = sending.iter().position(|(buffer, arrived)| buffer.len() == bytes && arrived.is_complete());
        let mut buffer = match known {
            Some(index) => sending.remove(index).0,
            None => {
                if sending.len() == SENDING {
                    // The oldest. Its memory must not go before it has arrived.
                    sending.remove(0).1.synchronize().map_err(failed(WHAT))?;
                }
                // SAFETY: written before it is read.
                unsafe { self.gpu.context.alloc_pinned_with_flags::<u8>(bytes, 0) }
                    .map_err(failed("allocating page-locked host memory"))?
            }
        };
        let target = buffer.as_mut_slice().map_err(failed(WHAT))?;
        round_into(values, kind, target);
        self.gpu.context.bind_to_thread().map_err(failed(WHAT))?;
        // SAFETY: the tensor has as many bytes as the buffer, which is kept until they have arrived.
        unsafe { result::memcpy_htod_async(at, target, self.stream.cu_stream()) }.map_err(failed(WHAT))?;
        sending.push((buffer, self.stream.record_event(None).map_err(failed(WHAT))?));
        Ok(sent)
    }

    /// A tensor with whatever its memory held, and where it lies.
    pub(super) fn empty(&self, dims: &[usize], kind: Type) -> Result<(Tensor, Address)> {
        let tensor = tensor::empty(dims, tensor::dtype(kind), &self.device)?;
        let at = operand(&tensor, "result")?.0.at;
        Ok((tensor, at))
    }

    /// Starts a kernel on blocks of `threads` (x, y).
    ///
    /// # Safety
    /// The arguments must be the kernel's, in order and type, with addresses that hold what it reads and writes.
    pub(super) unsafe fn launch(
        &self,
        (source, name): (Source, &str),
        blocks: (usize, usize, usize),
        threads: (usize, usize),
        shared: usize,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        let function = self.gpu.function(source, name)?;
        let blocks = (blocks.0 as u32, blocks.1 as u32, blocks.2 as u32);
        let threads = (threads.0 as u32, threads.1 as u32);
        // SAFETY: the caller's promise.
        unsafe { self.gpu.launch_on(&self.stream, &function, blocks, threads, shared as u32, arguments) }
    }

    /// Starts a product.
    ///
    /// # Safety
    /// The addresses must hold matrices of the multiplication's sizes.
    pub(super) unsafe fn multiply(&self, multiplication: &Multiplication) -> Result<()> {
        let Multiplication { kind, batch, rows, input, output, epilogue, back, x, weight, bias, residual, y } =
            *multiplication;
        let matrix =
            |rows, columns, stride, transposed| Matrix { rows, columns, leading: rows, stride, kind, transposed };
        // Column-major: yᵀ = weight · xᵀ.
        let shape = Shape {
            a: if back { matrix(output, input, 0, false) } else { matrix(input, output, 0, true) },
            b: matrix(input, rows, rows * input, false),
            d: matrix(output, rows, rows * output, false),
            batch,
            epilogue,
        };
        let mut products = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        let product = match products.entry(shape) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Product::new(&self.gpu, shape)?),
        };
        let beta = if residual.is_some() { 1.0 } else { 0.0 };
        let operands = Operands { a: weight, b: x, c: residual.unwrap_or(y), d: y, bias, alpha: 1.0, beta };
        self.gpu.context.bind_to_thread().map_err(failed("using the device"))?;
        // SAFETY: the caller's promise; the workspace is this stream's own.
        unsafe { product.run_on(&self.gpu, &self.stream, (self.workspace, WORKSPACE), operands) }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // What is on its way reads the buffers. An error has nobody to go to.
        let _ = self.stream.synchronize();
    }
}

/// Tells the device's pool to keep what is freed for what is allocated next, instead of giving it back at every wait.
fn keep_freed_memory(stream: &CudaStream) -> Result<()> {
    let what = "setting up the memory pool";
    let device = result::device::get(stream.context().ordinal() as i32).map_err(failed(what))?;
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device exists, and the attribute is a u64, which is copied.
    unsafe {
        let pool = result::device::get_default_mem_pool(device).map_err(failed(what))?;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()).result().map_err(failed(what))
    }
}

/// Writes values in a type's bytes, in parallel.
fn round_into(values: &[f32], kind: Type, bytes: &mut [u8]) {
    /// Values that one thread takes.
    const CHUNK: usize = 1 << 16;
    fn each<const N: usize>(values: &[f32], bytes: &mut [u8], round: impl Fn(f32) -> [u8; N] + Sync) {
        let (targets, _) = bytes.as_chunks_mut::<N>();
        values.par_chunks(CHUNK).zip(targets.par_chunks_mut(CHUNK)).for_each(|(values, targets)| {
            for (value, target) in values.iter().zip(targets) {
                *target = round(*value);
            }
        });
    }
    match kind {
        Type::F32 => each(values, bytes, f32::to_ne_bytes),
        Type::Bf16 => each(values, bytes, |value| bf16::from_f32(value).to_ne_bytes()),
        Type::F16 => each(values, bytes, |value| f16::from_f32(value).to_ne_bytes()),
    }
}

/// The type of a teacher's tensors.
pub(super) fn kind(dtype: DType, what: &'static str) -> Result<Type> {
    match dtype {
        DType::F32 => Ok(Type::F32),
        DType::BF16 => Ok(Type::Bf16),
        DType::F16 => Ok(Type::F16),
        other => Err(Error::Tensor { what, found: format!("{other:?}"), expected: "F32, BF16 or F16".to_owned() }),
    }
}

/// A tensor with its type.
pub(super) fn operand(tensor: &Tensor, what: &'static str) -> Result<(View, Type)> {
    let view = View::new(tensor, what)?;
    let kind = kind(view.dtype, what)?;
    Ok((view, kind))
}

/// Refuses a tensor of another shape or dtype.
pub(super) fn expect(view: &View, what: &'static str, dims: &[usize], kind: Type) -> Result<Address> {
    if view.dims != dims {
        let (found, expected) = (format!("{:?}", view.dims), format!("{dims:?}"));
        return Err(Error::Tensor { what, found, expected });
    }
    view.address(kind)
}

/// B and the positions of a sample, of a map [B, .., channels].
pub(super) fn positions(view: &View, what: &'static str, channels: usize) -> Result<(usize, usize)> {
    match *view.dims {
        [batch, ref middle @ .., last] if last == channels => Ok((batch, middle.iter().product())),
        ref dims => {
            let (found, expected) = (format!("{dims:?}"), format!("[B, .., {channels}]"));
            Err(Error::Tensor { what, found, expected })
        }
    }
}

/// Blocks of 256 threads for loops over so many values.
pub(super) fn blocks_over(values: usize) -> (usize, usize, usize) {
    (values.div_ceil(256).clamp(1, 1 << 16), 1, 1)
}

/// The ending of the kernels for a type over vectors, and the values of one: single ones where `channels` are no multiple.
pub(super) fn vectors(kind: Type, channels: usize) -> (String, usize) {
    let lanes = 16 / kind.bytes();
    match channels.is_multiple_of(lanes) {
        true => (suffix(kind).to_owned(), lanes),
        false => (format!("{}_single", suffix(kind)), 1),
    }
}

/// Starts a kernel of a queue with the given arguments: each a variable of the type that the kernel declares.
macro_rules! start {
    ($queue:expr, $kernel:expr, $blocks:expr, $threads:expr, $shared:expr, [$($argument:expr),* $(,)?]) => {{
        let mut arguments = [$(std::ptr::from_ref(&$argument).cast_mut().cast::<std::ffi::c_void>()),*];
        $queue.launch($kernel, $blocks, $threads, $shared, &mut arguments)
    }};
}
pub(super) use start;
