//! Blocks of GGUF files: small integers with shared scales.
//!
//! | type | bits a weight | block | value |
//! | --- | --- | --- | --- |
//! | Q4_0, Q5_0, Q8_0 | 4.5, 5.5, 8.5 | 32 | `d·(q − 8)`, `d·(q − 16)`, `d·q` |
//! | Q4_1, Q5_1 | 5, 6 | 32 | `d·q + m` |
//! | Q4_K, Q5_K | 4.5, 5.5 | 256 = 8 of 32 | `(d·s)·q − dmin·m`, s and m of 6 bits for each 32 |
//! | Q6_K | 6.5625 | 256 = 16 of 16 | `(d·s)·(q − 32)`, s of 8 bits for each 16 |
//!
//! `d`, `m` and `dmin` are f16. Every product and sum is rounded to f32 in the order that ggml has
//! them in, and none is fused, so the results are ggml's bit for bit. In the 32-blocks the low
//! nibbles of the 16 bytes are the first 16 values and the high nibbles the last 16.
//!
//! All are decoded in units of [`UNIT`] values, so that a part of a block costs a part of it.

use super::{Layout, Quantized, bytes_of, flat};
use crate::gemm::panels::{DEPTH, Stored, Unit};
use crate::{DType, Device, Error, Result, Tensor, f16};

/// Values that are decoded at a time.
pub const UNIT: usize = DEPTH;

/// A type of blocks, under ggml's name.
#[allow(non_camel_case_types, missing_docs, reason = "ggml's own names")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GgmlKind {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl GgmlKind {
    /// Every type.
    pub const ALL: [GgmlKind; 8] = {
        use GgmlKind::*;
        [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K]
    };

    /// ggml's name.
    pub const fn name(self) -> &'static str {
        match self {
            GgmlKind::Q4_0 => "Q4_0",
            GgmlKind::Q4_1 => "Q4_1",
            GgmlKind::Q5_0 => "Q5_0",
            GgmlKind::Q5_1 => "Q5_1",
            GgmlKind::Q8_0 => "Q8_0",
            GgmlKind::Q4_K => "Q4_K",
            GgmlKind::Q5_K => "Q5_K",
            GgmlKind::Q6_K => "Q6_K",
        }
    }

    /// Elements of a block. A row is a whole number of blocks.
    pub const fn block_len(self) -> usize {
        match self {
            GgmlKind::Q4_K | GgmlKind::Q5_K | GgmlKind::Q6_K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            GgmlKind::Q4_0 => 2 + 16,
            GgmlKind::Q4_1 => 2 + 2 + 16,
            GgmlKind::Q5_0 => 2 + 4 + 16,
            GgmlKind::Q5_1 => 2 + 2 + 4 + 16,
            GgmlKind::Q8_0 => 2 + 32,
            GgmlKind::Q4_K => 2 + 2 + 12 + 128,
            GgmlKind::Q5_K => 2 + 2 + 12 + 32 + 128,
            GgmlKind::Q6_K => 128 + 64 + 16 + 2,
        }
    }
}

/// Evaluates an expression with the function that decodes a kind's blocks, its block's bytes and values, and whether it
/// has an offset.
macro_rules! with_kind {
    ($of:expr, ($unit:ident, $bytes:ident, $values:ident, $above:ident) => $body:expr) => {
        with_kind!(@ $of, ($unit, $bytes, $values, $above) => $body,
            Q4_0: q4_0 false, Q4_1: q4_1 true, Q5_0: q5_0 false, Q5_1: q5_1 true, Q8_0: q8_0 false, Q4_K: q4_k true,
            Q5_K: q5_k true, Q6_K: q6_k false,)
    };
    (@ $of:expr, ($unit:ident, $bytes:ident, $values:ident, $above:ident) => $body:expr, $($kind:ident: $f:ident $a:literal,)*) => {
        match $of {
            $(GgmlKind::$kind => {
                const $bytes: usize = GgmlKind::$kind.block_bytes();
                const $values: usize = GgmlKind::$kind.block_len();
                const $above: bool = $a;
                use self::$f as $unit;
                $body
            })*
        }
    };
}

