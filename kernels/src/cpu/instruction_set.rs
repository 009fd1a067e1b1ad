//! Choosing the instruction set at run time, so that one build is fast on every x86-64.

use std::sync::OnceLock;

/// The instruction sets the kernels are compiled for, narrowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum InstructionSet {
    /// What every processor of the architecture has.
    Portable,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// AVX-512 F, VL, BW and DQ.
    Avx512,
}

impl InstructionSet {
    /// The widest set of this processor, or the narrower one named by the environment variable
    /// `DELTACONV_INSTRUCTION_SET` (`portable` or `avx2`). Decided once per process.
    pub(crate) fn current() -> Self {
        static CURRENT: OnceLock<InstructionSet> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let limit = match std::env::var("DELTACONV_INSTRUCTION_SET").as_deref() {
                Ok("portable") => Self::Portable,
                Ok("avx2") => Self::Avx2,
                _ => Self::Avx512,
            };
            Self::widest().min(limit)
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn widest() -> Self {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq");
        match (avx2, avx512) {
            (true, true) => Self::Avx512,
            (true, false) => Self::Avx2,
            (false, _) => Self::Portable,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn widest() -> Self {
        Self::Portable
    }
}

/// Compiles a function once per instruction set and picks one by [`InstructionSet::current`].
///
/// The name in angle brackets stands for the [`super::lanes::Lanes`] type of the set; plain loops
/// over slices need not mention it, the compiler vectorises them with the set's registers. Calls
/// within the body must be `#[inline(always)]` to be compiled for the set too.
macro_rules! multiversion {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$lanes:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            use $crate::cpu::instruction_set::InstructionSet;

            #[inline(always)]
            fn body<$lanes: $crate::cpu::lanes::Lanes>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                body::<std::arch::x86_64::__m512>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                body::<std::arch::x86_64::__m256>($($arg),*)
            }

            match InstructionSet::current() {
                // SAFETY: the processor was found to have the set.
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: the processor was found to have the set.
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx2 => unsafe { avx2($($arg),*) },
                _ => body::<$crate::cpu::lanes::Portable>($($arg),*),
            }
        }
    };
}
pub(crate) use multiversion;
