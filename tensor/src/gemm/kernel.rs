//! The register-tiled kernels: one tile of C from rows of A and a packed panel of B.

use crate::Real;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Simd, level};

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Sizes of a compute type's tile on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TileShape {
    /// Rows of the largest tile.
    pub mr: usize,
    /// Columns of the largest tile: the width of a full panel.
    pub nr: usize,
    /// A panel's width is a multiple of this.
    pub lanes: usize,
}

/// Where a tile's chains of sums begin and where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// From 0; C = sums.
    Set,
    /// From 0; C += sums.
    Add,
    /// From what C holds; C = sums. Goes on with chains that were cut.
    Continue,
}

/// One tile: `c[r, j]`, r < rows, j < cols, from sums over `p < kc`, in order, of `a[r, p] * b[p, j]`, fused.
pub struct Tile<R> {
    /// 1 to `mr`.
    pub rows: usize,
    /// 1 to `nr`.
    pub cols: usize,
    /// Depth.
    pub kc: usize,
    /// Element (r, p) of A is `a + r * a_row + p * a_k`.
    pub a: *const R,
    /// Distance of A's rows.
    pub a_row: usize,
    /// Distance along A's depth.
    pub a_k: usize,
    /// Element (p, j) of the panel is `b + p * width + j`.
    pub b: *const R,
    /// Distance of the panel's rows, of which `cols` rounded up to `lanes` elements are readable.
    pub width: usize,
    /// Element (r, j) of C is `c + r * c_row + j`.
    pub c: *mut R,
    /// Distance of C's rows.
    pub c_row: usize,
    /// What becomes of C.
    pub mode: Mode,
}

/// A compute type's kernel.
pub trait Kernel: Sized {
    /// Sizes on this machine.
    fn shape() -> TileShape;

    /// Computes a tile.
    ///
    /// # Safety
    /// All elements that [`Tile`] speaks of must be readable, and those of C writable by this call alone;
    /// `rows`, `cols` and `width` must be within [`Kernel::shape`].
    unsafe fn tile(tile: &Tile<Self>);
}

impl Kernel for f32 {
    #[inline]
    fn shape() -> TileShape {
        #[cfg(target_arch = "x86_64")]
        match level() {
            // 24 accumulators of 16, 3 registers of B and 1 of A, of the 32 there are.
            Simd::Avx512 => return TileShape { mr: 8, nr: 48, lanes: 16 },
            // 12 accumulators of 8, 2 registers of B and 1 of A, of the 16 there are.
            Simd::Avx2 => return TileShape { mr: 6, nr: 16, lanes: 8 },
            Simd::Portable => {}
        }
        if cfg!(target_arch = "aarch64") {
            // 24 accumulators of 4, 4 registers of B and 1 of A, of the 32 there are.
            return TileShape { mr: 6, nr: 16, lanes: 4 };
        }
        TileShape { mr: 4, nr: 16, lanes: 16 }
    }

    #[inline]
    unsafe fn tile(tile: &Tile<f32>) {
        #[cfg(target_arch = "x86_64")]
        match level() {
            // SAFETY: level() says AVX-512 is there; the rest is the caller's promise.
            Simd::Avx512 => return unsafe { x86::avx512(tile) },
            // SAFETY: level() says AVX2 and FMA are there; the rest is the caller's promise.
            Simd::Avx2 => return unsafe { x86::avx2(tile) },
            Simd::Portable => {}
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: NEON is part of the target; the rest is the caller's promise.
        return unsafe { neon::neon(tile) };
        #[cfg(not(target_arch = "aarch64"))]
        // SAFETY: the caller's promise.
        unsafe {
            portable::<f32, 4, 16>(tile)
        }
    }
}

impl Kernel for f64 {
    #[inline]
    fn shape() -> TileShape {
        TileShape { mr: 4, nr: 8, lanes: 8 }
    }

    #[inline]
    unsafe fn tile(tile: &Tile<f64>) {
        #[cfg(target_arch = "x86_64")]
        if level() >= Simd::Avx2 {
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2(tile: &Tile<f64>) {
                // SAFETY: the caller's promise.
                unsafe { portable::<f64, 4, 8>(tile) }
            }
            // SAFETY: level() says AVX2 and FMA are there; the rest is the caller's promise.
            return unsafe { avx2(tile) };
        }
        // SAFETY: the caller's promise.
        unsafe { portable::<f64, 4, 8>(tile) }
    }
}

/// The kernel in plain Rust; what the others must equal bit for bit.
///
/// # Safety
/// As [`Kernel::tile`], with a panel of width `NR`.
#[inline(always)]
unsafe fn portable<R: Real, const MR: usize, const NR: usize>(t: &Tile<R>) {
    if t.rows == MR {
        // SAFETY: the caller's promise.
        return unsafe { portable_rows::<R, MR, NR>(t, 0) };
    }
    for r in 0..t.rows {
        // SAFETY: r < rows; the rest is the caller's promise.
        unsafe { portable_rows::<R, 1, NR>(t, r) }
    }
}

/// Rows `first..first + MR` of a tile.
///
/// # Safety
/// As [`portable`]; these rows must be in the tile.
#[inline(always)]
unsafe fn portable_rows<R: Real, const MR: usize, const NR: usize>(t: &Tile<R>, first: usize) {
    // The distance of rows of which there is one may be anything.
    debug_assert!(t.kc <= 1 || t.width >= NR || t.width >= t.cols && NR == 1);
    // SAFETY: rows first..first + MR, columns below cols <= NR and depths below kc are the tile's.
    unsafe {
        let (a, c) = (t.a.add(first * t.a_row), t.c.add(first * t.c_row));
        let mut acc = [[R::ZERO; NR]; MR];
        if t.mode == Mode::Continue {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (j, x) in acc.iter_mut().enumerate().take(t.cols) {
                    *x = *c.add(r * t.c_row + j);
                }
            }
        }
        for p in 0..t.kc {
            let b = &*t.b.add(p * t.width).cast::<[R; NR]>();
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = *a.add(r * t.a_row + p * t.a_k);
                for (acc, &b) in acc.iter_mut().zip(b) {
                    *acc = x.mul_add(b, *acc);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (j, &x) in acc.iter().enumerate().take(t.cols) {
                let c = c.add(r * t.c_row + j);
                *c = if t.mode == Mode::Add { *c + x } else { x };
            }
        }
    }
}
