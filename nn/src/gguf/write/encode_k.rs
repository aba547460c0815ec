//! Quantisation into blocks of 256: Q4_K, Q5_K, Q6_K.
//!
//! A block has parts (8 of 32, in Q6_K 16 of 16) with a scale each, and the scales are integers times a common f16. For
//! each part the scale that makes Σ w (x - x̂)² least is sought: starting from the range of x over the range of q, a few
//! other scales are tried; each gives integers, and these a scale by least squares. Then the scales are rounded, and the
//! integers made once more from what was rounded.
//!
//! # Source
//! ggml's `quantize_row_q*_K_ref` without an importance matrix: `make_qkx2_quants` and `make_qx_quants`.

use half::f16;

use super::encode::put;

/// To the nearest integer, ties to even.
fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

/// A scale and minus a minimum for x ≈ scale · q + min, 0 ≤ q ≤ most, min ≤ 0; and q.
///
/// `tries` scales of the range over `most` + `from` + 0.1 k are tried.
fn scale_and_min(x: &[f32; 32], w: &[f32; 32], most: i32, from: f32, tries: i32) -> (f32, f32, [u8; 32]) {
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (w[0], w[0] * x[0]);
    for (&x, &w) in x.iter().zip(w).skip(1) {
        min = if x < min { x } else { min };
        max = if x > max { x } else { max };
        sum_w += w;
        sum_x += w * x;
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max == min {
        return (0.0, -min, [0; 32]);
    }
    let integer = |x: f32, min: f32, inverse: f32| nearest(inverse * (x - min)).clamp(0, most) as f32;
    let first = most as f32 / (max - min);
    let mut scale = 1.0 / first;
    let mut least = 0.0f32;
    let mut kept = [0.0f32; 32];
    for ((&x, &w), q) in x.iter().zip(w).zip(&mut kept) {
        *q = integer(x, min, first);
        let difference = scale * *q + min - x;
        least += w * (difference * difference);
    }
    for k in 0..=tries {
        // From the best minimum so far.
        let inverse = (from + 0.1 * k as f32 + most as f32) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        let mut q = [0.0f32; 32];
        for ((&x, &w), q) in x.iter().zip(w).zip(&mut q) {
            let l = integer(x, min, inverse);
            *q = l;
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let mut error = 0.0f32;
            for ((&x, &w), &q) in x.iter().zip(w).zip(&q) {
                let difference = this_scale * q + this_min - x;
                error += w * (difference * difference);
            }
            if error < least {
                (least, scale, min, kept) = (error, this_scale, this_min, q);
            }
        }
    }
    (scale, -min, kept.map(|q| q as u8))
}

/// Scales and minima of the 8 parts, packed, with d and dmin before them; gives the integers.
fn scales_and_mins(x: &[f32; 256], most: i32, from: f32, tries: i32, head: &mut [u8]) -> [u8; 256] {
    let (mut scales, mut mins) = ([0.0f32; 8], [0.0f32; 8]);
    let parts = x.as_chunks::<32>().0;
    let mut q = [0u8; 256];
    let found = q.as_chunks_mut::<32>().0.iter_mut();
    for (((part, scale), min), q) in parts.iter().zip(&mut scales).zip(&mut mins).zip(found) {
        let squares = part.iter().fold(0.0f32, |s, x| s + x * x);
        let mean = (squares / 32.0).sqrt();
        let w = part.map(|x| mean + x.abs());
        (*scale, *min, *q) = scale_and_min(part, &w, most, from, tries);
    }
    let above = |xs: &[f32; 8]| xs.iter().fold(0.0f32, |m, &x| if x > m { x } else { m });
    let (top_scale, top_min) = (above(&scales), above(&mins));
    let inverse = |top: f32| if top > 0.0 { 63.0 / top } else { 0.0 };
    let six = |x: f32, top: f32| nearest(inverse(top) * x).min(63) as u8;
    let packed = &mut head[4..16];
    packed.fill(0);
    let (mut s, mut m) = ([0u8; 8], [0u8; 8]);
    for (j, (&scale, &min)) in scales.iter().zip(&mins).enumerate() {
        let (scale, min) = (six(scale, top_scale), six(min, top_min));
        (s[j], m[j]) = (scale, min);
        if j < 4 {
            (packed[j], packed[j + 4]) = (scale, min);
        } else {
            packed[j + 4] = scale & 15 | (min & 15) << 4;
            packed[j - 4] |= scale >> 4 << 6;
            packed[j] |= min >> 4 << 6;
        }
    }
    put(head, 0, top_scale / 63.0);
    put(head, 2, top_min / 63.0);
    let (d, dmin) = (f16::from_f32(top_scale / 63.0).to_f32(), f16::from_f32(top_min / 63.0).to_f32());
    for (j, (part, q)) in parts.iter().zip(q.as_chunks_mut::<32>().0).enumerate() {
        let (d, low) = (d * f32::from(s[j]), dmin * f32::from(m[j]));
        // A scale of 0 leaves what the search found, which then counts for nothing.
        if d != 0.0 {
            part.iter().zip(q).for_each(|(&x, q)| *q = nearest((x + low) / d).clamp(0, most) as u8);
        }
    }
    q
}

pub(super) fn q4_k(x: &[f32; 256], block: &mut [u8; 144]) {
    let q = scales_and_mins(x, 15, -1.0, 20, block);
    for (k, pair) in q.as_chunks::<64>().0.iter().enumerate() {
        for i in 0..32 {
            block[16 + 32 * k + i] = pair[i] | pair[i + 32] << 4;
        }
    }
}

pub(super) fn q5_k(x: &[f32; 256], block: &mut [u8; 176]) {
    let q = scales_and_mins(x, 31, -0.5, 15, block);
    block[16..48].fill(0);
    for (k, pair) in q.as_chunks::<64>().0.iter().enumerate() {
        for i in 0..32 {
            block[16 + i] |= pair[i] >> 4 << (2 * k) | pair[i + 32] >> 4 << (2 * k + 1);
            block[48 + 32 * k + i] = pair[i] & 15 | (pair[i + 32] & 15) << 4;
        }
    }
}

/// What counts as no number at all.
const NOTHING: f32 = 1e-15;

/// A scale for x ≈ scale · q, -32 ≤ q < 32; and q + 32.
fn scale_of(x: &[f32; 16]) -> (f32, [u8; 16]) {
    let largest = x.iter().fold((0.0f32, 0.0f32), |(a, m), &x| if x.abs() > a { (x.abs(), x) } else { (a, m) });
    if largest.0 < NOTHING {
        return (0.0, [0; 16]);
    }
    let integer = |x: f32, inverse: f32| nearest(inverse * x).clamp(-32, 31);
    let sums = |inverse: f32| {
        let (mut sum_xl, mut sum_l2) = (0.0f32, 0.0f32);
        for &x in x {
            let l = integer(x, inverse) as f32;
            let w = x * x;
            sum_xl += w * x * l;
            sum_l2 += w * l * l;
        }
        (sum_xl, sum_l2)
    };
    let mut chosen = -32.0 / largest.1;
    let (sum_xl, sum_l2) = sums(chosen);
    let mut scale = if sum_l2 != 0.0 { sum_xl / sum_l2 } else { 0.0 };
    let mut best = scale * sum_xl;
    for k in (-9..=9).filter(|&k| k != 0) {
        let inverse = -(32.0 + 0.1 * k as f32) / largest.1;
        let (sum_xl, sum_l2) = sums(inverse);
        if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
            (scale, chosen) = (sum_xl / sum_l2, inverse);
            best = scale * sum_xl;
        }
    }
    (scale, x.map(|x| (integer(x, chosen) + 32) as u8))
}

