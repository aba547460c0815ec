//! dequantise, ggml, matmul_nf4. (nf4 is beside the elementwise ops; that values have the bits of the processor's is a test of the
//! tensors above.)

use half::f16;
use planish_cuda::DType;
use planish_cuda::ops::matmul::{self, Epilogue, Layout, Term};
use planish_cuda::ops::matmul_nf4::{self, Weight};
use planish_cuda::ops::nf4::{self, Scales};
use planish_cuda::ops::{dequantise, ggml};

use crate::shapes;
use crate::support::*;

const F32: DType = DType::F32;

/// Bytes without a pattern.
fn bytes(n: usize, salt: usize) -> Vec<u8> {
    (0..n).map(|i| ((i + salt).wrapping_mul(0x9E37_79B9) >> 11) as u8).collect()
}

shapes! {
    fn fp4_is_looked_up(queue; n in 0usize..5000, power in 3u32..9, types in 0usize..3; 12 cases) {
        // bitsandbytes' code in units of 1/192, by the three low bits; the fourth is the sign.
        let code = |q: u8| [0.0, 1.0, 128.0, 192.0, 64.0, 96.0, 32.0, 48.0][usize::from(q & 7)] / 192.0 * if q > 7 { -1.0 } else { 1.0 };
        let (t, block) = (TYPES[types], 1usize << power);
        let (packed, absmax) = (bytes(n.div_ceil(2), 3), random(n.div_ceil(block), F32, 1));
        let nibble = |i: usize| if i.is_multiple_of(2) { packed[i / 2] >> 4 } else { packed[i / 2] & 15 };
        let want: Vec<f64> = (0..n).map(|i| code(nibble(i)) * absmax[i / block]).collect();
        let (p, a, mut y) = (queue.upload("a test", &packed).unwrap(), put(queue, &absmax, F32), room(queue, n, t));
        dequantise::fp4(queue, y.slice_mut(t), p.slice(DType::U8), a.slice(F32), block).unwrap();
        close("y", &get(&y, t), &want, tolerance(t));
    }
}

shapes! {
    fn int8_is_scaled_by_rows(queue; rows in 0usize..40, cols in 1usize..70, types in 0usize..3; 16 cases) {
        let (t, q, absmax) = (TYPES[types], bytes(rows * cols, 7), random(rows, F32, 1));
        let want: Vec<f64> = (0..rows * cols).map(|i| f64::from(q[i] as i8) * absmax[i / cols] / 127.0).collect();
        let (q, a, mut y) = (queue.upload("a test", &q).unwrap(), put(queue, &absmax, F32), room(queue, rows * cols, t));
        dequantise::int8(queue, y.slice_mut(t), q.slice(DType::U8), a.slice(F32), cols).unwrap();
        close("y", &get(&y, t), &want, tolerance(t));
    }
}

shapes! {
    fn scales_are_looked_up_twice(queue; n in 0usize..1500, block in 1usize..300; 8 cases) {
        let (codes, code, absmax) = (bytes(n, 5), random(256, F32, 1), random(n.div_ceil(block), F32, 2));
        // As the processor rounds them, to the bit.
        let want: Vec<f64> = (0..n)
            .map(|b| code[usize::from(codes[b])] as f32 * absmax[b / block] as f32 + 0.3f32)
            .map(f64::from)
            .collect();
        let (s, c, a) = (queue.upload("a test", &codes).unwrap(), put(queue, &code, F32), put(queue, &absmax, F32));
        let mut out = room(queue, n, F32);
        let (codes, code, absmax) = (s.slice(DType::U8), c.slice(F32), a.slice(F32));
        dequantise::scales(queue, out.slice_mut(F32), dequantise::Nested { codes, code, absmax, block, offset: 0.3 })
            .unwrap();
        assert_eq!(get(&out, F32), want);
    }
}

const KINDS: [ggml::Kind; 8] = {
    const fn kind(name: &'static str, block: usize, bytes: usize) -> ggml::Kind {
        ggml::Kind { name, block, bytes }
    }
    [
        kind("Q4_0", 32, 18),
        kind("Q4_1", 32, 20),
        kind("Q5_0", 32, 22),
        kind("Q5_1", 32, 24),
        kind("Q8_0", 32, 34),
        kind("Q4_K", 256, 144),
        kind("Q5_K", 256, 176),
        kind("Q6_K", 256, 210),
    ]
};

