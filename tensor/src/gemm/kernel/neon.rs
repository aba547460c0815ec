//! The NEON kernel: one instance for each number of rows and of registers of columns, as for the other vector
//! units. A is read where it lies.

use super::{Mode, Tile};
use std::arch::aarch64::*;

/// Elements of a register.
const LANES: usize = 4;

/// Any tile of up to 6 rows and 16 columns.
///
/// # Safety
/// As [`Kernel::tile`](super::Kernel::tile). NEON is part of every AArch64 target with an operating system.
pub(super) unsafe fn neon(t: &Tile<f32>) {
    // SAFETY: the caller's promise.
    unsafe {
        match t.cols.div_ceil(LANES) {
            1 => rows::<1>(t),
            2 => rows::<2>(t),
            3 => rows::<3>(t),
            _ => rows::<4>(t),
        }
    }
}

/// # Safety
/// As [`neon`], with columns for NV registers.
#[inline]
unsafe fn rows<const NV: usize>(t: &Tile<f32>) {
    // SAFETY: the caller's promise.
    unsafe {
        match t.rows {
            1 => tile::<1, NV>(t),
            2 => tile::<2, NV>(t),
            3 => tile::<3, NV>(t),
            4 => tile::<4, NV>(t),
            5 => tile::<5, NV>(t),
            _ => tile::<6, NV>(t),
        }
    }
}

/// The first `live` elements from `from` on, the others 0.
///
/// # Safety
/// They must be readable.
#[inline(always)]
unsafe fn load(from: *const f32, live: usize) -> float32x4_t {
    // SAFETY: whole registers where they are wanted, else what there is by way of a buffer.
    unsafe {
        if live >= LANES {
            return vld1q_f32(from);
        }
        let mut buffer = [0f32; LANES];
        std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), live);
        vld1q_f32(buffer.as_ptr())
    }
}

/// Writes the first `live` elements to `to`.
///
/// # Safety
/// They must be writable.
#[inline(always)]
unsafe fn store(to: *mut f32, x: float32x4_t, live: usize) {
    // SAFETY: as in `load`.
    unsafe {
        if live >= LANES {
            return vst1q_f32(to, x);
        }
        let mut buffer = [0f32; LANES];
        vst1q_f32(buffer.as_mut_ptr(), x);
        std::ptr::copy_nonoverlapping(buffer.as_ptr(), to, live);
    }
}

/// # Safety
/// As [`neon`], with MR rows and columns for NV registers.
unsafe fn tile<const MR: usize, const NV: usize>(t: &Tile<f32>) {
    debug_assert!(t.rows == MR && t.cols > LANES * (NV - 1) && t.cols <= LANES * NV);
    debug_assert!(t.kc <= 1 || t.width >= LANES * NV);
    let live = |v: usize| t.cols - LANES * v;
    // SAFETY: rows below MR, columns below cols (`live` sees to it; the panel is as wide as NV registers) and
    // depths below kc are the tile's.
    unsafe {
        let mut acc = [[vdupq_n_f32(0.0); NV]; MR];
        if t.mode == Mode::Continue {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, x) in acc.iter_mut().enumerate() {
                    *x = load(t.c.add(r * t.c_row + LANES * v), live(v));
                }
            }
        }
        let mut rows = [t.a; MR];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = t.a.add(r * t.a_row);
        }
        let (mut b, mut at) = (t.b, 0);
        for _ in 0..t.kc {
            let mut b_v = [vdupq_n_f32(0.0); NV];
            for (v, x) in b_v.iter_mut().enumerate() {
                *x = vld1q_f32(b.add(LANES * v));
            }
            for (row, acc) in rows.iter().zip(&mut acc) {
                let x = vld1q_dup_f32(row.add(at));
                for (acc, &b) in acc.iter_mut().zip(&b_v) {
                    *acc = vfmaq_f32(*acc, x, b);
                }
            }
            at += t.a_k;
            b = b.add(t.width);
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, &sum) in acc.iter().enumerate() {
                let c = t.c.add(r * t.c_row + LANES * v);
                let sum = if t.mode == Mode::Add { vaddq_f32(load(c, live(v)), sum) } else { sum };
                store(c, sum, live(v));
            }
        }
    }
}
