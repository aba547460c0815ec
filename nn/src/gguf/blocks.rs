//! Dequantisation: from blocks of small integers with shared scales to f32.
//!
//! | type | bits a weight | block | value |
//! | --- | --- | --- | --- |
//! | Q4_0, Q5_0, Q8_0 | 4.5, 5.5, 8.5 | 32 | `d·(q − 8)`, `d·(q − 16)`, `d·q` |
//! | Q4_1, Q5_1 | 5, 6 | 32 | `d·q + m` |
//! | Q4_K, Q5_K | 4.5, 5.5 | 256 = 8 of 32 | `(d·s)·q − (dmin·m)`, s and m of 6 bits for each 32 |
//! | Q6_K | 6.5625 | 256 = 16 of 16 | `(d·s)·(q − 32)`, s of 8 bits for each 16 |
//!
//! `d`, `m` and `dmin` are f16. Every product and sum is rounded to f32 in the order that ggml has
//! them in, and none is fused, so the results are ggml's bit for bit. In the 32-blocks the low
//! nibbles of the 16 bytes are the first 16 values and the high nibbles the last 16.

use half::{bf16, f16};

use super::GgmlType;

/// Dequantises whole blocks; the caller has matched the lengths.
pub(super) fn dequantize(kind: GgmlType, bytes: &[u8], out: &mut [f32]) {
    match kind {
        GgmlType::F32 => each(bytes, out, |b: &[u8; 4], o: &mut [f32; 1]| o[0] = f32::from_le_bytes(*b)),
        GgmlType::F16 => each(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| o[0] = f16::from_le_bytes(*b).to_f32()),
        GgmlType::BF16 => each(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| o[0] = bf16::from_le_bytes(*b).to_f32()),
        GgmlType::Q4_0 => each(bytes, out, q4_0),
        GgmlType::Q4_1 => each(bytes, out, q4_1),
        GgmlType::Q5_0 => each(bytes, out, q5_0),
        GgmlType::Q5_1 => each(bytes, out, q5_1),
        GgmlType::Q8_0 => each(bytes, out, q8_0),
        GgmlType::Q4_K => each(bytes, out, q4_k),
        GgmlType::Q5_K => each(bytes, out, q5_k),
        GgmlType::Q6_K => each(bytes, out, q6_k),
    }
}

/// Calls `f` on each block of `B` bytes and the `N` values it stands for.
fn each<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn(&[u8; B], &mut [f32; N])) {
    for (block, values) in bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        f(block, values);
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(block, 0);
    for (i, &q) in block[2..].iter().enumerate() {
        out[i] = d * ((q & 15) as i32 - 8) as f32;
        out[i + 16] = d * ((q >> 4) as i32 - 8) as f32;
    }
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (i, &q) in block[4..].iter().enumerate() {
        out[i] = d * (q & 15) as f32 + m;
        out[i + 16] = d * (q >> 4) as f32 + m;
    }
}

/// The fifth bits of 32 values, one each.
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let (d, high) = (half(block, 0), fifth_bits(block, 2));
    for (i, &q) in block[6..].iter().enumerate() {
        let (low, up) = ((q & 15) as u32 | (high >> i & 1) << 4, (q >> 4) as u32 | (high >> (i + 16) & 1) << 4);
        out[i] = d * (low as i32 - 16) as f32;
        out[i + 16] = d * (up as i32 - 16) as f32;
    }
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m, high) = (half(block, 0), half(block, 2), fifth_bits(block, 4));
    for (i, &q) in block[8..].iter().enumerate() {
        let (low, up) = ((q & 15) as u32 | (high >> i & 1) << 4, (q >> 4) as u32 | (high >> (i + 16) & 1) << 4);
        out[i] = d * low as f32 + m;
        out[i + 16] = d * up as f32 + m;
    }
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = d * q as i8 as f32;
    }
}

/// Scale and minimum of sub-block `j` of 8, six bits each, from the 12 bytes that pack them: the first
/// four of each lie in the low six bits of bytes 0..4 and 4..8; the last four have their low nibbles
/// in bytes 8..12 and their high two bits on top of the first four.
fn scale_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        ((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6) << 4)
    };
    (scale as f32, min as f32)
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_min(&block[4..16], j);
        let (scale, min) = (d * scale, dmin * min);
        // Sub-blocks 2k and 2k+1 share 32 bytes, as low and high nibbles.
        let (quants, shift) = (&block[16 + j / 2 * 32..], j % 2 * 4);
        for (out, &q) in out.iter_mut().zip(quants) {
            *out = scale * (q >> shift & 15) as f32 - min;
        }
    }
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let high = &block[16..48];
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_min(&block[4..16], j);
        let (scale, min) = (d * scale, dmin * min);
        let (quants, shift) = (&block[48 + j / 2 * 32..], j % 2 * 4);
        for (i, out) in out.iter_mut().enumerate() {
            // Bit j of byte i of `high` is the fifth bit of value i of sub-block j.
            let q = (quants[i] >> shift & 15) | (high[i] >> j & 1) << 4;
            *out = scale * q as f32 - min;
        }
    }
}

fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        // Each half of 128 values has 64 bytes of low nibbles and 32 of high bit pairs: its four runs
        // of 32 are the low nibbles of both 32-byte halves, then their high nibbles.
        let (part, run) = (j / 4, j % 4);
        let low = &low[part * 64 + run % 2 * 32..][..32];
        let high = &high[part * 32..][..32];
        for (i, out) in out.iter_mut().enumerate() {
            let q = (low[i] >> (run / 2 * 4) & 15) | (high[i] >> (run * 2) & 3) << 4;
            let scale = d * scales[j * 2 + i / 16] as i8 as f32;
            *out = scale * (q as i32 - 32) as f32;
        }
    }
}
