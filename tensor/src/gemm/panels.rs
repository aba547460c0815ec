//! Products of few rows with a matrix that lies in memory in panels already: decoding.
//!
//! A panel is 16 columns of B depth by depth, as it is [`Stored`]: what the kernel needs next is what comes next in
//! memory, so one core reads as fast as it can read at all. (A row-major weight is read from 16 places at once and
//! transposed on the way, see [`gemv`](super::gemv), at half that.) Several rows of A use a panel one after the other
//! while it is in the first-level cache. Blocks are dequantised in registers, line by line, for all rows that find
//! room in the others.
//!
//! Each output is one chain of fused multiply-adds over the depth, so the bits are those of every other kernel.
//!
//! Floats are bound by memory up to some eight rows, then by arithmetic; 8-bit blocks are by either about as much with
//! one row, 4-bit blocks by arithmetic.

mod stored;
mod vectors;

pub(crate) use stored::{DEPTH, Unit};
pub use stored::{Stored, Table};

use std::ops::Range;

use super::kernel::Mode;
use crate::simd::{Simd, level};
use crate::{bf16, f16};
use stored::{Bytes, Codes, Floats, Source, with_source};
#[cfg(target_arch = "x86_64")]
use vectors::{Avx2, Avx512};
use vectors::{Plain, Vectors};

/// Columns of a panel: a cache line of f32, and a multiple of every kernel's lanes.
pub(crate) const WIDTH: usize = 16;

const CACHE_LINE: usize = 64;

/// Bytes of a line of T.
const fn line_bytes<T>() -> usize {
    WIDTH * size_of::<T>()
}

/// `c[r, j]`, r < rows, j < cols, from sums over p < kc, in order, of `a[r, p] * b[p, j]`, fused.
pub(super) struct FewRows {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Whole units.
    pub(super) kc: usize,
    /// Element (r, p) of A is `a + r * a_row + p`, or if it is [packed](packs) `a + r + p * a_row`. Packed rows are
    /// filled up to a multiple of [`WIDTH`] with what may be read and is not used.
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    pub(super) stored: Stored,
    /// The panel of columns j.. begins at `b + j / WIDTH * b_panel`; panels are whole.
    pub(super) b: *const u8,
    pub(super) b_panel: usize,
    pub(super) c: *mut f32,
    pub(super) c_row: usize,
    /// Set or Add.
    pub(super) mode: Mode,
}

/// Whether so many rows of A are to be packed: those of a depth side by side. Sixteen rows have more addresses than there
/// are registers for, and one pass over a panel in place of two is what they gain.
pub(super) fn packs(rows: usize) -> bool {
    rows > UNPACKED && level() == Simd::Avx512
}

/// Most rows that a kernel reads where they are.
const UNPACKED: usize = 8;

/// # Safety
/// As [`FewRows::run`], with AVX-512: 32 registers of a whole line.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn avx512<S: Source>(job: &FewRows, source: S) {
    // SAFETY: the caller's promise.
    unsafe {
        match S::BLOCKS {
            _ if packs(job.rows) => job.columns::<S, Avx512, 16, 1, true>(source),
            true => job.all::<S, Avx512, 4, 1, 1, 8>(source),
            // One stream for each core is what the processor itself reads ahead best; two or more are slower by a third.
            false => job.all::<S, Avx512, 1, 1, 1, 8>(source),
        }
    }
}

/// # Safety
/// As [`FewRows::run`], with AVX2: 16 registers of half a line.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<S: Source>(job: &FewRows, source: S) {
    // SAFETY: the caller's promise.
    unsafe {
        // Making lines keeps registers, and takes as long as the chains wait.
        if S::BLOCKS { job.all::<S, Avx2, 1, 1, 1, 6>(source) } else { job.all::<S, Avx2, 4, 2, 1, 6>(source) }
    }
}

/// # Safety
/// As [`FewRows::run`].
unsafe fn plain<S: Source>(job: &FewRows, source: S) {
    // SAFETY: the caller's promise.
    unsafe { if S::BLOCKS { job.all::<S, Plain, 1, 1, 1, 1>(source) } else { job.all::<S, Plain, 2, 1, 1, 4>(source) } }
}

impl FewRows {
    /// Computes it.
    ///
    /// # Safety
    /// All elements spoken of must be readable, those of C writable by this call alone.
    pub(super) unsafe fn run(&self) {
        with_source!(self.stored, source => {
            // SAFETY: level() says what is there; the rest is the caller's promise.
            unsafe {
                #[cfg(target_arch = "x86_64")]
                match level() {
                    Simd::Avx512 => return avx512(self, source),
                    Simd::Avx2 => return avx2(self, source),
                    Simd::Portable => {}
                }
                plain(self, source)
            }
        });
    }

