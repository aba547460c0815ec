//! Vector instructions for panels, by whole lines.

use super::WIDTH;
use super::stored::Table;
use crate::{Float, bf16, f16};

/// Functions that are inlined where their instructions are allowed.
///
/// # Safety of its functions
/// The instructions must be there, and what is read be readable.
pub(super) trait Vectors {
    /// [`WIDTH`] numbers in registers.
    type Line: Copy;
    unsafe fn zero() -> Self::Line;
    unsafe fn f32s(at: *const f32) -> Self::Line;
    unsafe fn bf16s(at: *const bf16) -> Self::Line;
    unsafe fn f16s(at: *const f16) -> Self::Line;
    unsafe fn i8s(at: *const i8) -> Self::Line;
    /// As many bytes, the high half of each if HIGH or the low, looked up.
    unsafe fn integers<const HIGH: bool>(at: *const u8, table: &[i8; 16]) -> Self::Line;
    /// As [`Vectors::integers`], in a table of floats.
    unsafe fn codes<const HIGH: bool>(at: *const u8, table: &Table) -> Self::Line;
    unsafe fn add(a: Self::Line, b: Self::Line) -> Self::Line;
    unsafe fn mul(a: Self::Line, b: Self::Line) -> Self::Line;
    /// x b + sum, fused.
    unsafe fn fma(x: f32, b: Self::Line, sum: Self::Line) -> Self::Line;
    unsafe fn values(line: Self::Line) -> [f32; WIDTH];
}

/// What the compiler makes of it.
pub(super) struct Plain;

/// A half of a byte.
#[inline(always)]
fn nibble<const HIGH: bool>(byte: u8) -> usize {
    (if HIGH { byte >> 4 } else { byte & 15 }) as usize
}

impl Vectors for Plain {
    type Line = [f32; WIDTH];

    #[inline(always)]
    unsafe fn zero() -> Self::Line {
        [0.0; WIDTH]
    }

