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
    /// Bytes ahead that a line of a panel is asked for.
    const AHEAD: usize = 1024;
    unsafe fn zero() -> Self::Line;
    unsafe fn f32s(at: *const f32) -> Self::Line;
    unsafe fn bf16s(at: *const bf16) -> Self::Line;
    unsafe fn f16s(at: *const f16) -> Self::Line;
    /// Two lines of bytes, laid out as [`PAIR`] says, less 128.
    unsafe fn bytes(at: *const u8) -> [Self::Line; 2];
    /// The same times `scale`, finite and of at most 15 significant bits, as an f16 is: the products are exact, so that
    /// it does not matter what is rounded on the way.
    #[inline(always)]
    unsafe fn bytes_times(at: *const u8, scale: Self::Line) -> [Self::Line; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let [a, b] = Self::bytes(at);
            [Self::mul(a, scale), Self::mul(b, scale)]
        }
    }
    /// The same, of the high half of each byte if HIGH or the low one, looked up.
    unsafe fn codes<const HIGH: bool, const BYTES: usize>(at: *const u8, table: &Table) -> [Self::Line; 2];
    unsafe fn add(a: Self::Line, b: Self::Line) -> Self::Line;
    unsafe fn mul(a: Self::Line, b: Self::Line) -> Self::Line;
    /// x b + sum, fused.
    unsafe fn fma(x: f32, b: Self::Line, sum: Self::Line) -> Self::Line;
    unsafe fn values(line: Self::Line) -> [f32; WIDTH];
    /// The same where a line's numbers are in the order in which [`Vectors::bf16s`] has them.
    #[inline(always)]
    unsafe fn bf16_values(line: Self::Line) -> [f32; WIDTH] {
        // SAFETY: the caller's promise.
        unsafe { Self::values(line) }
    }
}

