//! Products of few rows with a matrix that lies in memory in panels already: decoding.
//!
//! A panel is 16 columns of B, in B's own dtype, depth by depth: what the kernel needs next is what comes next in
//! memory, so one core reads as fast as it can read at all. (A row-major weight is read from 16 places at once and
//! transposed on the way, see [`gemv`](super::gemv), at half that.) Several rows of A use a panel one after the other
//! while it is in the first-level cache.
//!
//! Each output is one chain of fused multiply-adds over the depth, so the bits are those of every other kernel.
//!
//! Bound by memory up to some eight rows, then by arithmetic.

use super::kernel::Mode;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Simd, level};
use crate::{Float, bf16};

/// Columns of a panel: a cache line of f32, and a multiple of every kernel's lanes.
pub(crate) const WIDTH: usize = 16;

/// Bytes ahead that a line is asked for.
const AHEAD: usize = 1024;

const CACHE_LINE: usize = 64;

/// `c[r, j]`, r < rows, j < cols, from sums over p < kc, in order, of `a[r, p] * b[p, j]`, fused.
pub(super) struct FewRows<B> {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) kc: usize,
    /// Element (r, p) of A is `a + r * a_row + p`.
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    /// Element (p, j) of B is `b + j / WIDTH * b_panel + p * WIDTH + j % WIDTH`; panels are whole.
    pub(super) b: *const B,
    pub(super) b_panel: usize,
    pub(super) c: *mut f32,
    pub(super) c_row: usize,
    /// Set or Add.
    pub(super) mode: Mode,
}

impl<B: Element> FewRows<B> {
    /// Computes it.
    ///
    /// # Safety
    /// All elements spoken of must be readable, those of C writable by this call alone.
    pub(super) unsafe fn run(&self) {
        #[cfg(target_arch = "x86_64")]
        {
            /// # Safety
            /// As [`FewRows::run`], with AVX-512: 32 registers of a whole line.
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            unsafe fn avx512<B: Element>(job: &FewRows<B>) {
                // SAFETY: the caller's promise.
                unsafe { job.all::<x86::Avx512, 4, 4, 2, 8>() }
            }
            /// # Safety
            /// As [`FewRows::run`], with AVX2: 16 registers of half a line.
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2<B: Element>(job: &FewRows<B>) {
                // SAFETY: the caller's promise.
                unsafe { job.all::<x86::Avx2, 4, 2, 1, 6>() }
            }
            // SAFETY: level() says what is there; the rest is the caller's promise.
            unsafe {
                match level() {
                    Simd::Avx512 => return avx512(self),
                    Simd::Avx2 => return avx2(self),
                    Simd::Portable => {}
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.all::<Plain, 2, 1, 1, 4>() }
    }

    /// With so many panels side by side for one row, for two and for more, and so many rows at a time.
    ///
    /// # Safety
    /// As [`FewRows::run`], with V's instructions.
    #[inline(always)]
    unsafe fn all<V: Vectors, const ONE: usize, const TWO: usize, const MORE: usize, const MR: usize>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.rows {
                0 => {}
                1 => self.columns::<V, 1, ONE>(),
                2 => self.columns::<V, 2, TWO>(),
                _ => self.columns::<V, MR, MORE>(),
            }
        }
    }

    /// All of it, NP panels and up to MR rows at a time.
    ///
    /// # Safety
    /// As [`FewRows::all`].
    #[inline(always)]
    unsafe fn columns<V: Vectors, const MR: usize, const NP: usize>(&self) {
        let mut j = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while j + NP * WIDTH <= self.cols {
                self.panels::<V, MR, NP>(j);
                j += NP * WIDTH;
            }
            while j < self.cols {
                self.panels::<V, MR, 1>(j);
                j += WIDTH;
            }
        }
    }

    /// All rows of NP panels from column `j` on.
    ///
    /// # Safety
    /// As [`FewRows::all`]; column `j` must begin a panel.
    #[inline(always)]
    unsafe fn panels<V: Vectors, const MR: usize, const NP: usize>(&self, j: usize) {
        let mut r = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while r + MR <= self.rows {
                self.block::<V, MR, NP>(r, j);
                r += MR;
            }
            // Fewer than MR, which is known when this is compiled.
            match self.rows - r {
                1 if MR > 1 => self.block::<V, 1, NP>(r, j),
                2 if MR > 2 => self.block::<V, 2, NP>(r, j),
                3 if MR > 3 => self.block::<V, 3, NP>(r, j),
                4 if MR > 4 => self.block::<V, 4, NP>(r, j),
                5 if MR > 5 => self.block::<V, 5, NP>(r, j),
                6 if MR > 6 => self.block::<V, 6, NP>(r, j),
                7 if MR > 7 => self.block::<V, 7, NP>(r, j),
                _ => {}
            }
        }
    }

    /// MR rows of NP panels. A chain of multiply-adds waits four cycles for each link, so there must be several.
    ///
    /// # Safety
    /// As [`FewRows::panels`]; rows `r..r + MR` must be there.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    unsafe fn block<V: Vectors, const MR: usize, const NP: usize>(&self, r: usize, j: usize) {
        let line = WIDTH * size_of::<B>();
        // SAFETY: rows below `rows`, whole panels from column j on, and depths below `kc`.
        unsafe {
            let mut acc = [[V::zero(); MR]; NP];
            let (a, b) = (self.a.add(r * self.a_row), self.b.add(j / WIDTH * self.b_panel));
            for p in 0..self.kc {
                for n in 0..NP {
                    let b = b.add(n * self.b_panel + p * WIDTH);
                    // Rows after the first find the panel in the cache.
                    if r == 0 && (p * line).is_multiple_of(CACHE_LINE) {
                        prefetch(b.cast::<u8>().wrapping_add(AHEAD));
                    }
                    let b = B::line::<V>(b);
                    for i in 0..MR {
                        acc[n][i] = V::fma(*a.add(i * self.a_row + p), b, acc[n][i]);
                    }
                }
            }
            for n in 0..NP {
                let j = j + n * WIDTH;
                let live = WIDTH.min(self.cols - j);
                for i in 0..MR {
                    let sums = V::values(acc[n][i]);
                    let c = std::slice::from_raw_parts_mut(self.c.add((r + i) * self.c_row + j), live);
                    for (c, &sum) in c.iter_mut().zip(&sums) {
                        *c = if self.mode == Mode::Add { *c + sum } else { sum };
                    }
                }
            }
        }
    }
}