/// A weight in blocks.
#[derive(Debug, Clone)]
pub struct Ggml {
    kind: GgmlKind,
    bytes: Tensor,
}

impl Ggml {
    /// A weight (rows, cols) of these blocks, row by row.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] if a row is no whole number of blocks; [`Error::Length`] if they are too few or too many.
    pub fn from_blocks(shape: [usize; 2], kind: GgmlKind, bytes: &Tensor) -> Result<Quantized> {
        let blocks = shape[1] / kind.block_len();
        if !shape[1].is_multiple_of(kind.block_len()) {
            let (value, expected) = (shape[1] as f64, "a whole number of blocks");
            return Err(Error::InvalidValue { op: "ggml weight", name: "row length", value, expected });
        }
        let len = blocks.checked_mul(kind.block_bytes()).and_then(|row| row.checked_mul(shape[0]));
        let len = len.ok_or_else(|| Error::TooLarge { shape: shape.to_vec(), dtype: DType::Packed })?;
        let bytes = flat("ggml weight", bytes, DType::U8, len)?;
        Ok(Quantized::new(shape, Layout::Ggml(Ggml { kind, bytes })))
    }

    /// Which blocks.
    pub fn kind(&self) -> GgmlKind {
        self.kind
    }

    /// The blocks: (bytes) of u8.
    pub fn bytes(&self) -> &Tensor {
        &self.bytes
    }

    pub(super) fn to_device(&self, device: Device) -> Result<Ggml> {
        Ok(Ggml { kind: self.kind, bytes: self.bytes.to_device(device)? })
    }

    /// How panels store it.
    pub(super) fn stored(&self) -> Stored {
        match self.kind {
            GgmlKind::Q4_0 => Stored::Nibbles(-8),
            GgmlKind::Q4_1 | GgmlKind::Q4_K => Stored::NibblesAbove(0),
            GgmlKind::Q5_0 | GgmlKind::Q8_0 => Stored::BytesHalf,
            GgmlKind::Q5_1 | GgmlKind::Q5_K => Stored::BytesAbove,
            GgmlKind::Q6_K => Stored::Bytes16,
        }
    }

    /// Elements `start..start + UNIT`, where a unit begins.
    pub(super) fn unit(&self, start: usize) -> Unit {
        let bytes = bytes_of(&self.bytes);
        let mut unit = Unit { q: [0; UNIT], scale: [0.0; 2], offset: 0.0 };
        with_kind!(self.kind, (f, BYTES, VALUES, _ABOVE) => {
            f(&bytes.as_chunks::<BYTES>().0[start / VALUES], start % VALUES / UNIT, &mut unit)
        });
        unit
    }

    /// As [`Quantized::read`].
    pub(super) fn read(&self, start: usize, out: &mut [f32]) {
        let bytes = bytes_of(&self.bytes);
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2(kind: GgmlKind, bytes: &[u8], start: usize, out: &mut [f32]) {
                run(kind, bytes, start, out)
            }
            if crate::simd::level() >= crate::simd::Simd::Avx2 {
                // SAFETY: level() says that this machine has AVX2, FMA and F16C.
                return unsafe { avx2(self.kind, bytes, start, out) };
            }
        }
        run(self.kind, bytes, start, out)
    }
}

/// Dequantises whole blocks.
///
/// # Panics
/// If `bytes` are fewer blocks than `out` asks for.
pub fn dequantize(kind: GgmlKind, bytes: &[u8], out: &mut [f32]) {
    run(kind, bytes, 0, out)
}

