//! Scales of blocks, in f32 or quantised once more.
//!
//! Doubly quantised: with offset the mean of all scales, scale - offset is coded in 8 bits by the dynamic code, in blocks
//! of 256 with an absmax of their own: scale = code\[q\] · absmax + offset.

use super::codes::dynamic_code;
use super::{bytes_of, flat, floats_of};
use crate::{DType, Device, Error, Result, Tensor};

/// Scales that share an absmax.
pub const NESTED_BLOCK: usize = 256;

/// One scale a block.
#[derive(Debug, Clone)]
pub enum Scales {
    /// (blocks) of f32.
    Plain(Tensor),
    /// Quantised.
    Nested(Nested),
}

impl Scales {
    /// These scales, found to be `n`.
    pub(super) fn checked(self, n: usize) -> Result<Scales> {
        Ok(match self {
            Scales::Plain(absmax) => Scales::Plain(flat("absmax", &absmax, DType::F32, n)?),
            Scales::Nested(nested) => {
                Scales::Nested(Nested { codes: flat("absmax", &nested.codes, DType::U8, n)?, ..nested.checked(n)? })
            }
        })
    }

    pub(super) fn to_device(&self, device: Device) -> Result<Scales> {
        Ok(match self {
            Scales::Plain(absmax) => Scales::Plain(absmax.to_device(device)?),
            Scales::Nested(n) => Scales::Nested(Nested {
                codes: n.codes.to_device(device)?,
                absmax: n.absmax.to_device(device)?,
                code: n.code.to_device(device)?,
                ..*n
            }),
        })
    }

    /// Bytes.
    pub(super) fn nbytes(&self) -> usize {
        match self {
            Scales::Plain(absmax) => absmax.nbytes(),
            Scales::Nested(n) => n.codes.nbytes() + n.absmax.nbytes() + n.code.nbytes() + 4,
        }
    }
}

/// Scales in 8 bits each.
#[derive(Debug, Clone)]
pub struct Nested {
    /// (blocks) of u8.
    pub codes: Tensor,
    /// (blocks / `block`, rounded up) of f32.
    pub absmax: Tensor,
    /// The code, (256) of f32.
    pub code: Tensor,
    /// Scales that share an absmax; 256 in what this program writes.
    pub block: usize,
    /// Their mean.
    pub offset: f32,
}

/// Nested scales, ready to be read.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    codes: &'a [u8],
    absmax: &'a [f32],
    code: &'a [f32],
    block: usize,
    offset: f32,
}

impl Reader<'_> {
    /// Scale of block `b`.
    #[inline]
    pub(super) fn get(&self, b: usize) -> f32 {
        self.code[self.codes[b] as usize] * self.absmax[b / self.block] + self.offset
    }
}

impl Nested {
    fn checked(&self, n: usize) -> Result<Nested> {
        if self.block == 0 {
            let expected = "at least 1";
            return Err(Error::InvalidValue { op: "4-bit weight", name: "nested_blocksize", value: 0.0, expected });
        }
        if !self.offset.is_finite() {
            let (value, expected) = (self.offset as f64, "finite");
            return Err(Error::InvalidValue { op: "4-bit weight", name: "nested_offset", value, expected });
        }
        let absmax = flat("nested_absmax", &self.absmax, DType::F32, n.div_ceil(self.block))?;
        Ok(Nested { absmax, code: flat("nested_quant_map", &self.code, DType::F32, 256)?, ..self.clone() })
    }