    #[inline(always)]
    unsafe fn f32s(at: *const f32) -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<[f32; WIDTH]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn bf16s(at: *const bf16) -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<[bf16; WIDTH]>().read_unaligned() }.map(|x| x.widen())
    }

    #[inline(always)]
    unsafe fn f16s(at: *const f16) -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<[f16; WIDTH]>().read_unaligned() }.map(|x| x.widen())
    }

    #[inline(always)]
    unsafe fn i8s(at: *const i8) -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe { *at.cast::<[i8; WIDTH]>() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn integers<const HIGH: bool>(at: *const u8, table: &[i8; 16]) -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe { *at.cast::<[u8; WIDTH]>() }.map(|byte| f32::from(table[nibble::<HIGH>(byte)]))
    }

    #[inline(always)]
    unsafe fn codes<const HIGH: bool>(at: *const u8, table: &Table) -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe { *at.cast::<[u8; WIDTH]>() }.map(|byte| table.values[nibble::<HIGH>(byte)])
    }

    #[inline(always)]
    unsafe fn add(a: Self::Line, b: Self::Line) -> Self::Line {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn mul(a: Self::Line, b: Self::Line) -> Self::Line {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn fma(x: f32, b: Self::Line, mut sum: Self::Line) -> Self::Line {
        for (sum, b) in sum.iter_mut().zip(b) {
            *sum = x.mul_add(b, *sum);
        }
        sum
    }

    #[inline(always)]
    unsafe fn values(line: Self::Line) -> [f32; WIDTH] {
        line
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Table, Vectors, WIDTH};
    use crate::{bf16, f16};
    use std::arch::x86_64::*;

    /// Halves of 16 bytes, each in a byte.
    ///
    /// # Safety
    /// As [`Vectors`].
    #[inline(always)]
    unsafe fn nibbles<const HIGH: bool>(at: *const u8) -> __m128i {
        // SAFETY: the caller's promise.
        unsafe {
            let bytes = _mm_loadu_si128(at.cast());
            let bytes = if HIGH { _mm_srli_epi16::<4>(bytes) } else { bytes };
            _mm_and_si128(bytes, _mm_set1_epi8(15))
        }
    }

    pub(in super::super) struct Avx2;

    impl Avx2 {
        /// # Safety
        /// As [`Vectors`].
        #[inline(always)]
        unsafe fn widened(bytes: __m128i) -> [__m256; 2] {
            // SAFETY: the caller's promise.
            unsafe {
                let eight = |bytes| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
                [eight(bytes), eight(_mm_srli_si128::<8>(bytes))]
            }
        }
    }

    impl Vectors for Avx2 {
        type Line = [__m256; 2];

        #[inline(always)]
        unsafe fn zero() -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe { [_mm256_setzero_ps(); 2] }
        }

        #[inline(always)]
        unsafe fn f32s(at: *const f32) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] }
        }

        #[inline(always)]
        unsafe fn bf16s(at: *const bf16) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe {
                let half = |from: *const bf16| {
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()))))
                };
                [half(at), half(at.add(8))]
            }
        }

        #[inline(always)]
        unsafe fn f16s(at: *const f16) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe {
                let half = |from: *const f16| _mm256_cvtph_ps(_mm_loadu_si128(from.cast()));
                [half(at), half(at.add(8))]
            }
        }

        #[inline(always)]
        unsafe fn i8s(at: *const i8) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe { Avx2::widened(_mm_loadu_si128(at.cast())) }
        }

        #[inline(always)]
        unsafe fn integers<const HIGH: bool>(at: *const u8, table: &[i8; 16]) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe { Avx2::widened(_mm_shuffle_epi8(_mm_loadu_si128(table.as_ptr().cast()), nibbles::<HIGH>(at))) }
        }

        /// The four bytes of the floats are looked up one by one and put together again.
        #[inline(always)]
        unsafe fn codes<const HIGH: bool>(at: *const u8, table: &Table) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe {
                let at = nibbles::<HIGH>(at);
                let byte = |i: usize| _mm_shuffle_epi8(_mm_loadu_si128(table.bytes[i].as_ptr().cast()), at);
                let (b0, b1, b2, b3) = (byte(0), byte(1), byte(2), byte(3));
                let four = |low, high| {
                    let (a, b) = (_mm_unpacklo_epi16(low, high), _mm_unpackhi_epi16(low, high));
                    _mm256_castsi256_ps(_mm256_set_m128i(b, a))
                };
                [
                    four(_mm_unpacklo_epi8(b0, b1), _mm_unpacklo_epi8(b2, b3)),
                    four(_mm_unpackhi_epi8(b0, b1), _mm_unpackhi_epi8(b2, b3)),
                ]
            }
        }

        #[inline(always)]
        unsafe fn add(a: Self::Line, b: Self::Line) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        }

        #[inline(always)]
        unsafe fn mul(a: Self::Line, b: Self::Line) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }

        #[inline(always)]
        unsafe fn fma(x: f32, b: Self::Line, sum: Self::Line) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe {
                let x = _mm256_set1_ps(x);
                [_mm256_fmadd_ps(x, b[0], sum[0]), _mm256_fmadd_ps(x, b[1], sum[1])]
            }
        }

        #[inline(always)]
        unsafe fn values(line: Self::Line) -> [f32; WIDTH] {
            // SAFETY: two registers are as many floats.
            unsafe { std::mem::transmute(line) }
        }
    }

    pub(in super::super) struct Avx512;

    impl Vectors for Avx512 {
        type Line = __m512;

        #[inline(always)]
        unsafe fn zero() -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn f32s(at: *const f32) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe { _mm512_loadu_ps(at) }
        }

        #[inline(always)]
        unsafe fn bf16s(at: *const bf16) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe {
                let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
            }
        }

        #[inline(always)]
        unsafe fn f16s(at: *const f16) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
        }

        #[inline(always)]
        unsafe fn i8s(at: *const i8) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
        }

        #[inline(always)]
        unsafe fn integers<const HIGH: bool>(at: *const u8, table: &[i8; 16]) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe {
                let found = _mm_shuffle_epi8(_mm_loadu_si128(table.as_ptr().cast()), nibbles::<HIGH>(at));
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(found))
            }
        }

        #[inline(always)]
        unsafe fn codes<const HIGH: bool>(at: *const u8, table: &Table) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe {
                let at = _mm512_cvtepu8_epi32(nibbles::<HIGH>(at));
                _mm512_permutexvar_ps(at, _mm512_loadu_ps(table.values.as_ptr()))
            }
        }

        #[inline(always)]
        unsafe fn add(a: Self::Line, b: Self::Line) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn mul(a: Self::Line, b: Self::Line) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe { _mm512_mul_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn fma(x: f32, b: Self::Line, sum: Self::Line) -> Self::Line {
            // SAFETY: the caller's promise.
            unsafe { _mm512_fmadd_ps(_mm512_set1_ps(x), b, sum) }
        }

        #[inline(always)]
        unsafe fn values(line: Self::Line) -> [f32; WIDTH] {
            // SAFETY: a register is as many floats.
            unsafe { std::mem::transmute(line) }
        }
    }
}
