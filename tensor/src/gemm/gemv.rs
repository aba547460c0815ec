//! Products of few rows with a matrix whose depth is contiguous (y = x Wᵀ, decoding): W is transposed in
//! registers and used there, never written to a panel.
//!
//! A block of 16 (AVX-512) or 8 (AVX2) outputs by as many words of depth is loaded, transposed and
//! multiplied with up to 8 (4) rows at once; each output remains one chain over the depth, so the bits
//! are those of the panels' kernels. With few rows several blocks go side by side, for the chains to overlap.
//! Bound by memory: W is read once for all rows, and the next blocks of lines are asked for ahead, in the order they lie
//! in memory and not in the order they are used.

use super::kernel::Mode;
use super::pack::x86::{load_transposed_8, load_transposed_16, transpose_16, widen_8, widen_16};
use crate::dtype::DType;
use crate::simd::{Simd, level};
use std::arch::x86_64::*;

const CACHE_LINE: usize = 64;

/// Most rows that come here on this machine; beyond, a panel pays.
pub(super) fn most_rows() -> usize {
    if level() >= Simd::Avx512 { 16 } else { 4 }
}

/// Outputs of a block on this machine; 0 if there is no kernel.
pub(super) fn lines() -> usize {
    match level() {
        Simd::Avx512 => 16,
        Simd::Avx2 => 8,
        Simd::Portable => 0,
    }
}

/// `c[r, l]`, r < rows, l < lines, from sums over p < kc, in order, of `a[r, p] * w[l, p]`, fused.
pub(super) struct Gemv {
    pub(super) rows: usize,
    /// A multiple of [`lines`].
    pub(super) lines: usize,
    pub(super) kc: usize,
    /// Element (r, p) of A is `a + r * a_row + p`.
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    /// Element (l, p) of W is at `w + (l * w_row + p) * size of dtype`.
    pub(super) w: *const u8,
    pub(super) w_row: usize,
    pub(super) dtype: DType,
    pub(super) c: *mut f32,
    pub(super) c_row: usize,
    /// Set or Add.
    pub(super) mode: Mode,
}

/// Asks for lines of W ahead, one after the other.
struct Ahead {
    at: *const u8,
    /// Bytes left of this line, of each line, and from the end of one to the next.
    left: usize,
    line: usize,
    gap: usize,
}

impl Ahead {
    fn new(at: *const u8, line: usize, stride: usize) -> Ahead {
        Ahead { at, left: line, line, gap: stride.wrapping_sub(line) }
    }

    /// Asks for the next so many bytes. What lies behind the matrix is asked for in vain, which is allowed.
    #[inline(always)]
    fn ask(&mut self, bytes: usize) {
        for _ in 0..bytes / CACHE_LINE {
            // SAFETY: a prefetch of any address is harmless.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.at.cast()) };
            let step = self.left.min(CACHE_LINE);
            self.left -= step;
            self.at = self.at.wrapping_add(step);
            if self.left == 0 {
                (self.at, self.left) = (self.at.wrapping_add(self.gap), self.line);
            }
        }
    }
}

impl Gemv {
    /// Computes it.
    ///
    /// # Safety
    /// All elements spoken of must be readable, those of C writable by this call alone; `dtype` must be f32,
    /// bf16 or f16, `rows` 1 to [`most_rows`], and [`lines`] not 0.
    pub(super) unsafe fn run(&self) {
        // SAFETY: the caller's promise; level() says what is there.
        unsafe {
            match (self.dtype, level() >= Simd::Avx512) {
                (DType::F32, true) => self.all_512::<1, false>(),
                (DType::BF16, true) => self.all_512::<2, true>(),
                (_, true) => self.all_512::<2, false>(),
                (DType::F32, false) => self.all_256::<1, false>(),
                (DType::BF16, false) => self.all_256::<2, true>(),
                (_, false) => self.all_256::<2, false>(),
            }
        }
    }