    /// With so many panels side by side for one row, for two and for more, and so many rows at a time.
    ///
    /// # Safety
    /// As [`FewRows::run`], with V's instructions.
    #[inline(always)]
    unsafe fn all<S: Source, V: Vectors, const ONE: usize, const TWO: usize, const MORE: usize, const MR: usize>(
        &self,
        source: S,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.rows {
                0 => {}
                1 => self.columns::<S, V, 1, ONE, false>(source),
                2 if TWO > MORE => self.columns::<S, V, 2, TWO, false>(source),
                _ => self.columns::<S, V, MR, MORE, false>(source),
            }
        }
    }

    /// All of it, NP panels and up to MR rows at a time, of a packed A or of one as it is.
    ///
    /// # Safety
    /// As [`FewRows::all`].
    #[inline(always)]
    unsafe fn columns<S: Source, V: Vectors, const MR: usize, const NP: usize, const PACKED: bool>(&self, source: S) {
        let mut j = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while if NP > 1 { j + NP * WIDTH <= self.cols } else { j < self.cols } {
                self.panels::<S, V, MR, NP, PACKED>(source, j);
                j += NP * WIDTH;
            }
            while NP > 1 && j < self.cols {
                self.panels::<S, V, MR, 1, PACKED>(source, j);
                j += WIDTH;
            }
        }
    }

    /// All rows of NP panels from column `j` on.
    ///
    /// # Safety
    /// As [`FewRows::all`]; column `j` must begin a panel.
    #[inline(always)]
    unsafe fn panels<S: Source, V: Vectors, const MR: usize, const NP: usize, const PACKED: bool>(
        &self,
        source: S,
        j: usize,
    ) {
        let mut r = 0;
        // SAFETY: the caller's promise; packed rows are there up to a multiple of 16.
        unsafe {
            while r + MR <= self.rows {
                self.block::<S, V, MR, NP, PACKED>(source, r, j);
                r += MR;
            }
            // Fewer than MR, which is known when this is compiled. Of a packed A some may be computed in vain.
            match self.rows - r {
                1 if MR > 1 => self.block::<S, V, 1, NP, PACKED>(source, r, j),
                2 if MR > 2 => self.block::<S, V, 2, NP, PACKED>(source, r, j),
                3 if MR > 3 => self.block::<S, V, 3, NP, PACKED>(source, r, j),
                4 if MR > 4 => self.block::<S, V, 4, NP, PACKED>(source, r, j),
                5 if MR > 5 => self.block::<S, V, 5, NP, PACKED>(source, r, j),
                6 if MR > 6 => self.block::<S, V, 6, NP, PACKED>(source, r, j),
                7 if MR > 7 => self.block::<S, V, 7, NP, PACKED>(source, r, j),
                8 if MR > 8 => self.block::<S, V, 8, NP, PACKED>(source, r, j),
                9..=12 if MR > 12 => self.block::<S, V, 12, NP, PACKED>(source, r, j),
                13..=15 if MR > 12 => self.block::<S, V, MR, NP, PACKED>(source, r, j),
                _ => {}
            }
        }
    }

    /// MR rows of NP panels. A chain of multiply-adds waits four cycles for each link, so there must be several.
    ///
    /// # Safety
    /// As [`FewRows::panels`]; rows `r..r + MR` must be there, at least to be read.
    #[inline(always)]
    unsafe fn block<S: Source, V: Vectors, const MR: usize, const NP: usize, const PACKED: bool>(
        &self,
        source: S,
        r: usize,
        j: usize,
    ) {
        // SAFETY: rows below `rows`, whole panels from column j on, and depths below `kc`.
        unsafe {
            let mut acc = [[V::zero(); MR]; NP];
            let row = if PACKED { 1 } else { self.a_row };
            let (a, b) = (self.a.add(r * row), self.b.add(j / WIDTH * self.b_panel));
            for u in 0..self.kc / S::DEPTH {
                let unit = b.add(u * S::BYTES);
                // Rows after the first find the panel in the cache.
                if r == 0 && (u * S::BYTES).is_multiple_of(CACHE_LINE) {
                    for n in 0..NP {
                        for line in (0..S::BYTES).step_by(CACHE_LINE) {
                            prefetch(unit.wrapping_add(n * self.b_panel + line + V::AHEAD));
                        }
                    }
                }
                if S::HALVES {
                    let half = S::DEPTH / 2;
                    self.lines::<S, V, MR, NP, PACKED, false>(source, a, u * S::DEPTH, unit, half, &mut acc);
                    self.lines::<S, V, MR, NP, PACKED, true>(source, a, u * S::DEPTH + half, unit, half, &mut acc);
                } else {
                    self.lines::<S, V, MR, NP, PACKED, false>(source, a, u * S::DEPTH, unit, S::DEPTH, &mut acc);
                }
            }
            for (n, acc) in acc.iter().enumerate() {
                let j = j + n * WIDTH;
                let live = WIDTH.min(self.cols - j);
                for (i, &acc) in acc.iter().enumerate().take(self.rows - r) {
                    let sums = S::values::<V>(acc);
                    let c = self.c.add((r + i) * self.c_row + j);
                    // Of a length that the compiler knows, so that a line is one store and not a call.
                    if live == WIDTH {
                        let c = c.cast::<[f32; WIDTH]>();
                        let add = |old: [f32; WIDTH]| std::array::from_fn(|i| old[i] + sums[i]);
                        c.write_unaligned(if self.mode == Mode::Add { add(c.read_unaligned()) } else { sums });
                        continue;
                    }
                    for (c, &sum) in std::slice::from_raw_parts_mut(c, live).iter_mut().zip(&sums) {
                        *c = if self.mode == Mode::Add { *c + sum } else { sum };
                    }
                }
            }
        }
    }

    /// The first `depths` lines of a half of NP units, with MR rows of A from `a` on, at depths `from` on.
    ///
    /// # Safety
    /// As [`FewRows::block`].
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    unsafe fn lines<S: Source, V: Vectors, const MR: usize, const NP: usize, const PACKED: bool, const HIGH: bool>(
        &self,
        source: S,
        a: *const f32,
        from: usize,
        unit: *const u8,
        depths: usize,
        acc: &mut [[V::Line; MR]; NP],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let a = |i: usize, p: usize| {
                *if PACKED { a.add(i + (from + p) * self.a_row) } else { a.add(i * self.a_row + from + p) }
            };
            if S::DEPTH == 1 {
                for n in 0..NP {
                    let b = source.line::<V>(unit.add(n * self.b_panel));
                    for i in 0..MR {
                        acc[n][i] = V::fma(a(i, 0), b, acc[n][i]);
                    }
                }
                return;
            }
            for p in (0..depths).step_by(2) {
                for n in 0..NP {
                    let [b, next] = source.pair::<V, HIGH>(unit.add(n * self.b_panel), p);
                    for i in 0..MR {
                        acc[n][i] = V::fma(a(i, p), b, acc[n][i]);
                    }
                    for i in 0..MR {
                        acc[n][i] = V::fma(a(i, p + 1), next, acc[n][i]);
                    }
                }
            }
        }
    }
}