pub(super) fn q6_k(x: &[f32; 256], block: &mut [u8; 210]) {
    block.fill(0);
    let parts = x.as_chunks::<16>().0;
    let mut scales = [0.0f32; 16];
    let mut top = 0.0f32;
    let mut q = [0u8; 256];
    for ((part, scale), q) in parts.iter().zip(&mut scales).zip(q.as_chunks_mut::<16>().0) {
        (*scale, *q) = scale_of(part);
        top = if scale.abs() > top.abs() { *scale } else { top };
    }
    if top.abs() < NOTHING {
        return;
    }
    let inverse = -128.0 / top;
    put(block, 208, 1.0 / inverse);
    let d = f16::from_f32(1.0 / inverse).to_f32();
    for (j, (part, q)) in parts.iter().zip(q.as_chunks_mut::<16>().0).enumerate() {
        let s = nearest(inverse * scales[j]).min(127);
        block[192 + j] = s as i8 as u8;
        let d = d * s as f32;
        if d != 0.0 {
            part.iter().zip(q).for_each(|(&x, q)| *q = (nearest(x / d).clamp(-32, 31) + 32) as u8);
        }
    }
    for (half, q) in q.as_chunks::<128>().0.iter().enumerate() {
        for i in 0..32 {
            let [a, b, c, d] = [q[i], q[i + 32], q[i + 64], q[i + 96]];
            block[64 * half + i] = a & 15 | (c & 15) << 4;
            block[64 * half + i + 32] = b & 15 | (d & 15) << 4;
            block[128 + 32 * half + i] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
        }
    }
}
