//! Which vector instructions this machine has, found out at run time.

/// A set of vector instructions. All of them fuse multiply-adds, so all of them give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// AVX-512F.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Whatever the target always has.
    Portable,
}

impl Level {
    /// The best of this machine.
    pub(super) fn detect() -> Self {
        Self::available()[0]
    }

    /// All of this machine, the best first.
    pub(super) fn available() -> &'static [Self] {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
            if avx2 && std::arch::is_x86_feature_detected!("avx512f") {
                return &[Self::Avx512, Self::Avx2, Self::Portable];
            }
            if avx2 {
                return &[Self::Avx2, Self::Portable];
            }
        }
        &[Self::Portable]
    }
}

/// Compiles a function once for each [`Level`] and calls the best at run time. The body must not panic in ways that
/// depend on the level, and must spell its fused multiply-adds with `mul_add`: the compiler never fuses by itself.
macro_rules! for_each_level {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) {
            #[inline(always)]
            fn body($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx2,fma")]
                fn avx512($($arg: $ty),*) {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) {
                    body($($arg),*)
                }
                match $crate::teacher::ops::cpu::simd::Level::detect() {
                    // SAFETY: the machine was found to have the features.
                    $crate::teacher::ops::cpu::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::teacher::ops::cpu::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::teacher::ops::cpu::simd::Level::Portable => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(super) use for_each_level;