/// Element `i` of a block, from the definition of its type.
fn element(kind: &str, b: &[u8], i: usize) -> f64 {
    let half = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f64();
    let nibble = |at: usize| f64::from(if i < 16 { b[at + i] & 15 } else { b[at + i - 16] >> 4 });
    let bit = |byte: u8, at: usize| f64::from(byte >> at & 1);
    let fifth = |at: usize| 16.0 * bit(b[at + i / 8], i % 8);
    let j = i / 32;
    let sixes = || match j {
        0..4 => (b[4 + j] & 63, b[8 + j] & 63),
        _ => (b[8 + j] & 15 | b[j] >> 6 << 4, b[8 + j] >> 4 | b[4 + j] >> 6 << 4),
    };
    let k = |q: f64| {
        let (scale, min) = sixes();
        half(0) * f64::from(scale) * q - half(2) * f64::from(min)
    };
    let low = |at: usize| f64::from(b[at + j / 2 * 32 + i % 32] >> (j % 2 * 4) & 15);
    match kind {
        "Q4_0" => half(0) * (nibble(2) - 8.0),
        "Q4_1" => half(0) * nibble(4) + half(2),
        "Q5_0" => half(0) * (nibble(6) + fifth(2) - 16.0),
        "Q5_1" => half(0) * (nibble(8) + fifth(4)) + half(2),
        "Q8_0" => half(0) * f64::from(b[2 + i] as i8),
        "Q4_K" => k(low(16)),
        "Q5_K" => k(low(48) + 16.0 * bit(b[16 + i % 32], j)),
        _ => {
            let (part, run) = (i / 128, j % 4);
            let low = b[part * 64 + run % 2 * 32 + i % 32] >> (run / 2 * 4) & 15;
            let high = b[128 + part * 32 + i % 32] >> (run * 2) & 3;
            half(208) * f64::from(b[192 + i / 16] as i8) * (f64::from(low | high << 4) - 32.0)
        }
    }
}

shapes! {
    fn blocks_of_every_type(queue; rows in 0usize..4, blocks in 1usize..4, kind in 0usize..8, types in 0usize..3; 24 cases) {
        let (t, kind) = (TYPES[types], KINDS[kind]);
        let mut all = bytes(rows * blocks * kind.bytes, 11);
        // Scales that are numbers.
        for (i, block) in all.chunks_exact_mut(kind.bytes).enumerate() {
            for at in [0, 2, 208].into_iter().filter(|at| at + 2 <= kind.bytes && (*at == 208) == (kind.name == "Q6_K")) {
                block[at..at + 2].copy_from_slice(&f16::from_f32(0.01 + (i + at) as f32 / 1024.0).to_le_bytes());
            }
        }
        let width = blocks * kind.block;
        let row = |r: usize| {
            let all = &all;
            (0..width).map(move |c| element(kind.name, &all[(r * blocks + c / kind.block) * kind.bytes..], c % kind.block))
        };
        let want: Vec<f64> = (0..rows).flat_map(row).collect();
        let (b, mut y) = (queue.upload("a test", &all).unwrap(), room(queue, rows * width, t));
        ggml::dequantise(queue, y.slice_mut(t), b.slice(DType::U8), kind, width).unwrap();
        close(kind.name, &get(&y, t), &want, tolerance(t));
        let index: Vec<u32> = if rows == 0 { vec![] } else { (0..5).map(|i| i * 7 % rows as u32).collect() };
        let want: Vec<f64> = index.iter().flat_map(|&r| row(r as usize)).collect();
        let (i, mut y) = (queue.upload("a test", &index).unwrap(), room(queue, index.len() * width, t));
        ggml::take(queue, y.slice_mut(t), b.slice(DType::U8), i.slice(DType::U32), kind, width).unwrap();
        close(kind.name, &get(&y, t), &want, tolerance(t));
    }
}