    pub(super) fn reader(&self) -> Reader<'_> {
        let (codes, absmax, code) = (bytes_of(&self.codes), floats_of(&self.absmax), floats_of(&self.code));
        Reader { codes, absmax, code, block: self.block, offset: self.offset }
    }

    /// Quantises scales (blocks).
    pub(super) fn quantize(scales: &Tensor) -> Result<Nested> {
        let scales = scales.as_slice::<f32>()?;
        let code = dynamic_code();
        // Of no scales there is no mean.
        let offset = if scales.is_empty() { 0.0 } else { torch_mean(scales) };
        let mut codes = Vec::with_capacity(scales.len());
        let mut absmax = Vec::with_capacity(scales.len().div_ceil(NESTED_BLOCK));
        for block in scales.chunks(NESTED_BLOCK) {
            let centred: Vec<f32> = block.iter().map(|s| s - offset).collect();
            let largest = centred.iter().fold(0f32, |m, x| m.max(x.abs()));
            absmax.push(largest);
            let inverse = 1.0 / largest;
            codes.extend(centred.iter().map(|x| if largest > 0.0 { looked_up(&code, x * inverse) } else { 0 }));
        }
        let (n, blocks) = (codes.len(), absmax.len());
        Ok(Nested {
            codes: Tensor::from_vec(codes, [n])?,
            absmax: Tensor::from_vec(absmax, [blocks])?,
            code: Tensor::from_vec(code.to_vec(), [256])?,
            block: NESTED_BLOCK,
            offset,
        })
    }
}

/// Place of the value nearest to that of 2^16 points from -1 to 1 which is nearest to `x`: bitsandbytes 0.50 has a table of
/// these on a processor. On a GPU it takes the value nearest to `x`, which is another for less than one scale in a hundred.
fn looked_up(code: &[f32; 256], x: f32) -> u8 {
    const STEPS: f32 = 65535.0;
    let point = ((x.clamp(-1.0, 1.0) + 1.0) * 0.5 * STEPS + 0.5).floor();
    nearest(code, point / STEPS * 2.0 - 1.0)
}

/// Place of the value nearest to `x` in a sorted code; of two as near the lower.
fn nearest(code: &[f32; 256], x: f32) -> u8 {
    let below = code.partition_point(|&c| c <= x).saturating_sub(1);
    let above = (below + 1).min(255);
    (if (code[above] - x).abs() < (x - code[below]).abs() { above } else { below }) as u8
}

/// Mean in f32 with the rounding of torch on vectors of eight and one thread. What is stored in files is this mean, so
/// its last bits are part of the format as others write it; torch itself rounds otherwise with wider vectors or several
/// threads.
fn torch_mean(x: &[f32]) -> f32 {
    const LANES: usize = 8;
    let sum = if x.len() < LANES {
        lane_sums::<1>(x)[0]
    } else {
        let whole = x.len() / LANES * LANES;
        let tail = x[whole..].iter().fold(0f32, |s, x| s + x);
        lane_sums::<LANES>(&x[..whole]).iter().fold(tail, |s, x| s + x)
    };
    sum / x.len() as f32
}

/// Sums of each of `L` interleaved sequences: four partial sums of every fourth vector, each a cascade whose levels
/// hold 2^p terms, added at the end.
fn lane_sums<const L: usize>(x: &[f32]) -> [f32; L] {
    const ILP: usize = 4;
    const LEVELS: usize = 4;
    let vectors = x.as_chunks::<L>().0;
    let steps = vectors.len() / ILP;
    let power = ((usize::BITS - (steps.max(1) - 1).leading_zeros()) as usize / LEVELS).max(4);
    let mut sums = [[[0f32; L]; ILP]; LEVELS];
    let plus = |sum: &mut [f32; L], x: &[f32; L]| sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
    let add = |sums: &mut [[f32; L]; ILP], i: usize| (0..ILP).for_each(|k| plus(&mut sums[k], &vectors[i * ILP + k]));
    let mut i = 0;
    while i + (1 << power) <= steps {
        for _ in 0..1 << power {
            add(&mut sums[0], i);
            i += 1;
        }
        for level in 1..LEVELS {
            let lower = std::mem::replace(&mut sums[level - 1], [[0.0; L]; ILP]);
            sums[level].iter_mut().zip(&lower).for_each(|(sum, x)| plus(sum, x));
            if i & (((1 << power) - 1) << (level * power)) != 0 {
                break;
            }
        }
    }
    (i..steps).for_each(|i| add(&mut sums[0], i));
    let [mut first, upper @ ..] = sums;
    upper.iter().for_each(|level| first.iter_mut().zip(level).for_each(|(sum, x)| plus(sum, x)));
    let [mut all, others @ ..] = first;
    vectors[steps * ILP..].iter().for_each(|x| plus(&mut all, x));
    others.iter().for_each(|x| plus(&mut all, x));
    all
}
