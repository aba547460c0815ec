//! Run-time choice of vector instructions for loops that the compiler vectorises.

/// Vector instructions of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Simd {
    /// What the compilation target guarantees (NEON on AArch64).
    Portable,
    /// 256-bit AVX2 with fused multiply-add and conversion of f16.
    Avx2,
    /// 512-bit AVX-512 (F, BW, DQ, VL).
    Avx512,
}

/// What this machine has, detected once.
#[inline]
pub fn level() -> Simd {
    #[cfg(target_arch = "x86_64")]
    {
        use std::sync::OnceLock;
        static LEVEL: OnceLock<Simd> = OnceLock::new();
        *LEVEL.get_or_init(|| {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx512 {
                Simd::Avx512
            } else if avx2 {
                Simd::Avx2
            } else {
                Simd::Portable
            }
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    Simd::Portable
}

/// Defines a function compiled twice: for the target's baseline and for AVX2+FMA, chosen at run time.
///
/// The arithmetic is the same in both (every fused multiply-add is written as one), so results are
/// too: the choice changes speed, never bits.
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$T:ident: $bound:path $(, $U:ident: $ubound:path)*>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name<$T: $bound $(, $U: $ubound)*>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$T: $bound $(, $U: $ubound)*>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2<$T: $bound $(, $U: $ubound)*>($($arg: $ty),*) $(-> $ret)? {
                    body::<$T $(, $U)*>($($arg),*)
                }
                if $crate::simd::level() >= $crate::simd::Simd::Avx2 {
                    // SAFETY: level() says that this machine has AVX2 and FMA.
                    return unsafe { avx2::<$T $(, $U)*>($($arg),*) };
                }
            }
            body::<$T $(, $U)*>($($arg),*)
        }
    };
}
pub(crate) use simd_fn;
