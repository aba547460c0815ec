//! Quantisation: from f32 to blocks of small integers with shared scales, byte for byte ggml's reference.
//!
//! | type | a block of 32 |
//! | --- | --- |
//! | Q8_0 | d = max |x| / 127; q = x / d, ties away from 0 |
//! | Q4_0, Q5_0 | d = the number of the largest magnitude / -8, / -16; q = x / d + 8, + 16 |
//! | Q5_1 | m = min x; d = (max x - m) / 31; q = (x - m) / d |
//!
//! d and m are rounded to f16 after the q are made. The layout of each block stands in `blocks.rs`; the types of 256
//! are in `encode_k.rs`. Rounding of products is f32's, and nothing is fused, as in ggml's portable code.
//!
//! # Source
//! ggml's `quantize_row_*_ref`, whose results the tests have as a fixture.

use half::{bf16, f16};

use super::encode_k;
use crate::gguf::GgmlType;

/// Quantises whole blocks into `out`.
///
/// # Panics
/// If `x` is not a whole number of blocks, or `out` not exactly their bytes.
pub fn quantize(kind: GgmlType, x: &[f32], out: &mut [u8]) {
    assert_eq!(x.len() % kind.block_len(), 0);
    assert_eq!(x.len() / kind.block_len() * kind.block_bytes(), out.len());
    match kind {
        GgmlType::F32 => each(x, out, |x: &[f32; 1], o: &mut [u8; 4]| *o = x[0].to_le_bytes()),
        GgmlType::F16 => each(x, out, |x: &[f32; 1], o: &mut [u8; 2]| *o = f16::from_f32(x[0]).to_le_bytes()),
        GgmlType::BF16 => each(x, out, |x: &[f32; 1], o: &mut [u8; 2]| *o = bf16::from_f32(x[0]).to_le_bytes()),
        GgmlType::Q4_0 => each(x, out, q4_0),
        GgmlType::Q4_1 => each(x, out, q4_1),
        GgmlType::Q5_0 => each(x, out, q5_0),
        GgmlType::Q5_1 => each(x, out, q5_1),
        GgmlType::Q8_0 => each(x, out, q8_0),
        GgmlType::Q4_K => each(x, out, encode_k::q4_k),
        GgmlType::Q5_K => each(x, out, encode_k::q5_k),
        GgmlType::Q6_K => each(x, out, encode_k::q6_k),
    }
}

fn each<const N: usize, const B: usize>(x: &[f32], out: &mut [u8], f: impl Fn(&[f32; N], &mut [u8; B])) {
    for (x, block) in x.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<B>().0) {
        f(x, block);
    }
}

pub(super) fn put(block: &mut [u8], at: usize, x: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
}

/// The number of the largest magnitude: the first of several.
fn largest(x: &[f32]) -> f32 {
    x.iter().fold((0.0f32, 0.0f32), |(a, m), &x| if a < x.abs() { (x.abs(), x) } else { (a, m) }).1
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn q8_0(x: &[f32; 32], block: &mut [u8; 34]) {
    let d = x.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
    let id = inverse(d);
    put(block, 0, d);
    for (q, x) in block[2..].iter_mut().zip(x) {
        *q = (x * id).round() as i8 as u8;
    }
}

fn q4_0(x: &[f32; 32], block: &mut [u8; 18]) {
    let d = largest(x) / -8.0;
    let id = inverse(d);
    put(block, 0, d);
    let q = |x: f32| ((x * id + 8.5) as i8).min(15) as u8;
    for i in 0..16 {
        block[2 + i] = q(x[i]) | q(x[i + 16]) << 4;
    }
}

fn range(x: &[f32]) -> (f32, f32) {
    x.iter()
        .fold((f32::MAX, -f32::MAX), |(low, high), &x| (if x < low { x } else { low }, if x > high { x } else { high }))
}

fn q4_1(x: &[f32; 32], block: &mut [u8; 20]) {
    let (min, max) = range(x);
    let d = (max - min) / 15.0;
    let id = inverse(d);
    put(block, 0, d);
    put(block, 2, min);
    let q = |x: f32| (((x - min) * id + 0.5) as i8).min(15) as u8;
    for i in 0..16 {
        block[4 + i] = q(x[i]) | q(x[i + 16]) << 4;
    }
}

/// Writes 32 numbers of 5 bits: the fifth bits of all, then the lower four.
fn five_bits(q: impl Fn(usize) -> u8, block: &mut [u8]) {
    let mut high = 0u32;
    for i in 0..16 {
        let (a, b) = (q(i), q(i + 16));
        block[4 + i] = a & 15 | (b & 15) << 4;
        high |= u32::from(a >> 4 & 1) << i | u32::from(b >> 4 & 1) << (i + 16);
    }
    block[..4].copy_from_slice(&high.to_le_bytes());
}

fn q5_0(x: &[f32; 32], block: &mut [u8; 22]) {
    let d = largest(x) / -16.0;
    let id = inverse(d);
    put(block, 0, d);
    five_bits(|i| ((x[i] * id + 16.5) as i8).min(31) as u8, &mut block[2..]);
}

fn q5_1(x: &[f32; 32], block: &mut [u8; 24]) {
    let (min, max) = range(x);
    let d = (max - min) / 31.0;
    let id = inverse(d);
    put(block, 0, d);
    put(block, 2, min);
    five_bits(|i| ((x[i] - min) * id + 0.5) as u8, &mut block[4..]);
}