shapes! {
    on BOTH;
    /// Few rows: the bits of dequantising and multiplying.
    fn few_rows_of_nf4(queue; m in 0usize..=64, n in 1usize..200, depth in 1usize..12, rank in 0usize..12, block in 5u32..9, nested in proptest::bool::ANY, kind in 0usize..3; 16 cases) {
        let (k, rank, block) = (64 * depth, 8 * rank, 1usize << block);
        let (t, out) = [(DType::BF16, DType::BF16), (DType::BF16, F32), (DType::F16, DType::F16)][kind];
        let blocks = (n * k).div_ceil(block);
        let packed = queue.upload("a test", &bytes(n * k / 2, 13)).unwrap();
        let codes = queue.upload("a test", &bytes(blocks, 17)).unwrap();
        let (code, absmax2) = (put(queue, &random(256, F32, 3), F32), put(queue, &random(blocks.div_ceil(64), F32, 4), F32));
        let of = dequantise::Nested {
            codes: codes.slice(DType::U8),
            code: code.slice(F32),
            absmax: absmax2.slice(F32),
            block: 64,
            offset: 0.2,
        };
        let mut absmax = put(queue, &random(blocks, F32, 5), F32);
        if nested {
            dequantise::scales(queue, absmax.slice_mut(F32), of).unwrap();
        }
        let factor = |n: usize, salt| put(queue, &random(n, t, salt), t);
        let (a, a2, b2) = (factor(m * k, 6), factor(m * rank, 7), factor(n * rank, 8));
        let update = Term { a: a2.slice(t), b: b2.slice(t), depth: rank };
        let (mut w, mut want, mut got) = (room(queue, n * k, t), room(queue, m * n, out), room(queue, m * n, out));
        nf4::dequantise(queue, w.slice_mut(t), packed.slice(DType::U8), Scales::Plain(absmax.slice(F32)), block).unwrap();
        let terms = [Term { a: a.slice(t), b: w.slice(t), depth: k }, update];
        matmul::matmul(queue, want.slice_mut(out), [m, n], Layout::FORWARD, &terms, Epilogue::default()).unwrap();
        let scales = if nested { Scales::Nested(of) } else { Scales::Plain(absmax.slice(F32)) };
        let weight = Weight { packed: packed.slice(DType::U8), scales, block };
        let update = (rank > 0).then_some(&update);
        assert!(matmul_nf4::takes(a.slice(t), [m, k], weight, update));
        matmul_nf4::matmul(queue, got.slice_mut(out), [m, n, k], a.slice(t), weight, update).unwrap();
        assert_eq!(get(&got, out), get(&want, out));
    }
}

#[test]
fn other_products_are_not_for_few_rows() {
    let devices = [device(), device_of((8, 0))];
    let [Some(hopper), Some(ampere)] = &devices else { return };
    for device in [hopper, ampere] {
        let queue = device.queue();
        let (u, f) = (queue.upload("a test", &[0u8; 8192]).unwrap(), put(queue, &[1.0; 8], F32));
        let weight = |block| Weight { packed: u.slice(DType::U8), scales: Scales::Plain(f.slice(F32)), block };
        let takes = |dtype, size, block| matmul_nf4::takes(u.slice(dtype), size, weight(block), None);
        assert!(takes(DType::BF16, [64, 128], 64));
        for (dtype, size, block) in
            [(F32, [1, 64], 64), (DType::F16, [65, 64], 64), (DType::F16, [1, 72], 64), (DType::F16, [1, 64], 16)]
        {
            assert!(!takes(dtype, size, block));
        }
        let mut y = room(queue, 128, F32);
        let refused = matmul_nf4::matmul(queue, y.slice_mut(F32), [1, 128, 72], u.slice(DType::F16), weight(64), None);
        assert!(refused.unwrap_err().to_string().contains("at most 64 rows"));
    }
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let (u, f) = (queue.upload("a test", &[0u8; 144]).unwrap(), put(queue, &[1.0; 8], F32));
    let (u, f) = (u.slice(DType::U8), f.slice(F32));
    let refused = |got: planish_cuda::Result<()>, words: &str| {
        let got = got.unwrap_err().to_string();
        assert!(got.contains(words), "{got}");
    };
    let mut y = room(queue, 256, F32);
    refused(dequantise::fp4(queue, y.slice_mut(F32), u, f, 48), "a power of two");
    refused(dequantise::fp4(queue, y.slice_mut(F32), u, f, 32), "the packed weight");
    refused(dequantise::int8(queue, y.slice_mut(F32).part(0, 144).unwrap(), u, f, 0), "the columns");
    refused(dequantise::int8(queue, y.slice_mut(F32).part(0, 144).unwrap(), u, f, 12), "absmax");
    let kind = KINDS[5];
    refused(ggml::dequantise(queue, y.slice_mut(F32), u, kind, 128), "a whole number of blocks");
    refused(ggml::dequantise(queue, y.slice_mut(F32), u.part(0, 143).unwrap(), kind, 256), "the bytes of a row");
    refused(ggml::dequantise(queue, y.slice_mut(F32).part(0, 255).unwrap(), u, kind, 256), "y");
}
