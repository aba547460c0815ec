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

#[cfg(test)]
mod tests {
    use super::super::{Mode, Tile};
    use crate::simd::{Simd, level};

    /// Every vector kernel this machine can run against the portable one, bit for bit, at every number
    /// of rows and at columns on and beside the registers' edges; nothing beside the tile is written.
    #[test]
    fn vector_kernels_equal_the_portable_one() {
        type Run = unsafe fn(&Tile<f32>);
        let stream = crate::rng::Stream::new(1, crate::rng::Purpose::Data, 0);
        let random = |n: usize, from: u64| (0..n as u64).map(|i| stream.normal(from + i) as f32).collect::<Vec<_>>();
        let mut kernels: Vec<(&str, Run, usize, usize, usize)> = vec![];
        if level() >= Simd::Avx2 {
            kernels.push(("avx2", super::avx2, 6, 16, 8));
        }
        if level() >= Simd::Avx512 {
            kernels.push(("avx512", super::avx512, 8, 48, 16));
        }
        for (name, run, mr, nr, lanes) in kernels {
            for kc in [0usize, 1, 7, 64] {
                for rows in 1..=mr {
                    for cols in 1..=nr {
                        for mode in [Mode::Set, Mode::Add, Mode::Continue] {
                            for a_k in [1, mr] {
                                let width = cols.next_multiple_of(lanes);
                                let a_row = if a_k == 1 { kc.max(1) } else { 1 };
                                let a = random(mr * kc.max(1), 0);
                                let b = random(kc * width, 1_000_000);
                                let c = random(mr * 50, 2_000_000);
                                let (mut got, mut want) = (c.clone(), c);
                                let tile = |c: *mut f32| Tile {
                                    rows,
                                    cols,
                                    kc,
                                    a: a.as_ptr(),
                                    a_row,
                                    a_k,
                                    b: b.as_ptr(),
                                    width,
                                    c,
                                    c_row: 50,
                                    mode,
                                };
                                // SAFETY: detected; every buffer holds the tile.
                                unsafe { run(&tile(got.as_mut_ptr())) };
                                let all = tile(want.as_mut_ptr());
                                for j in 0..cols {
                                    let mut column = vec![0.0; kc];
                                    (0..kc).for_each(|p| column[p] = b[p * width + j]);
                                    // SAFETY: one column of the same tile.
                                    unsafe {
                                        let one = Tile {
                                            cols: 1,
                                            b: column.as_ptr(),
                                            width: 1,
                                            c: all.c.add(j),
                                            ..tile(all.c)
                                        };
                                        for r in 0..rows {
                                            super::super::portable_rows::<f32, 1, 1>(&one, r);
                                        }
                                    }
                                }
                                let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                                assert_eq!(bits(&got), bits(&want), "{name} {rows}x{cols}x{kc} {mode:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}
