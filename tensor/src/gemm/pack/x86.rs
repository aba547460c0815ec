//! Transposing panels in registers.
//!
//! 32-bit words are transposed in blocks of 16 (AVX-512) or 8 (AVX2) lines and as many words; a word is
//! one f32 or two neighbouring bf16 or f16, which are taken apart and widened after the transposition,
//! so narrow weights cost half the shuffles of f32.

use super::Part;
use crate::dtype::DType;
use crate::simd::{Simd, level};
use std::arch::x86_64::*;

/// Whether [`transpose`] takes this dtype.
pub(super) fn transposes(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
}

/// As `pack` for lines that are contiguous along the depth.
///
/// # Safety
/// AVX2 (and F16C, which every such processor has) must be there; `src` must be `part.data` of `dtype`, one
/// that [`transposes`]; all elements of `part` must lie inside it, and `panel` must hold `kc * width`.
pub(super) unsafe fn transpose<S>(panel: *mut f32, width: usize, src: *const u8, dtype: DType, part: &Part<'_, S>) {
    let size = dtype.size();
    // SAFETY: the first element of the part is inside the data by the caller's promise.
    let src = unsafe { src.add((part.l0 * part.line_stride + part.k0) * size) };
    let job = Job { panel, width, src, stride: part.line_stride * size, lines: part.lines, kc: part.kc };
    // SAFETY: the caller's promise; level() says what is there.
    unsafe {
        match (dtype, level() >= Simd::Avx512) {
            (DType::F32, true) => avx512::<1, false>(&job),
            (DType::BF16, true) => avx512::<2, true>(&job),
            (_, true) => avx512::<2, false>(&job),
            (DType::F32, false) => avx2::<1, false>(&job),
            (DType::BF16, false) => avx2::<2, true>(&job),
            (_, false) => avx2::<2, false>(&job),
        }
    }
}

struct Job {
    panel: *mut f32,
    width: usize,
    /// Element (0, 0); lines are `stride` bytes apart.
    src: *const u8,
    stride: usize,
    lines: usize,
    kc: usize,
}

/// One element, widened.
///
/// # Safety
/// `at` must be readable for an element.
#[inline(always)]
unsafe fn scalar<const PER_WORD: usize, const BF16: bool>(at: *const u8) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        match (PER_WORD, BF16) {
            (1, _) => at.cast::<f32>().read_unaligned(),
            (_, true) => f32::from_bits((at.cast::<u16>().read_unaligned() as u32) << 16),
            (_, false) => half::f16::from_bits(at.cast::<u16>().read_unaligned()).to_f32(),
        }
    }
}

/// Lines `from..` and, for the lines before, depths `deep..`: what does not fill a block.
///
/// # Safety
/// As [`transpose`].
#[inline(always)]
unsafe fn rest<const PER_WORD: usize, const BF16: bool>(job: &Job, from: usize, deep: usize) {
    let size = 4 / PER_WORD;
    for l in 0..job.lines {
        for p in if l < from { deep } else { 0 }..job.kc {
            // SAFETY: inside the part and the panel.
            unsafe {
                *job.panel.add(p * job.width + l) = scalar::<PER_WORD, BF16>(job.src.add(l * job.stride + p * size));
            }
        }
    }
}

/// # Safety
/// AVX-512 must be there; as [`transpose`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn avx512<const PER_WORD: usize, const BF16: bool>(job: &Job) {
    if job.lines < 16 {
        // SAFETY: the caller's promise.
        return unsafe { avx2::<PER_WORD, BF16>(job) };
    }
    let depth = 16 * PER_WORD;
    let kc = job.kc / depth * depth;
    for l in blocks(job.lines, 16) {
        for p in (0..kc).step_by(depth) {
            // SAFETY: 16 whole lines of 64 bytes inside the part, and their places in the panel.
            unsafe {
                let at = job.src.add(l * job.stride + p * 4 / PER_WORD);
                (0..16).for_each(|i| prefetch(at.wrapping_add(i * job.stride), job.lines * job.stride));
                let r = load_transposed_16(at, job.stride);
                let out = job.panel.add(p * job.width + l);
                for (i, &word) in r.iter().enumerate() {
                    if PER_WORD == 1 {
                        _mm512_storeu_ps(out.add(i * job.width), _mm512_castsi512_ps(word));
                        continue;
                    }
                    let (low, high) = widen_16::<BF16>(word);
                    _mm512_storeu_ps(out.add(2 * i * job.width), low);
                    _mm512_storeu_ps(out.add((2 * i + 1) * job.width), high);
                }
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { rest::<PER_WORD, BF16>(job, job.lines, kc) }
}

/// Where blocks of `size` lines begin, of which the last ends with the lines; none if there are fewer.
fn blocks(lines: usize, size: usize) -> impl Iterator<Item = usize> {
    let last = lines.checked_sub(size);
    last.into_iter().flat_map(move |last| (0..last).step_by(size).chain([last]))
}

/// The two halves of each word, bf16 or f16, widened: the lower, which comes first in memory, and the upper.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
#[inline]
pub(in crate::gemm) fn widen_16<const BF16: bool>(word: __m512i) -> (__m512, __m512) {
    if BF16 {
        let high = _mm512_and_si512(word, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(word)), _mm512_castsi512_ps(high))
    } else {
        let low = _mm512_cvtepi32_epi16(word);
        let high = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(word));
        (_mm512_cvtph_ps(low), _mm512_cvtph_ps(high))
    }
}

