//! AVX2 and AVX-512 kernels.
//!
//! One instance for each number of rows and of registers of columns, so that the edges of a product
//! cost what they are. A is read where it lies: its elements are broadcast, so it needs no packing.

use super::{Mode, Tile};
use std::arch::x86_64::*;

/// Any tile of up to 8 rows and 48 columns.
///
/// # Safety
/// AVX-512F must be there; as [`Kernel::tile`](super::Kernel::tile).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn avx512(t: &Tile<f32>) {
    // SAFETY: the caller's promise.
    unsafe {
        match t.cols.div_ceil(16) {
            1 => avx512_rows::<1>(t),
            2 => avx512_rows::<2>(t),
            _ => avx512_rows::<3>(t),
        }
    }
}

/// # Safety
/// As [`avx512`], with columns for NV registers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline]
unsafe fn avx512_rows<const NV: usize>(t: &Tile<f32>) {
    // SAFETY: the caller's promise.
    unsafe {
        match t.rows {
            1 => avx512_tile::<1, NV>(t),
            2 => avx512_tile::<2, NV>(t),
            3 => avx512_tile::<3, NV>(t),
            4 => avx512_tile::<4, NV>(t),
            5 => avx512_tile::<5, NV>(t),
            6 => avx512_tile::<6, NV>(t),
            7 => avx512_tile::<7, NV>(t),
            _ => avx512_tile::<8, NV>(t),
        }
    }
}

/// # Safety
/// As [`avx512`], with MR rows and columns for NV registers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn avx512_tile<const MR: usize, const NV: usize>(t: &Tile<f32>) {
    debug_assert!(t.rows == MR && t.cols > 16 * (NV - 1) && t.cols <= 16 * NV);
    debug_assert!(t.kc <= 1 || t.width >= 16 * NV);
    let mut masks = [0xffff_u16; NV];
    masks[NV - 1] = 0xffff >> (16 * NV - t.cols);
    let mut acc = [[_mm512_setzero_ps(); NV]; MR];
    // SAFETY: rows below MR, columns below cols (the masks see to it; the panel is as wide as NV registers)
    // and depths below kc are the tile's.
    unsafe {
        if t.mode == Mode::Continue {
            for (r, acc) in acc.iter_mut().enumerate() {
                for v in 0..NV {
                    acc[v] = _mm512_maskz_loadu_ps(masks[v], t.c.add(r * t.c_row + 16 * v));
                }
            }
        }
        let mut rows = [t.a; MR];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = t.a.add(r * t.a_row);
        }
        let (mut b, mut at) = (t.b, 0);
        let mut b_v = [_mm512_setzero_ps(); NV];
        for _ in 0..t.kc {
            for (v, b_v) in b_v.iter_mut().enumerate() {
                *b_v = _mm512_loadu_ps(b.add(16 * v));
            }
            for r in 0..MR {
                let x = _mm512_set1_ps(*rows[r].add(at));
                for v in 0..NV {
                    acc[r][v] = _mm512_fmadd_ps(x, b_v[v], acc[r][v]);
                }
            }
            at += t.a_k;
            b = b.add(t.width);
        }
        for (r, acc) in acc.iter().enumerate() {
            for v in 0..NV {
                let c = t.c.add(r * t.c_row + 16 * v);
                let mut sum = acc[v];
                if t.mode == Mode::Add {
                    sum = _mm512_add_ps(_mm512_maskz_loadu_ps(masks[v], c), sum);
                }
                _mm512_mask_storeu_ps(c, masks[v], sum);
            }
        }
    }
}

/// Any tile of up to 6 rows and 16 columns.
///
/// # Safety
/// AVX2 and FMA must be there; as [`Kernel::tile`](super::Kernel::tile).
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn avx2(t: &Tile<f32>) {
    // SAFETY: the caller's promise.
    unsafe { if t.cols <= 8 { avx2_rows::<1>(t) } else { avx2_rows::<2>(t) } }
}

/// # Safety
/// As [`avx2`], with columns for NV registers.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn avx2_rows<const NV: usize>(t: &Tile<f32>) {
    // SAFETY: the caller's promise.
    unsafe {
        match t.rows {
            1 => avx2_tile::<1, NV>(t),
            2 => avx2_tile::<2, NV>(t),
            3 => avx2_tile::<3, NV>(t),
            4 => avx2_tile::<4, NV>(t),
            5 => avx2_tile::<5, NV>(t),
            _ => avx2_tile::<6, NV>(t),
        }
    }
}

/// # Safety
/// As [`avx2`], with MR rows and columns for NV registers.
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_tile<const MR: usize, const NV: usize>(t: &Tile<f32>) {
    debug_assert!(t.rows == MR && t.cols > 8 * (NV - 1) && t.cols <= 8 * NV);
    debug_assert!(t.kc <= 1 || t.width >= 8 * NV);
    let mut masks = [_mm256_set1_epi32(-1); NV];
    let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    masks[NV - 1] = _mm256_cmpgt_epi32(_mm256_set1_epi32((t.cols - 8 * (NV - 1)) as i32), lane);
    let mut acc = [[_mm256_setzero_ps(); NV]; MR];
    // SAFETY: rows below MR, columns below cols (the masks see to it; the panel is as wide as NV registers)
    // and depths below kc are the tile's.
    unsafe {
        if t.mode == Mode::Continue {
            for (r, acc) in acc.iter_mut().enumerate() {
                for v in 0..NV {
                    acc[v] = _mm256_maskload_ps(t.c.add(r * t.c_row + 8 * v), masks[v]);
                }
            }
        }
        let mut rows = [t.a; MR];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = t.a.add(r * t.a_row);
        }
        let (mut b, mut at) = (t.b, 0);
        let mut b_v = [_mm256_setzero_ps(); NV];
        for _ in 0..t.kc {
            for (v, b_v) in b_v.iter_mut().enumerate() {
                *b_v = _mm256_loadu_ps(b.add(8 * v));
            }
            for r in 0..MR {
                let x = _mm256_broadcast_ss(&*rows[r].add(at));
                for v in 0..NV {
                    acc[r][v] = _mm256_fmadd_ps(x, b_v[v], acc[r][v]);
                }
            }
            at += t.a_k;
            b = b.add(t.width);
        }
        for (r, acc) in acc.iter().enumerate() {
            for v in 0..NV {
                let c = t.c.add(r * t.c_row + 8 * v);
                let mut sum = acc[v];
                if t.mode == Mode::Add {
                    sum = _mm256_add_ps(_mm256_maskload_ps(c, masks[v]), sum);
                }
                _mm256_maskstore_ps(c, masks[v], sum);
            }
        }
    }
}