/// Where the bytes of two lines are, in one run of 32: that of column j of the first; of the second 8 behind it. So that
/// two registers of 16 bytes side by side, interleaved with others byte by byte and then word by word, are lines.
pub(super) const PAIR: [usize; WIDTH] = [0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23];

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
    unsafe fn bytes(at: *const u8) -> [Self::Line; 2] {
        // SAFETY: the caller's promise.
        let pair = unsafe { *at.cast::<[u8; 2 * WIDTH]>() };
        [0, 8].map(|line| PAIR.map(|at| f32::from(pair[at + line]) - 128.0))
    }

    #[inline(always)]
    unsafe fn codes<const HIGH: bool, const BYTES: usize>(at: *const u8, table: &Table) -> [Self::Line; 2] {
        // SAFETY: the caller's promise.
        let pair = unsafe { *at.cast::<[u8; 2 * WIDTH]>() };
        [0, 8].map(|line| PAIR.map(|at| table.values[nibble::<HIGH>(pair[at + line])]))
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

    pub(in super::super) struct Avx2;

    /// What [`Avx2::above`] adds to bytes less 128.
    const ABOVE: f32 = 32768.0 + 128.0;

    impl Avx2 {
        /// Two lines of bytes, and [`ABOVE`]. Each byte becomes the second of 32768.0, whose units it counts: to widen and
        /// convert it would take more, and always the same ports.
        ///
        /// # Safety
        /// As [`Vectors`].
        #[inline(always)]
        unsafe fn above(at: *const u8) -> [[__m256; 2]; 2] {
            // SAFETY: the caller's promise.
            unsafe {
                let words = Self::words(_mm256_setzero_si256(), _mm256_loadu_si256(at.cast()));
                Self::lines(words, [_mm256_set1_epi16((32768f32.to_bits() >> 16) as i16); 2])
            }
        }

        /// Words, those of two lines each in a register, behind each other and in `low` and `high` the words below and
        /// above: two lines.
        ///
        /// # Safety
        /// As [`Vectors`].
        #[inline(always)]
        unsafe fn lines(low: [__m256i; 2], high: [__m256i; 2]) -> [[__m256; 2]; 2] {
            // SAFETY: the caller's promise.
            unsafe {
                let line = |i: usize| {
                    let (a, b) = (_mm256_unpacklo_epi16(low[i], high[i]), _mm256_unpackhi_epi16(low[i], high[i]));
                    [_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)]
                };
                [line(0), line(1)]
            }
        }

        /// Bytes interleaved: words.
        ///
        /// # Safety
        /// As [`Vectors`].
        #[inline(always)]
        unsafe fn words(low: __m256i, high: __m256i) -> [__m256i; 2] {
            // SAFETY: the caller's promise.
            unsafe { [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)] }
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
                let (words, zero) = (_mm256_loadu_si256(at.cast()), _mm256_setzero_si256());
                let (a, b) = (_mm256_unpacklo_epi16(zero, words), _mm256_unpackhi_epi16(zero, words));
                [_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)]
            }
        }

        #[inline(always)]
        unsafe fn bf16_values(line: Self::Line) -> [f32; WIDTH] {
            // SAFETY: the caller's promise.
            unsafe {
                let [a, b] = line;
                Self::values([_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b)])
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
        unsafe fn bytes(at: *const u8) -> [Self::Line; 2] {
            // SAFETY: the caller's promise.
            unsafe {
                let ([a, b], zero) = (Self::above(at), _mm256_set1_ps(ABOVE));
                let less = |half| _mm256_sub_ps(half, zero);
                [[less(a[0]), less(a[1])], [less(b[0]), less(b[1])]]
            }
        }

        /// `m scale - above scale`: 257 times 15 bits are 24, so both products are exact, and their difference is.
        #[inline(always)]
        unsafe fn bytes_times(at: *const u8, scale: Self::Line) -> [Self::Line; 2] {
            // SAFETY: the caller's promise.
            unsafe {
                let ([a, b], zero) = (Self::above(at), _mm256_set1_ps(-ABOVE));
                let less = [_mm256_mul_ps(scale[0], zero), _mm256_mul_ps(scale[1], zero)];
                [
                    [_mm256_fmadd_ps(a[0], scale[0], less[0]), _mm256_fmadd_ps(a[1], scale[1], less[1])],
                    [_mm256_fmadd_ps(b[0], scale[0], less[0]), _mm256_fmadd_ps(b[1], scale[1], less[1])],
                ]
            }
        }

        /// The bytes of the floats are looked up one by one and put together again.
        #[inline(always)]
        unsafe fn codes<const HIGH: bool, const BYTES: usize>(at: *const u8, table: &Table) -> [Self::Line; 2] {
            // SAFETY: the caller's promise.
            unsafe {
                let bytes = _mm256_loadu_si256(at.cast());
                let bytes = if HIGH { _mm256_srli_epi16::<4>(bytes) } else { bytes };
                let at = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
                let byte = |i: usize| {
                    let plane = _mm_loadu_si128(table.bytes[i].as_ptr().cast());
                    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(plane), at)
                };
                let high = Self::words(byte(2), byte(3));
                let low = if BYTES == 2 { [_mm256_setzero_si256(); 2] } else { Self::words(byte(0), byte(1)) };
                Self::lines(low, high)
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

    impl Avx512 {
        /// Two lines of bytes, and [`ABOVE`], as [`Avx2::above`] makes them: words in quarters of a register, that are put
        /// in order behind it.
        ///
        /// # Safety
        /// As [`Vectors`].
        #[inline(always)]
        unsafe fn above(at: *const u8) -> [__m512; 2] {
            // SAFETY: the caller's promise.
            unsafe {
                let words = _mm512_slli_epi16::<8>(_mm512_cvtepu8_epi16(_mm256_loadu_si256(at.cast())));
                let high = _mm512_set1_epi16((32768f32.to_bits() >> 16) as i16);
                let a = _mm512_castsi512_ps(_mm512_unpacklo_epi16(words, high));
                let b = _mm512_castsi512_ps(_mm512_unpackhi_epi16(words, high));
                [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b)]
            }
        }
    }

    impl Vectors for Avx512 {
        type Line = __m512;
        // With 16 rows a line lasts so long that the processor stops reading ahead by itself.
        const AHEAD: usize = 4096;

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
        unsafe fn bytes(at: *const u8) -> [Self::Line; 2] {
            // SAFETY: the caller's promise.
            unsafe { Self::above(at).map(|line| _mm512_sub_ps(line, _mm512_set1_ps(ABOVE))) }
        }

        /// As that of [`Avx2`].
        #[inline(always)]
        unsafe fn bytes_times(at: *const u8, scale: Self::Line) -> [Self::Line; 2] {
            // SAFETY: the caller's promise.
            unsafe {
                let less = _mm512_mul_ps(scale, _mm512_set1_ps(-ABOVE));
                Self::above(at).map(|line| _mm512_fmadd_ps(line, scale, less))
            }
        }

        #[inline(always)]
        unsafe fn codes<const HIGH: bool, const BYTES: usize>(at: *const u8, table: &Table) -> [Self::Line; 2] {
            // SAFETY: the caller's promise.
            unsafe {
                let table = _mm512_loadu_ps(table.values.as_ptr());
                let bytes = _mm256_loadu_si256(at.cast());
                let bytes = if HIGH { _mm256_srli_epi16::<4>(bytes) } else { bytes };
                let places = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
                // The words of the first line, then those of the second.
                let lines = _mm256_permutevar8x32_epi32(places, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
                [_mm256_castsi256_si128(lines), _mm256_extracti128_si256::<1>(lines)]
                    .map(|line| _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(line), table))
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