/// As [`widen_16`], for half as many words.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(in crate::gemm) fn widen_8<const BF16: bool>(word: __m256i) -> (__m256, __m256) {
    if BF16 {
        let high = _mm256_and_si256(word, _mm256_set1_epi32(0xffff_0000_u32 as i32));
        (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(word)), _mm256_castsi256_ps(high))
    } else {
        let low = _mm256_and_si256(word, _mm256_set1_epi32(0xffff));
        (narrow_8(low), narrow_8(_mm256_srli_epi32::<16>(word)))
    }
}

/// The low halves of 8 words, whose high halves are 0, as 8 f16, widened.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn narrow_8(words: __m256i) -> __m256 {
    let packed = _mm256_packus_epi32(words, words);
    _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64::<0x08>(packed)))
}

/// Asks for the cache line `ahead` bytes on: that of the next panel, which is packed when this one has been
/// used. Past the end of the matrix this asks in vain.
#[inline(always)]
pub(in crate::gemm) fn prefetch(line: *const u8, ahead: usize) {
    // SAFETY: a prefetch of any address is harmless.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.wrapping_add(ahead).cast()) }
}

/// 16 words of 16 lines, `stride` bytes apart, transposed: word i of each line in register i, in the order of the
/// lines.
///
/// The lines' quarters are put in place by the loads, which leaves two rounds of shuffles inside quarters.
///
/// # Safety
/// 64 bytes of each line must be readable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
#[inline]
pub(in crate::gemm) unsafe fn load_transposed_16(at: *const u8, stride: usize) -> [__m512i; 16] {
    let mut out = [_mm512_setzero_si512(); 16];
    for quarter in 0..4 {
        let mut r = [_mm512_setzero_si512(); 4];
        for (i, r) in r.iter_mut().enumerate() {
            // SAFETY: a quarter of a line.
            unsafe {
                let line = at.add(i * stride + 16 * quarter);
                let part = |q: usize| _mm_loadu_si128(line.add(4 * q * stride).cast());
                *r = _mm512_castsi128_si512(part(0));
                *r = _mm512_inserti32x4::<1>(*r, part(1));
                *r = _mm512_inserti32x4::<2>(*r, part(2));
                *r = _mm512_inserti32x4::<3>(*r, part(3));
            }
        }
        let (a, b) = (_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[0], r[1]));
        let (c, d) = (_mm512_unpacklo_epi32(r[2], r[3]), _mm512_unpackhi_epi32(r[2], r[3]));
        out[4 * quarter] = _mm512_unpacklo_epi64(a, c);
        out[4 * quarter + 1] = _mm512_unpackhi_epi64(a, c);
        out[4 * quarter + 2] = _mm512_unpacklo_epi64(b, d);
        out[4 * quarter + 3] = _mm512_unpackhi_epi64(b, d);
    }
    out
}