/// Elements `start..` of a run of blocks.
#[inline(always)]
fn run(kind: GgmlKind, bytes: &[u8], start: usize, out: &mut [f32]) {
    with_kind!(kind, (f, BYTES, VALUES, ABOVE) => {
        units::<BYTES, VALUES>(bytes, start, out, |block, unit, out| f(block, unit, &mut Values::<ABOVE>(out)))
    })
}

/// Where a unit's elements go: the place, the integer, its scale and its offset.
trait Put {
    fn put(&mut self, i: usize, q: i32, scale: f32, offset: f32);
}

/// Values: `scale q` or, if ABOVE, `scale q + offset`, each rounded.
struct Values<'a, const ABOVE: bool>(&'a mut [f32; UNIT]);

impl<const ABOVE: bool> Put for Values<'_, ABOVE> {
    #[inline(always)]
    fn put(&mut self, i: usize, q: i32, scale: f32, offset: f32) {
        let x = scale * q as f32;
        self.0[i] = if ABOVE { x + offset } else { x };
    }
}

impl Put for Unit {
    #[inline(always)]
    fn put(&mut self, i: usize, q: i32, scale: f32, offset: f32) {
        self.q[i] = q as i8;
        (self.scale[i / (UNIT / 2)], self.offset) = (scale, offset);
    }
}

/// Calls `f` with each block of `B` bytes and `N` values, the unit in it and where its values go.
#[inline(always)]
fn units<const B: usize, const N: usize>(
    bytes: &[u8],
    start: usize,
    mut out: &mut [f32],
    f: impl Fn(&[u8; B], usize, &mut [f32; UNIT]),
) {
    let blocks = bytes.as_chunks::<B>().0;
    let mut at = start;
    while !out.is_empty() {
        let (block, unit, skip) = (&blocks[at / N], at % N / UNIT, at % UNIT);
        let n = out.len().min(UNIT - skip);
        let (part, rest) = out.split_at_mut(n);
        match <&mut [f32; UNIT]>::try_from(&mut *part) {
            Ok(whole) => f(block, unit, whole),
            Err(_) => {
                let mut whole = [0.0; UNIT];
                f(block, unit, &mut whole);
                part.copy_from_slice(&whole[skip..skip + n]);
            }
        }
        (out, at) = (rest, at + n);
    }
}

#[inline(always)]
fn half(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// f16 to f32 without asking for the processor's instruction, which costs more here than it saves.
#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    if bits & 0x7c00 == 0x7c00 || bits & 0x7fff < 0x0400 {
        // Infinities, NaN, zeros and subnormal numbers.
        return f16::from_bits(bits).to_f32_const();
    }
    f32::from_bits(((bits as u32 & 0x8000) << 16) | (((bits as u32 & 0x7fff) << 13) + 0x3800_0000))
}

/// `out[i] = integers[i] * scale`.
#[inline]
pub(super) fn scale_bytes(bytes: &[i8], scale: f32, out: &mut [f32]) {
    #[inline(always)]
    fn body(bytes: &[i8], scale: f32, out: &mut [f32]) {
        for (out, &q) in out.iter_mut().zip(bytes) {
            *out = q as f32 * scale;
        }
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2(bytes: &[i8], scale: f32, out: &mut [f32]) {
            body(bytes, scale, out)
        }
        if crate::simd::level() >= crate::simd::Simd::Avx2 {
            // SAFETY: level() says that this machine has AVX2.
            return unsafe { avx2(bytes, scale, out) };
        }
    }
    body(bytes, scale, out)
}

#[inline(always)]
fn q4_0(block: &[u8; 18], _unit: usize, to: &mut impl Put) {
    let d = half(block, 0);
    for (i, &q) in block[2..].iter().enumerate() {
        to.put(i, (q & 15) as i32 - 8, d, 0.0);
        to.put(i + 16, (q >> 4) as i32 - 8, d, 0.0);
    }
}