/// Dtypes that panels have.
pub(super) trait Element: Float {
    /// A line of a panel, widened.
    ///
    /// # Safety
    /// V's instructions must be there, and [`WIDTH`] elements readable.
    unsafe fn line<V: Vectors>(at: *const Self) -> V::Line;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn line<V: Vectors>(at: *const f32) -> V::Line {
        // SAFETY: the caller's promise.
        unsafe { V::f32s(at) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn line<V: Vectors>(at: *const bf16) -> V::Line {
        // SAFETY: the caller's promise.
        unsafe { V::bf16s(at) }
    }
}

/// Vector instructions, by whole lines. Functions that are inlined where their instructions are allowed.
///
/// # Safety of its functions
/// The instructions must be there, and what is read be readable.
pub(super) trait Vectors {
    /// [`WIDTH`] numbers in registers.
    type Line: Copy;
    unsafe fn zero() -> Self::Line;
    unsafe fn f32s(at: *const f32) -> Self::Line;
    unsafe fn bf16s(at: *const bf16) -> Self::Line;
    /// x b + sum, fused.
    unsafe fn fma(x: f32, b: Self::Line, sum: Self::Line) -> Self::Line;
    unsafe fn values(line: Self::Line) -> [f32; WIDTH];
}

/// What the compiler makes of it.
struct Plain;

impl Vectors for Plain {
    type Line = [f32; WIDTH];

    #[inline(always)]
    unsafe fn zero() -> Self::Line {
        [0.0; WIDTH]
    }

    #[inline(always)]
    unsafe fn f32s(at: *const f32) -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe { *at.cast() }
    }

    #[inline(always)]
    unsafe fn bf16s(at: *const bf16) -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe { *at.cast::<[bf16; WIDTH]>() }.map(|x| x.widen())
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
mod x86 {
    use super::{Vectors, WIDTH};
    use crate::bf16;
    use std::arch::x86_64::*;

    pub(super) struct Avx2;

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

    pub(super) struct Avx512;

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

/// Asks for a cache line. What lies behind the matrix is asked for in vain, which is allowed.
#[inline(always)]
fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is harmless.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    fn check<B: Element>() {
        let stream = Stream::new(8, Purpose::Data, 0);
        let random = |n: usize, from: u64| (0..n as u64).map(|i| stream.normal(from + i)).collect::<Vec<f64>>();
        for rows in 1..=17 {
            for kc in [1usize, 7, 16, 33, 77] {
                for cols in [1usize, 16, 31, 4 * 16, 5 * 16 + 3] {
                    let (a_row, b_panel, c_row) = (kc + 1, (kc + 2) * WIDTH, cols + 8);
                    let a: Vec<f32> = random(rows * a_row, 0).into_iter().map(|x| x as f32).collect();
                    let b: Vec<B> =
                        random(cols.div_ceil(WIDTH) * b_panel, 1_000_000).into_iter().map(B::from_f64).collect();
                    let old: Vec<f32> = random(rows * c_row, 2_000_000).into_iter().map(|x| x as f32).collect();
                    for mode in [Mode::Set, Mode::Add] {
                        let mut c = old.clone();
                        let (a_at, b_at) = (a.as_ptr(), b.as_ptr());
                        let job = FewRows {
                            rows,
                            cols,
                            kc,
                            a: a_at,
                            a_row,
                            b: b_at,
                            b_panel,
                            c: c.as_mut_ptr(),
                            c_row,
                            mode,
                        };
                        // SAFETY: every buffer holds what the job speaks of.
                        unsafe { job.run() };
                        for (at, (&got, &before)) in c.iter().zip(&old).enumerate() {
                            let (r, j) = (at / c_row, at % c_row);
                            let chain = || {
                                let b = &b[j / WIDTH * b_panel + j % WIDTH..];
                                (0..kc).fold(0f32, |s, p| a[r * a_row + p].mul_add(b[p * WIDTH].widen(), s))
                            };
                            let want = match mode {
                                _ if j >= cols => before,
                                Mode::Add => before + chain(),
                                _ => chain(),
                            };
                            assert_eq!(got.to_bits(), want.to_bits(), "{rows} rows, depth {kc}, {cols} columns, {at}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_output_is_one_chain() {
        check::<f32>();
        check::<bf16>();
    }
}
