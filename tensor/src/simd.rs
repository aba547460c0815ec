//! Run-time choice of vector instructions for loops that the compiler vectorises.

use std::sync::OnceLock;

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

static LEVEL: OnceLock<Simd> = OnceLock::new();

/// What kernels use: [`detected`], unless the process was [restricted](restrict).
#[inline]
pub fn level() -> Simd {
    *LEVEL.get_or_init(detected)
}

/// Makes the process use nothing beyond `most`, which changes speed and never a bit. For tests, and for seeing
/// what an older machine would do. Kernels rely on one answer for the life of the process, so this comes first.
///
/// # Errors
/// With what is in use, if that is already decided and something else, or if the machine has not got `most`.
pub fn restrict(most: Simd) -> Result<(), Simd> {
    let detected = detected();
    if most > detected {
        return Err(detected);
    }
    let used = *LEVEL.get_or_init(|| most);
    if used == most { Ok(()) } else { Err(used) }
}

/// What this machine has.
pub fn detected() -> Simd {
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if avx512 {
            return Simd::Avx512;
        }
        if avx2 {
            return Simd::Avx2;
        }
    }
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
