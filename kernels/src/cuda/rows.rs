//! Samples that lie anywhere a GPU can read: in its own memory or in page-locked memory of the host.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DriverError, PinnedHostSlice, result};
use half::f16;

use super::gpu::{self, Address, Gpu, Grid, Source, failed, launch_on};
use super::pass::Given;
use super::product::Type;
use super::trainer::Batch;
use super::weights::suffix;
use crate::error::{Error, Result};

/// Values that a thread takes at once.
const LANES: usize = 8;
/// So many blocks of 256 threads keep 256 KiB on their way, which is more than a bus needs. On an H200 (PCIe 5 ×16) they read
/// 49 GB/s beside a step; 24 blocks are up to 8 % slower, and so is the copy engine, most where pieces are small.
const BLOCKS_FROM_HOST: usize = 64;

/// Page-locked memory of the host, which the device reads at the host's addresses (CUDA's unified virtual addressing).
#[derive(Debug)]
pub struct HostMemory {
    memory: PinnedHostSlice<f16>,
    at: Address,
    values: usize,
}

impl HostMemory {
    /// For so many values, all zero.
    ///
    /// # Errors
    /// More than the system lets be locked.
    pub fn new(gpu: &Gpu, values: usize) -> Result<Self> {
        let what = failed("allocating page-locked host memory");
        // SAFETY: filled before anything reads it. Flags 0: for the processor to read, too, so not write-combined.
        let mut memory = unsafe { gpu.context.alloc_pinned_with_flags::<f16>(values.max(1), 0) }.map_err(what)?;
        let what = failed("allocating page-locked host memory");
        let all = memory.as_mut_slice().map_err(what)?;
        all.fill(f16::ZERO);
        let at = all.as_ptr() as Address;
        Ok(Self { memory, at, values })
    }

    /// The values.
    pub fn as_slice(&self) -> &[f16] {
        // No stream of cudarc's uses the memory, so there is nothing to wait for that could fail.
        self.memory.as_slice().map_or(&[], |values| &values[..self.values])
    }

    /// The values.
    pub fn as_mut_slice(&mut self) -> &mut [f16] {
        self.memory.as_mut_slice().map_or(&mut [], |values| &mut values[..self.values])
    }
}

/// Memory of the device.
#[derive(Debug)]
pub struct DeviceMemory {
    memory: CudaSlice<f16>,
    at: Address,
}

impl DeviceMemory {
    /// A copy of the values. Waits for it.
    ///
    /// # Errors
    /// Too little memory.
    pub fn copied(gpu: &Gpu, values: &[f16]) -> Result<Self> {
        // Beside the streams of a training, which goes on meanwhile.
        let stream = &gpu.copies;
        let copy = || -> std::result::Result<Self, DriverError> {
            // SAFETY: the copy fills it.
            let memory = unsafe { stream.alloc::<f16>(values.len().max(1)) }?;
            let at = gpu::address(&memory, stream);
            // SAFETY: the memory is as long as the values, which live until the copy has ended.
            unsafe { result::memcpy_htod_async(at, values, stream.cu_stream()) }?;
            stream.synchronize()?;
            Ok(Self { memory, at })
        };
        copy().map_err(|error| gpu::memory(&gpu.context, size_of_val(values), error))
    }

    /// A copy of the values in `range` on the host. Waits for it.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn read(&self, gpu: &Gpu, range: Range<usize>) -> Result<Vec<f16>> {
        let mut values = vec![f16::ZERO; range.len()];
        let copied = gpu.copies.memcpy_dtoh(&self.memory.slice(range), &mut values);
        copied.and_then(|()| gpu.copies.synchronize()).map_err(failed("reading samples"))?;
        Ok(values)
    }
}

/// What a device can read.
#[derive(Debug)]
pub enum Memory {
    /// Of the host.
    Host(HostMemory),
    /// Of the device.
    Device(DeviceMemory),
}

impl Memory {
    fn len(&self) -> usize {
        match self {
            Self::Host(memory) => memory.values,
            Self::Device(memory) => memory.memory.len(),
        }
    }

    fn at(&self) -> Address {
        match self {
            Self::Host(memory) => memory.at,
            Self::Device(memory) => memory.at,
        }
    }
}

/// Values that lie side by side.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Where they lie.
    pub memory: Arc<Memory>,
    /// The first one.
    pub start: usize,
    /// How many.
    pub len: usize,
}

/// As `Piece` of `cuda/step.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    from: Address,
    /// Where its values go, counted in values.
    to: u64,
}

/// The table of pieces for the device, with an entry behind the last one, if they have so many values.
fn table(pieces: &[Piece], values: usize, what: &'static str) -> Result<Vec<Entry>> {
    let mut to = 0;
    let mut entries = Vec::with_capacity(pieces.len() + 1);
    for Piece { memory, start, len } in pieces {
        if start.checked_add(*len).is_none_or(|end| end > memory.len()) {
            let found = format!("{len} values from {start} of {}", memory.len());
            return Err(Error::Tensor { what, found, expected: "pieces of the memory that they name".into() });
        }
        entries.push(Entry { from: memory.at() + 2 * *start as u64, to });
        to += *len as u64;
    }
    entries.push(Entry { from: 0, to });
    if to != values as u64 {
        return Err(Error::Tensor { what, found: format!("{to} values"), expected: format!("{values}") });
    }
    Ok(entries)
}