/// Writes a panel's elements at `depths` to rows of `stride` floats, into `columns` of them: those of the first `live`
/// columns, and zeros. Without depths, zeros.
///
/// # Panics
/// If the panel or the rows are too short.
pub(crate) fn write_lines(
    stored: Stored,
    panel: &[u8],
    depths: Range<usize>,
    live: usize,
    rows: &mut [f32],
    stride: usize,
    columns: Range<usize>,
) {
    if depths.is_empty() {
        return rows.chunks_exact_mut(stride).for_each(|row| row[columns.clone()].fill(0.0));
    }
    let put = |row: &mut [f32], line: &[f32; WIDTH]| {
        let (elements, padding) = row[columns.clone()].split_at_mut(live);
        elements.copy_from_slice(&line[..live]);
        padding.fill(0.0);
    };
    let rows = rows.chunks_exact_mut(stride).zip(depths);
    #[cfg(target_arch = "x86_64")]
    if level() >= Simd::Avx2 {
        /// # Safety
        /// AVX2, FMA and F16C must be there.
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2<'a, S: Source>(
            source: S,
            panel: &[u8],
            rows: impl Iterator<Item = (&'a mut [f32], usize)>,
            put: impl Fn(&mut [f32], &[f32; WIDTH]),
        ) {
            // SAFETY: the caller's promise.
            unsafe { each_line::<S, Avx2>(source, panel, rows, put) }
        }
        // SAFETY: level() says that they are.
        return with_source!(stored, source => unsafe { avx2(source, panel, rows, put) });
    }
    // SAFETY: it needs nothing.
    with_source!(stored, source => unsafe { each_line::<_, Plain>(source, panel, rows, put) })
}

/// Calls `put` with each row and the line of its depth.
///
/// # Safety
/// V's instructions must be there.
#[inline(always)]
unsafe fn each_line<'a, S: Source, V: Vectors>(
    source: S,
    panel: &[u8],
    rows: impl Iterator<Item = (&'a mut [f32], usize)>,
    put: impl Fn(&mut [f32], &[f32; WIDTH]),
) {
    for (row, p) in rows {
        let (unit, i) = (&panel[p / S::DEPTH * S::BYTES..][..S::BYTES], p % S::DEPTH);
        // SAFETY: the caller's promise; the unit is there.
        let line = unsafe {
            S::values::<V>(if S::DEPTH == 1 {
                source.line::<V>(unit.as_ptr())
            } else if S::HALVES && i >= S::DEPTH / 2 {
                source.pair::<V, true>(unit.as_ptr(), (i - S::DEPTH / 2) & !1)[i % 2]
            } else {
                source.pair::<V, false>(unit.as_ptr(), i & !1)[i % 2]
            })
        };
        put(row, &line);
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
mod tests;
