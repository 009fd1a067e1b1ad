//! The vector types that the kernels are written over, one per instruction set.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Channels that lie side by side in the grouped layout: one 64-byte cache line.
pub(crate) const LANES: usize = 16;

/// Sixteen neighbouring channels of one position of a map.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Group(pub(crate) [f32; LANES]);

impl Group {
    /// Sixteen zeros.
    pub(crate) const ZERO: Self = Self([0.0; LANES]);
}

/// One register of f32.
pub(crate) trait Lanes: Copy {
    /// Values in a register; divides [`LANES`].
    const WIDTH: usize;
    /// The widest register tile, in positions, whose two rows of sums stay in registers.
    const TILE_WIDTH: usize;

    /// All zero.
    fn zero() -> Self;

    /// Reads [`Lanes::WIDTH`] values.
    ///
    /// # Safety
    /// The values behind `from` are readable, and the processor has the instruction set.
    unsafe fn load(from: *const f32) -> Self;

    /// Writes [`Lanes::WIDTH`] values.
    ///
    /// # Safety
    /// The values behind `to` are writable, and the processor has the instruction set.
    unsafe fn store(self, to: *mut f32);

    /// `self · factor + term`.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self;
}

#[cfg(target_arch = "x86_64")]
impl Lanes for __m512 {
    const WIDTH: usize = 16;
    const TILE_WIDTH: usize = 8;

    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: a register of zero bits is sixteen times 0.0.
        unsafe { std::mem::zeroed() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_fmadd_ps(self, factor, term) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for __m256 {
    const WIDTH: usize = 8;
    const TILE_WIDTH: usize = 6;

    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: a register of zero bits is eight times 0.0.
        unsafe { std::mem::zeroed() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_fmadd_ps(self, factor, term) }
    }
}

/// Four values: what SSE2 and NEON, part of every x86-64 and aarch64, hold in a register.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 4]);

impl Lanes for Portable {
    const WIDTH: usize = 4;
    const TILE_WIDTH: usize = 4;

    #[inline(always)]
    fn zero() -> Self {
        Self([0.0; 4])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise; an array of f32 needs no more alignment than f32.
        unsafe { Self(from.cast::<[f32; 4]>().read()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise; an array of f32 needs no more alignment than f32.
        unsafe { to.cast::<[f32; 4]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        // Without an instruction for it, f32::mul_add is a call of the C library for every value.
        let fused = cfg!(target_arch = "aarch64");
        Self(std::array::from_fn(|lane| {
            let (a, b, c) = (self.0[lane], factor.0[lane], term.0[lane]);
            if fused { a.mul_add(b, c) } else { a * b + c }
        }))
    }
}