/// A batch's inputs and targets, collected beside the steps that are still running.
#[derive(Debug, Default)]
pub(super) struct Slot {
    room: Option<Room>,
    /// Where the batch lies, for a step to read.
    pub(super) at: Given,
    /// What they are collected from, which must stay until they are.
    pieces: Vec<Arc<Memory>>,
    collected: Option<CudaEvent>,
    /// When the step ended that read them.
    read: Option<CudaEvent>,
}

/// A slot's memory on the device.
#[derive(Debug)]
struct Room {
    /// Inputs, targets and gates.
    batch: [CudaSlice<u8>; 3],
    /// Of their pieces.
    tables: CudaSlice<u8>,
}

impl Slot {
    /// Collects a batch of `values` inputs and targets and of `gate_values` gates on `feed`, as `kind`, the gates in f32, and
    /// lets the device's main stream wait for it.
    pub(super) fn collect(
        &mut self,
        gpu: &Gpu,
        feed: &CudaStream,
        kind: Type,
        batch: Batch<'_, [Piece]>,
        [values, gate_values]: [usize; 2],
    ) -> Result<()> {
        let what = failed("collecting a batch");
        let Batch { x, target, gates } = batch;
        let mut tables = vec![(table(x, values, "x")?, values, kind), (table(target, values, "target")?, values, kind)];
        if let Some(gates) = gates {
            tables.push((table(gates, gate_values, "gates")?, gate_values, Type::F32));
        }
        let pieces = [x, target, gates.unwrap_or_default()];
        if let Some(collected) = self.collected.take() {
            // Its pieces and tables are nobody's any more; and the host stays at most two steps ahead.
            collected.synchronize().map_err(&what)?;
        }
        if let Some(read) = self.read.take() {
            feed.wait(&read).map_err(&what)?;
        }
        let all = || pieces.iter().flat_map(|pieces| pieces.iter());
        let from_host = all().any(|piece| matches!(*piece.memory, Memory::Host(_)));
        let bytes = tables.iter().map(|(entries, ..)| entries.len()).sum::<usize>() * size_of::<Entry>();
        let of_gates = gates.map_or(1, |_| gate_values * Type::F32.bytes());
        let room = self.room(gpu, feed, [values * kind.bytes(), values * kind.bytes(), of_gates], bytes)?;
        let at = |of: &CudaSlice<u8>| gpu::address(of, &gpu.stream);
        let places = [0, 1, 2].map(|i| at(&room.batch[i]));
        let mut table_at = at(&room.tables);
        for ((entries, values, kind), to) in tables.iter().zip(places) {
            let vectors = values.div_ceil(LANES);
            let mut grid = Grid::over(vectors);
            if from_host {
                // What is read over the bus must not keep the steps from the multiprocessors.
                grid.blocks.0 = BLOCKS_FROM_HOST.min(vectors) as u32;
            }
            let function = gpu.function(Source::Step, &format!("collect_{}", suffix(*kind)))?;
            // SAFETY: the table has that much room, and pageable memory is copied before the call returns.
            unsafe { result::memcpy_htod_async(table_at, entries, feed.cu_stream()) }.map_err(&what)?;
            let (count, length) = (entries.len() as i32 - 1, *values as i64);
            // SAFETY: the pieces lie in memory that is kept until the kernel has ended, and the buffer has the values.
            unsafe { launch_on!(gpu, feed, function, grid, [table_at, count, to, length])? };
            table_at += size_of_val(entries.as_slice()) as u64;
        }
        let collected = feed.record_event(None).map_err(&what)?;
        gpu.stream.wait(&collected).map_err(&what)?;
        let [x, target, of_gates] = places;
        self.at = Given { x, target, gates: gates.map_or(0, |_| of_gates) };
        self.collected = Some(collected);
        self.pieces = all().map(|piece| piece.memory.clone()).collect();
        Ok(())
    }

    /// Memory of these sizes in bytes, which nothing uses.
    fn room(&mut self, gpu: &Gpu, feed: &CudaStream, batch: [usize; 3], tables: usize) -> Result<&Room> {
        let room = match self.room.take() {
            Some(room) if room.tables.len() >= tables => room,
            former => {
                let batch = match former {
                    Some(room) => room.batch,
                    None => [gpu.alloc(batch[0])?, gpu.alloc(batch[1])?, gpu.alloc(batch[2])?],
                };
                let room = Room { batch, tables: gpu.alloc(tables)? };
                // Allocated in the main stream's order.
                feed.join(&gpu.stream).map_err(failed("collecting a batch"))?;
                room
            }
        };
        Ok(self.room.insert(room))
    }

    /// Takes note of when the step that was started last has read the batch.
    pub(super) fn is_read(&mut self, gpu: &Gpu) -> Result<()> {
        self.read = Some(gpu.stream.record_event(None).map_err(failed("recording an event"))?);
        Ok(())
    }

    /// Bytes of device memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.room.iter().flat_map(|room| &room.batch).map(CudaSlice::len).sum()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The pieces must outlive the copies. An error has nobody to go to.
        let _ = self.collected.take().map(|collected| collected.synchronize());
    }
}
