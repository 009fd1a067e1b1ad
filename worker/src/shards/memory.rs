//! Memory that numbers of shards are kept in: of the host, page-locked where a GPU reads it, or of the GPU.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(feature = "cuda")]
use deltaconv_kernels::cuda::{self, HostMemory};
use deltaconv_proto::objects::PART;
use half::f16;

use crate::accelerator::Accelerator;
use crate::task::Error;

/// Numbers in a whole part.
const OF_PART: usize = PART / 2;

/// What a part of a shard is read into.
#[derive(Debug)]
pub(crate) struct Buffer {
    numbers: Numbers,
    bytes: usize,
}

#[derive(Debug)]
enum Numbers {
    Plain(Vec<f16>),
    #[cfg(feature = "cuda")]
    Locked(HostMemory),
}

/// Buffers that can be used again: to lock pages takes longer than to read into them.
#[derive(Debug)]
pub(crate) struct Pool {
    accelerator: Accelerator,
    free: Mutex<Vec<Numbers>>,
}

impl Pool {
    pub(crate) fn new(accelerator: &Accelerator) -> Self {
        Self { accelerator: accelerator.clone(), free: Mutex::default() }
    }

    /// For so many bytes, with whatever it held.
    pub(crate) fn buffer(&self, bytes: usize) -> Buffer {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = free.iter().position(|numbers| numbers.as_slice().len() >= bytes.div_ceil(2));
        let numbers = fits.map(|index| free.swap_remove(index));
        drop(free);
        Buffer { numbers: numbers.unwrap_or_else(|| Numbers::new(bytes.div_ceil(2), &self.accelerator)), bytes }
    }

    /// Takes a buffer back that nothing reads any more.
    pub(crate) fn give_back(&self, buffer: Buffer) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(buffer.numbers);
    }
}

impl Numbers {
    /// Page-locked where there is a GPU, as long as the system lets it.
    fn new(numbers: usize, accelerator: &Accelerator) -> Self {
        #[cfg(feature = "cuda")]
        if let Accelerator::Cuda(cuda) = accelerator
            && let Ok(memory) = HostMemory::new(&cuda.gpu, numbers)
        {
            return Self::Locked(memory);
        }
        #[cfg(not(feature = "cuda"))]
        let Accelerator::None = accelerator;
        Self::Plain(vec![f16::ZERO; numbers])
    }

    fn as_slice(&self) -> &[f16] {
        match self {
            Self::Plain(numbers) => numbers,
            #[cfg(feature = "cuda")]
            Self::Locked(memory) => memory.as_slice(),
        }
    }

    fn as_mut_slice(&mut self) -> &mut [f16] {
        match self {
            Self::Plain(numbers) => numbers,
            #[cfg(feature = "cuda")]
            Self::Locked(memory) => memory.as_mut_slice(),
        }
    }
}

impl Buffer {
    /// For so many bytes, without page-locks.
    pub(super) fn plain(bytes: usize) -> Self {
        Self { numbers: Numbers::Plain(vec![f16::ZERO; bytes.div_ceil(2)]), bytes }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(self.numbers.as_slice())[..self.bytes]
    }

    /// The numbers; half of one where the bytes are odd, and zeros where the object ends, are not among them.
    pub(super) fn numbers(&self) -> &[f16] {
        &self.numbers.as_slice()[..self.bytes / 2]
    }

    pub(super) fn numbers_mut(&mut self) -> &mut [f16] {
        let numbers = self.bytes / 2;
        &mut self.numbers.as_mut_slice()[..numbers]
    }

    pub(super) fn keep(self) -> Memory {
        match self.numbers {
            Numbers::Plain(numbers) => Memory::Plain(Arc::new(numbers)),
            #[cfg(feature = "cuda")]
            Numbers::Locked(memory) => Memory::Cuda(Arc::new(cuda::Memory::Host(memory))),
        }
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(self.numbers.as_mut_slice())[..self.bytes]
    }
}

/// Numbers that stay. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Memory {
    /// Of the host.
    Plain(Arc<Vec<f16>>),
    /// That a GPU can read.
    #[cfg(feature = "cuda")]
    Cuda(Arc<cuda::Memory>),
}

impl Memory {
    /// The numbers, if the processor can read them.
    pub(crate) fn numbers(&self) -> Option<&[f16]> {
        match self {
            Self::Plain(numbers) => Some(numbers),
            #[cfg(feature = "cuda")]
            Self::Cuda(memory) => match &**memory {
                cuda::Memory::Host(memory) => Some(memory.as_slice()),
                cuda::Memory::Device(_) => None,
            },
        }
    }
}

/// Some numbers that lie side by side.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) memory: Memory,
    pub(crate) at: Range<usize>,
}

impl Piece {
    /// The numbers, if the processor can read them.
    pub(crate) fn numbers(&self) -> Option<&[f16]> {
        Some(&self.memory.numbers()?[self.at.clone()])
    }

    /// The same numbers where the processor can read them: a copy of what lies in a GPU's memory.
    pub(super) fn on_host(self, accelerator: &Accelerator) -> Result<Self, Error> {
        #[cfg(feature = "cuda")]
        if let (Accelerator::Cuda(of), Memory::Cuda(memory)) = (accelerator, &self.memory)
            && let cuda::Memory::Device(device) = &**memory
        {
            let numbers = device.read(&of.gpu, self.at.clone()).inspect_err(|error| of.note(error))?;
            let at = 0..numbers.len();
            return Ok(Self { memory: Memory::Plain(Arc::new(numbers)), at });
        }
        #[cfg(not(feature = "cuda"))]
        let Accelerator::None = accelerator;
        Ok(self)
    }
}

/// The parts of an object that hold its numbers `range`, and which of each.
pub(super) fn cut(range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let of = range.start / OF_PART..range.end.div_ceil(OF_PART);
    of.map(move |index| {
        let first = index * OF_PART;
        (index, range.start.saturating_sub(first)..(range.end - first).min(OF_PART))
    })
}

/// The pieces that hold numbers `range` of an object whose parts are `parts`.
pub(super) fn pieces(parts: &[Memory], range: Range<usize>) -> impl Iterator<Item = Piece> {
    cut(range).map(|(index, at)| Piece { memory: parts[index].clone(), at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_the_parts() {
        let parts: Vec<Memory> = (0..3).map(|_| Memory::Plain(Arc::new(vec![f16::ZERO; OF_PART]))).collect();
        let found = |range| pieces(&parts, range).map(|piece| (piece.at.start, piece.at.end)).collect::<Vec<_>>();
        assert_eq!(found(5..9), [(5, 9)]);
        assert_eq!(found(OF_PART - 2..OF_PART), [(OF_PART - 2, OF_PART)]);
        assert_eq!(found(OF_PART - 2..2 * OF_PART + 3), [(OF_PART - 2, OF_PART), (0, OF_PART), (0, 3)]);
    }
}