/// Transposes 16 × 16 words.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
#[inline]
pub(in crate::gemm) fn transpose_16(r: &mut [__m512i; 16]) {
    let mut t = *r;
    for i in (0..16).step_by(2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for i in (0..16).step_by(4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // r[4 g + c] now holds, in its 128-bit lane q, word 4 q + c of lines 4 g to 4 g + 3.
    for c in 0..4 {
        t[c] = _mm512_shuffle_i32x4::<0x88>(r[c], r[4 + c]);
        t[4 + c] = _mm512_shuffle_i32x4::<0xdd>(r[c], r[4 + c]);
        t[8 + c] = _mm512_shuffle_i32x4::<0x88>(r[8 + c], r[12 + c]);
        t[12 + c] = _mm512_shuffle_i32x4::<0xdd>(r[8 + c], r[12 + c]);
    }
    for c in 0..4 {
        r[c] = _mm512_shuffle_i32x4::<0x88>(t[c], t[8 + c]);
        r[8 + c] = _mm512_shuffle_i32x4::<0xdd>(t[c], t[8 + c]);
        r[4 + c] = _mm512_shuffle_i32x4::<0x88>(t[4 + c], t[12 + c]);
        r[12 + c] = _mm512_shuffle_i32x4::<0xdd>(t[4 + c], t[12 + c]);
    }
}

/// # Safety
/// AVX2 and F16C must be there; as [`transpose`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<const PER_WORD: usize, const BF16: bool>(job: &Job) {
    let depth = 8 * PER_WORD;
    let kc = job.kc / depth * depth;
    for l in blocks(job.lines, 8) {
        for p in (0..kc).step_by(depth) {
            // SAFETY: 8 whole lines of 32 bytes inside the part, and their places in the panel.
            unsafe {
                let at = job.src.add(l * job.stride + p * 4 / PER_WORD);
                (0..8).for_each(|i| prefetch(at.wrapping_add(i * job.stride), job.lines * job.stride));
                let r = load_transposed_8(at, job.stride);
                let out = job.panel.add(p * job.width + l);
                for (i, &word) in r.iter().enumerate() {
                    if PER_WORD == 1 {
                        _mm256_storeu_ps(out.add(i * job.width), _mm256_castsi256_ps(word));
                        continue;
                    }
                    let (low, high) = widen_8::<BF16>(word);
                    _mm256_storeu_ps(out.add(2 * i * job.width), low);
                    _mm256_storeu_ps(out.add((2 * i + 1) * job.width), high);
                }
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { rest::<PER_WORD, BF16>(job, if job.lines < 8 { 0 } else { job.lines }, kc) }
}

/// 8 words of 8 lines, `stride` bytes apart, transposed: word i of each line in register i, in the order of the
/// lines. As in [`load_transposed_16`], the loads put halves in place, which saves a third of the shuffles.
///
/// # Safety
/// 32 bytes of each line must be readable.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(in crate::gemm) unsafe fn load_transposed_8(at: *const u8, stride: usize) -> [__m256i; 8] {
    let mut out = [_mm256_setzero_si256(); 8];
    for half in 0..2 {
        let mut r = [_mm256_setzero_si256(); 4];
        for (i, r) in r.iter_mut().enumerate() {
            // SAFETY: a half of a line.
            unsafe {
                let line = at.add(i * stride + 16 * half);
                let low = _mm256_castsi128_si256(_mm_loadu_si128(line.cast()));
                *r = _mm256_inserti128_si256::<1>(low, _mm_loadu_si128(line.add(4 * stride).cast()));
            }
        }
        let (a, b) = (_mm256_unpacklo_epi32(r[0], r[1]), _mm256_unpackhi_epi32(r[0], r[1]));
        let (c, d) = (_mm256_unpacklo_epi32(r[2], r[3]), _mm256_unpackhi_epi32(r[2], r[3]));
        out[4 * half] = _mm256_unpacklo_epi64(a, c);
        out[4 * half + 1] = _mm256_unpackhi_epi64(a, c);
        out[4 * half + 2] = _mm256_unpacklo_epi64(b, d);
        out[4 * half + 3] = _mm256_unpackhi_epi64(b, d);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both vector widths, wherever they are there; `pack`'s own test takes the widest alone.
    #[test]
    fn both_widths_transpose_every_dtype() {
        let (lines, kc, width) = (35usize, 77usize, 48usize);
        let words: Vec<u16> = (0..2 * lines * kc).map(|i| (i as u16).wrapping_mul(2_654) & 0x7bff).collect();
        fn check<const PER_WORD: usize, const BF16: bool>(words: &[u16], lines: usize, kc: usize, width: usize) {
            let size = 4 / PER_WORD;
            let src = words.as_ptr().cast::<u8>();
            for wide in [false, true] {
                if level() < if wide { Simd::Avx512 } else { Simd::Avx2 } {
                    continue;
                }
                let mut panel = vec![0f32; width * kc];
                let job = Job { panel: panel.as_mut_ptr(), width, src, stride: kc * size, lines, kc };
                // SAFETY: detected; the words hold lines × kc elements of any of the sizes.
                unsafe {
                    if wide {
                        avx512::<PER_WORD, BF16>(&job)
                    } else {
                        avx2::<PER_WORD, BF16>(&job)
                    }
                    for l in 0..lines {
                        for p in 0..kc {
                            let want = scalar::<PER_WORD, BF16>(src.add((l * kc + p) * size));
                            assert_eq!(
                                panel[p * width + l].to_bits(),
                                want.to_bits(),
                                "{wide} {PER_WORD} {BF16} ({l}, {p})"
                            );
                        }
                    }
                }
            }
        }
        check::<1, false>(&words, lines, kc, width);
        check::<2, true>(&words, lines, kc, width);
        check::<2, false>(&words, lines, kc, width);
    }
}