    /// # Safety
    /// As [`Gemv::run`], with AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn all_512<const PER_WORD: usize, const BF16: bool>(&self) {
        for r in (0..self.rows).step_by(8) {
            // SAFETY: the caller's promise.
            unsafe {
                match self.rows - r {
                    1 => self.rows_512::<1, 4, PER_WORD, BF16>(r),
                    2 => self.rows_512::<2, 2, PER_WORD, BF16>(r),
                    3 => self.rows_512::<3, 2, PER_WORD, BF16>(r),
                    4 => self.rows_512::<4, 1, PER_WORD, BF16>(r),
                    5 => self.rows_512::<5, 1, PER_WORD, BF16>(r),
                    6 => self.rows_512::<6, 1, PER_WORD, BF16>(r),
                    7 => self.rows_512::<7, 1, PER_WORD, BF16>(r),
                    _ => self.rows_512::<8, 1, PER_WORD, BF16>(r),
                }
            }
        }
    }

    /// Rows `r0..r0 + MR` of all lines, NB blocks of 16 at a time.
    ///
    /// # Safety
    /// As [`Gemv::run`], with AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn rows_512<const MR: usize, const NB: usize, const PER_WORD: usize, const BF16: bool>(&self, r0: usize) {
        let together = self.lines / (16 * NB) * (16 * NB);
        // SAFETY: the caller's promise.
        unsafe {
            (0..together).step_by(16 * NB).for_each(|l| self.block_512::<MR, NB, PER_WORD, BF16>(r0, l));
            (together..self.lines).step_by(16).for_each(|l| self.block_512::<MR, 1, PER_WORD, BF16>(r0, l));
        }
    }

    /// Rows `r0..r0 + MR` of lines `l..l + 16 NB`. A chain of multiply-adds waits four cycles for each link, so
    /// there must be several: MR × NB of them.
    ///
    /// # Safety
    /// As [`Gemv::run`], with AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn block_512<const MR: usize, const NB: usize, const PER_WORD: usize, const BF16: bool>(
        &self,
        r0: usize,
        l: usize,
    ) {
        let (depth, stride) = (16 * PER_WORD, self.w_row * 4 / PER_WORD);
        let mut acc = [[_mm512_setzero_ps(); MR]; NB];
        // SAFETY: rows below `rows`, lines below `lines` and depths below `kc`, as `run` cuts them.
        unsafe {
            let w = self.w.add(l * stride);
            let mut a = [self.a; MR];
            for (r, a) in a.iter_mut().enumerate() {
                *a = self.a.add((r0 + r) * self.a_row);
            }
            let whole = self.kc / depth * depth;
            let mut ahead = Ahead::new(w.wrapping_add(16 * NB * stride), self.kc * 4 / PER_WORD, stride);
            for p in (0..whole).step_by(depth) {
                for (b, acc) in acc.iter_mut().enumerate() {
                    let at = w.add(16 * b * stride + p * 4 / PER_WORD);
                    if r0 == 0 {
                        ahead.ask(16 * 4 * 16);
                    }
                    let words = load_transposed_16(at, stride);
                    for (i, &word) in words.iter().enumerate() {
                        if PER_WORD == 1 {
                            for r in 0..MR {
                                let x = _mm512_set1_ps(*a[r].add(p + i));
                                acc[r] = _mm512_fmadd_ps(x, _mm512_castsi512_ps(word), acc[r]);
                            }
                            continue;
                        }
                        let (low, high) = widen_16::<BF16>(word);
                        for r in 0..MR {
                            acc[r] = _mm512_fmadd_ps(_mm512_set1_ps(*a[r].add(p + 2 * i)), low, acc[r]);
                        }
                        for r in 0..MR {
                            acc[r] = _mm512_fmadd_ps(_mm512_set1_ps(*a[r].add(p + 2 * i + 1)), high, acc[r]);
                        }
                    }
                }
            }
            let live = self.kc - whole;
            if live > 0 {
                for (b, acc) in acc.iter_mut().enumerate() {
                    let at = w.add(16 * b * stride + whole * 4 / PER_WORD);
                    let mut words = [_mm512_setzero_si512(); 16];
                    for (i, word) in words.iter_mut().enumerate() {
                        let line = at.add(i * stride);
                        *word = if PER_WORD == 1 {
                            _mm512_maskz_loadu_epi32((1u16 << live) - 1, line.cast())
                        } else {
                            _mm512_maskz_loadu_epi16((1u32 << live) - 1, line.cast())
                        };
                    }
                    transpose_16(&mut words);
                    for p in 0..live {
                        let word = words[p / PER_WORD];
                        let (low, high) = if PER_WORD == 1 {
                            (_mm512_castsi512_ps(word), _mm512_setzero_ps())
                        } else {
                            widen_16::<BF16>(word)
                        };
                        let w = if p % PER_WORD == 0 { low } else { high };
                        for r in 0..MR {
                            acc[r] = _mm512_fmadd_ps(_mm512_set1_ps(*a[r].add(whole + p)), w, acc[r]);
                        }
                    }
                }
            }
            for (b, acc) in acc.iter().enumerate() {
                for (r, &sum) in acc.iter().enumerate() {
                    let c = self.c.add((r0 + r) * self.c_row + l + 16 * b);
                    let sum = if self.mode == Mode::Add { _mm512_add_ps(_mm512_loadu_ps(c), sum) } else { sum };
                    _mm512_storeu_ps(c, sum);
                }
            }
        }
    }

    /// # Safety
    /// As [`Gemv::run`], with AVX2.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn all_256<const PER_WORD: usize, const BF16: bool>(&self) {
        for r in (0..self.rows).step_by(4) {
            // SAFETY: the caller's promise.
            unsafe {
                match self.rows - r {
                    1 => self.rows_256::<1, 4, PER_WORD, BF16>(r),
                    2 => self.rows_256::<2, 2, PER_WORD, BF16>(r),
                    3 => self.rows_256::<3, 2, PER_WORD, BF16>(r),
                    _ => self.rows_256::<4, 1, PER_WORD, BF16>(r),
                }
            }
        }
    }

    /// Rows `r0..r0 + MR` of all lines, NB blocks of 8 at a time.
    ///
    /// # Safety
    /// As [`Gemv::run`], with AVX2.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn rows_256<const MR: usize, const NB: usize, const PER_WORD: usize, const BF16: bool>(&self, r0: usize) {
        let together = self.lines / (8 * NB) * (8 * NB);
        // SAFETY: the caller's promise.
        unsafe {
            (0..together).step_by(8 * NB).for_each(|l| self.block_256::<MR, NB, PER_WORD, BF16>(r0, l));
            (together..self.lines).step_by(8).for_each(|l| self.block_256::<MR, 1, PER_WORD, BF16>(r0, l));
        }
    }

    /// Rows `r0..r0 + MR` of lines `l..l + 8 NB`, as [`Gemv::block_512`].
    ///
    /// # Safety
    /// As [`Gemv::run`], with AVX2.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn block_256<const MR: usize, const NB: usize, const PER_WORD: usize, const BF16: bool>(
        &self,
        r0: usize,
        l: usize,
    ) {
        let (depth, stride) = (8 * PER_WORD, self.w_row * 4 / PER_WORD);
        let mut acc = [[_mm256_setzero_ps(); MR]; NB];
        // SAFETY: rows below `rows`, lines below `lines` and depths below `kc`, as `run` cuts them.
        unsafe {
            let w = self.w.add(l * stride);
            let mut a = [self.a; MR];
            for (r, a) in a.iter_mut().enumerate() {
                *a = self.a.add((r0 + r) * self.a_row);
            }
            let whole = self.kc / depth * depth;
            let mut ahead = Ahead::new(w.wrapping_add(8 * NB * stride), self.kc * 4 / PER_WORD, stride);
            for p in (0..whole).step_by(depth) {
                for (b, acc) in acc.iter_mut().enumerate() {
                    let at = w.add(8 * b * stride + p * 4 / PER_WORD);
                    if r0 == 0 {
                        ahead.ask(8 * 4 * 8);
                    }
                    let words = load_transposed_8(at, stride);
                    for (i, &word) in words.iter().enumerate() {
                        if PER_WORD == 1 {
                            for r in 0..MR {
                                let x = _mm256_set1_ps(*a[r].add(p + i));
                                acc[r] = _mm256_fmadd_ps(x, _mm256_castsi256_ps(word), acc[r]);
                            }
                            continue;
                        }
                        let (low, high) = widen_8::<BF16>(word);
                        for r in 0..MR {
                            acc[r] = _mm256_fmadd_ps(_mm256_set1_ps(*a[r].add(p + 2 * i)), low, acc[r]);
                        }
                        for r in 0..MR {
                            acc[r] = _mm256_fmadd_ps(_mm256_set1_ps(*a[r].add(p + 2 * i + 1)), high, acc[r]);
                        }
                    }
                }
            }
            let live = self.kc - whole;
            if live > 0 {
                for (b, acc) in acc.iter_mut().enumerate() {
                    // What is left of the lines, side by side and filled up with zeros that nothing reads.
                    let mut rest = [0u8; 8 * 32];
                    for i in 0..8 {
                        let line = w.add((8 * b + i) * stride + whole * 4 / PER_WORD);
                        std::ptr::copy_nonoverlapping(line, rest.as_mut_ptr().add(32 * i), live * 4 / PER_WORD);
                    }
                    let words = load_transposed_8(rest.as_ptr(), 32);
                    for p in 0..live {
                        let word = words[p / PER_WORD];
                        let (low, high) = if PER_WORD == 1 {
                            (_mm256_castsi256_ps(word), _mm256_setzero_ps())
                        } else {
                            widen_8::<BF16>(word)
                        };
                        let w = if p % PER_WORD == 0 { low } else { high };
                        for r in 0..MR {
                            acc[r] = _mm256_fmadd_ps(_mm256_set1_ps(*a[r].add(whole + p)), w, acc[r]);
                        }
                    }
                }
            }
            for (b, acc) in acc.iter().enumerate() {
                for (r, &sum) in acc.iter().enumerate() {
                    let c = self.c.add((r0 + r) * self.c_row + l + 8 * b);
                    let sum = if self.mode == Mode::Add { _mm256_add_ps(_mm256_loadu_ps(c), sum) } else { sum };
                    _mm256_storeu_ps(c, sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};
    use crate::{Float, bf16, f16};

    /// Blocks side by side and one alone.
    const LINES: usize = 4 * 16 + 16;
    const C_ROW: usize = LINES + 8;

    fn check<B: Float>() {
        let stream = Stream::new(8, Purpose::Data, 0);
        let random = |n: usize, from: u64| (0..n as u64).map(|i| stream.normal(from + i)).collect::<Vec<f64>>();
        for rows in 1..=16 {
            for kc in [1usize, 7, 8, 15, 16, 17, 31, 33, 64, 77] {
                let a: Vec<f32> = random(rows * (kc + 1), 0).into_iter().map(|x| x as f32).collect();
                let w: Vec<B> = random(LINES * (kc + 3), 1_000_000).into_iter().map(B::from_f64).collect();
                let old: Vec<f32> = random(rows * C_ROW, 2_000_000).into_iter().map(|x| x as f32).collect();
                for mode in [Mode::Set, Mode::Add] {
                    let mut c = old.clone();
                    let gemv = Gemv {
                        rows,
                        lines: LINES,
                        kc,
                        a: a.as_ptr(),
                        a_row: kc + 1,
                        w: w.as_ptr().cast(),
                        w_row: kc + 3,
                        dtype: B::DTYPE,
                        c: c.as_mut_ptr(),
                        c_row: C_ROW,
                        mode,
                    };
                    for wide in [false, true] {
                        if level() < if wide { Simd::Avx512 } else { Simd::Avx2 } {
                            continue;
                        }
                        // SAFETY: detected; every buffer holds what the job speaks of.
                        unsafe {
                            if wide {
                                gemv.run();
                            } else {
                                match B::DTYPE {
                                    DType::F32 => gemv.all_256::<1, false>(),
                                    DType::BF16 => gemv.all_256::<2, true>(),
                                    _ => gemv.all_256::<2, false>(),
                                }
                            }
                        }
                        for r in 0..rows {
                            for l in 0..C_ROW {
                                let before = old[r * C_ROW + l];
                                let chain = (0..kc).fold(0f32, |s, p| {
                                    a[r * (kc + 1) + p].mul_add(w[l.min(LINES - 1) * (kc + 3) + p].widen(), s)
                                });
                                let want = match mode {
                                    _ if l >= LINES => before,
                                    Mode::Add => before + chain,
                                    _ => chain,
                                };
                                assert_eq!(
                                    c[r * C_ROW + l].to_bits(),
                                    want.to_bits(),
                                    "{rows} rows, depth {kc}, ({r}, {l}), {wide}"
                                );
                            }
                        }
                        // SAFETY: nothing else refers to c.
                        unsafe { std::ptr::copy_nonoverlapping(old.as_ptr(), gemv.c, old.len()) }
                    }
                }
            }
        }
    }

    #[test]
    fn every_output_is_one_chain() {
        check::<f32>();
        check::<bf16>();
        check::<f16>();
    }
}
