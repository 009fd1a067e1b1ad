//! A block's weights on the device: the f32 arena, and what the products read.

use std::sync::Arc;

use cudarc::driver::CudaSlice;

use super::fused;
use super::gpu::{Address, Gpu, Grid, On, Source, address, launch};
use super::kept;
use super::product::Type;
use crate::error::Result;
use crate::parameters::Parameters;
use crate::shape::BlockShape;

/// Values from which the optimiser has enough threads when each takes 4.
const MANY_VALUES: i64 = 1 << 19;

/// Where the tensors lie in the arena, and the parts that their gradients are made of. Mirrors `Arena` of
/// `cuda/optimiser.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Arena {
    pub(super) up_bias: i64,
    pub(super) taps: i64,
    pub(super) out: i64,
    pub(super) out_bias: i64,
    pub(super) pool: i64,
    pub(super) pool_bias: i64,
    pub(super) end: i64,
    pub(super) channels: i32,
    pub(super) inner: i32,
    pub(super) taps_count: i32,
    pub(super) batch: i32,
    pub(super) up_parts: Address,
    pub(super) middle_bias_parts: Address,
    pub(super) middle_taps_parts: Address,
    pub(super) out_parts: Address,
    pub(super) up_count: i32,
    pub(super) middle_count: i32,
    pub(super) out_count: i32,
    pub(super) unused: i32,
    pub(super) output_sums: Address,
    pub(super) means: Address,
}

const _: () = assert!(size_of::<Arena>() == 136, "cuda/optimiser.cu says the same");
const _: () = assert!(size_of::<Prepared>() == 56, "cuda/optimiser.cu says the same");

impl Arena {
    pub(super) fn new(shape: &BlockShape) -> Self {
        let lengths: Vec<i64> = shape.tensors().iter().map(|tensor| tensor.len() as i64).collect();
        let scales = shape.scales().len();
        let up_bias = lengths[0];
        let taps = up_bias + lengths[1];
        let out = taps + lengths[2..2 + scales].iter().sum::<i64>();
        let out_bias = out + lengths[2 + scales];
        let pool = out_bias + lengths[3 + scales];
        let pool_bias = pool + lengths[4 + scales];
        Self {
            up_bias,
            taps,
            out,
            out_bias,
            pool,
            pool_bias,
            end: pool_bias + lengths[5 + scales],
            channels: shape.channels() as i32,
            inner: shape.inner() as i32,
            taps_count: (shape.kernel_size() * shape.kernel_size()) as i32,
            ..Self::default()
        }
    }

    /// Values of the arena.
    pub(super) fn len(&self) -> usize {
        self.end as usize
    }

    /// How many neighbours the optimiser takes in one access: 4 where all tensors and their rows begin at multiples of
    /// that and so many threads still fill a device, else 1.
    pub(super) fn lanes(&self) -> usize {
        let Self { up_bias, taps, out, out_bias, pool, pool_bias, end, .. } = *self;
        let starts = [up_bias, taps, out, out_bias, pool, pool_bias, end];
        let rows = [self.channels, self.inner];
        let even = starts.iter().all(|start| start % 4 == 0) && rows.iter().all(|row| row % 4 == 0);
        if even && end >= MANY_VALUES { 4 } else { 1 }
    }
}

/// Mirrors `Prepared` of `cuda/optimiser.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Prepared {
    pub(super) up: Address,
    pub(super) taps: Address,
    pub(super) out: Address,
    pub(super) pool: Address,
    upright: Address,
    turned: Address,
    kernel: i32,
    left: i32,
}

impl Prepared {
    /// The taps in the plain and in the fused kernels' form.
    pub(super) fn taps(self) -> Taps {
        let Self { taps: plain, upright, turned, .. } = self;
        Taps { plain, upright, turned }
    }
}

/// Where the taps lie, [S, d, K, K], and as bands [S, d, K, 64] where there are fused kernels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taps {
    pub(super) plain: Address,
    pub(super) upright: Address,
    pub(super) turned: Address,
}

/// The weights of a block on the device.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) arena: Arena,
    values: CudaSlice<f32>,
    _prepared: CudaSlice<u8>,
    pub(super) prepared: Prepared,
    pub(super) at: Address,
}

impl Weights {
    pub(super) fn new(gpu: &Arc<Gpu>, weights: &Parameters, kind: Type) -> Result<Self> {
        let arena = Arena::new(weights.shape());
        let values = gpu.upload(weights.values())?;
        let padded = |length: i64| (length as usize * kind.bytes()).next_multiple_of(256);
        let lengths = [arena.up_bias, arena.out - arena.taps, arena.out_bias - arena.out, arena.pool_bias - arena.pool]
            .map(padded);
        let kernel = weights.shape().kernel_size();
        let fused = kind == Type::Bf16 && fused::fits(weights.shape());
        let bands = if fused { weights.shape().scales().len() * weights.shape().inner() * kernel * 128 } else { 0 };
        let prepared = gpu.zeros(lengths.iter().sum::<usize>() + 2 * bands)?;
        let up = address(&prepared, &gpu.stream);
        let taps = up + lengths[0] as u64;
        let out = taps + lengths[1] as u64;
        let pool = out + lengths[2] as u64;
        let at = address(&values, &gpu.stream);
        let upright = if fused { pool + lengths[3] as u64 } else { 0 };
        let turned = if fused { upright + bands as u64 } else { 0 };
        let (kernel, left) = (kernel as i32, fused::left(kernel) as i32);
        let addresses = Prepared { up, taps, out, pool, upright, turned, kernel, left };
        let weights = Self { arena, values, _prepared: prepared, prepared: addresses, at };
        weights.prepare(gpu, kind)?;
        Ok(weights)
    }

    /// Rewrites what the products read.
    fn prepare(&self, gpu: &Gpu, kind: Type) -> Result<()> {
        let function = gpu.function(Source::Optimiser, &format!("prepare_{}", suffix(kind)))?;
        // SAFETY: both buffers have the arena's lengths.
        unsafe { launch!(gpu, On::Main, function, Grid::over(self.arena.len()), [self.arena, self.at, self.prepared]) }
    }

    /// The address of conv_up's bias, conv_out's bias and conv_pool's bias.
    pub(super) fn biases(&self) -> [Address; 3] {
        [self.arena.up_bias, self.arena.out_bias, self.arena.pool_bias].map(|offset| self.at + 4 * offset as u64)
    }

    pub(super) fn values(&self) -> &CudaSlice<f32> {
        &self.values
    }

    /// Takes the values of an arena on the device.
    pub(super) fn set(&mut self, gpu: &Gpu, values: &CudaSlice<f32>, kind: Type) -> Result<()> {
        kept::copy(gpu, values, &mut self.values)?;
        self.prepare(gpu, kind)
    }
}

/// The ending of the kernels for a type.
pub(super) fn suffix(kind: Type) -> &'static str {
    match kind {
        Type::F32 => "f32",
        Type::Bf16 => "bf16",
        Type::F16 => "f16",
    }
}