#[inline(always)]
fn q4_1(block: &[u8; 20], _unit: usize, to: &mut impl Put) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (i, &q) in block[4..].iter().enumerate() {
        to.put(i, (q & 15) as i32, d, m);
        to.put(i + 16, (q >> 4) as i32, d, m);
    }
}

/// The fifth bits of 32 values, one each.
#[inline(always)]
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// The five-bit integers of a block: nibbles, and their fifth bits.
#[inline(always)]
fn fives(nibbles: &[u8], high: u32, mut f: impl FnMut(usize, u32)) {
    for (i, &q) in nibbles.iter().enumerate() {
        f(i, (q & 15) as u32 | (high >> i & 1) << 4);
        f(i + 16, (q >> 4) as u32 | (high >> (i + 16) & 1) << 4);
    }
}

#[inline(always)]
fn q5_0(block: &[u8; 22], _unit: usize, to: &mut impl Put) {
    let d = half(block, 0);
    fives(&block[6..], fifth_bits(block, 2), |i, q| to.put(i, q as i32 - 16, d, 0.0));
}

#[inline(always)]
fn q5_1(block: &[u8; 24], _unit: usize, to: &mut impl Put) {
    let (d, m) = (half(block, 0), half(block, 2));
    fives(&block[8..], fifth_bits(block, 4), |i, q| to.put(i, q as i32, d, m));
}

#[inline(always)]
fn q8_0(block: &[u8; 34], _unit: usize, to: &mut impl Put) {
    let d = half(block, 0);
    for (i, &q) in block[2..].iter().enumerate() {
        to.put(i, (q as i8).into(), d, 0.0);
    }
}

/// Scale and minimum of sub-block `j` of 8, six bits each, from the 12 bytes that pack them: the first
/// four of each lie in the low six bits of bytes 0..4 and 4..8; the last four have their low nibbles
/// in bytes 8..12 and their high two bits on top of the first four.
#[inline(always)]
fn scale_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        ((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6) << 4)
    };
    (scale as f32, min as f32)
}

#[inline(always)]
fn q4_k(block: &[u8; 144], j: usize, to: &mut impl Put) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let (scale, min) = scale_min(&block[4..16], j);
    let (scale, min) = (d * scale, dmin * min);
    // Sub-blocks 2k and 2k+1 share 32 bytes, as low and high nibbles.
    let (quants, shift) = (&block[16 + j / 2 * 32..][..UNIT], j % 2 * 4);
    for (i, &q) in quants.iter().enumerate() {
        to.put(i, (q >> shift & 15).into(), scale, -min);
    }
}

#[inline(always)]
fn q5_k(block: &[u8; 176], j: usize, to: &mut impl Put) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let (scale, min) = scale_min(&block[4..16], j);
    let (scale, min) = (d * scale, dmin * min);
    let (high, quants, shift) = (&block[16..48], &block[48 + j / 2 * 32..][..UNIT], j % 2 * 4);
    for (i, (&q, &high)) in quants.iter().zip(high).enumerate() {
        // Bit j of byte i of `high` is the fifth bit of value i of sub-block j.
        to.put(i, ((q >> shift & 15) | (high >> j & 1) << 4).into(), scale, -min);
    }
}

#[inline(always)]
fn q6_k(block: &[u8; 210], j: usize, to: &mut impl Put) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    // Each half of 128 values has 64 bytes of low nibbles and 32 of high bit pairs: its four runs
    // of 32 are the low nibbles of both 32-byte halves, then their high nibbles.
    let (part, run) = (j / 4, j % 4);
    let (low, high) = (&low[part * 64 + run % 2 * 32..][..UNIT], &high[part * 32..][..UNIT]);
    for group in 0..2 {
        let scale = d * scales[j * 2 + group] as i8 as f32;
        for i in group * 16..(group + 1) * 16 {
            let q = (low[i] >> (run / 2 * 4) & 15) | (high[i] >> (run * 2) & 3) << 4;
            to.put(i, q as i32 - 32, scale, 0.0);
        }
    }
}
