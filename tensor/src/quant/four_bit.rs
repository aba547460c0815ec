//! bitsandbytes' 4-bit formats: blocks of elements, in row-major order whatever the rows, of one scale each.
//!
//! Element 2 i is the high nibble of byte i and element 2 i + 1 the low one. A block's scale is the largest absolute
//! value in it; an element's nibble is the nearest code to x / scale, the lower where it lies in the middle.

use super::codes::FourBitKind;
use super::nested::{Nested, Scales};
use super::{Layout, Quantized, bytes_of, flat, floats_of, weight_rows};
use crate::gemm::panels::Unit;
use crate::{DType, Device, Error, Result, Tensor, parallel};

/// The block sizes there are.
pub const BLOCK_SIZES: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// What a scale is at least before it divides, as in bitsandbytes.
const LEAST: f32 = 1e-38;

/// A 4-bit weight: its nibbles and the scales of its blocks.
#[derive(Debug, Clone)]
pub struct FourBit {
    kind: FourBitKind,
    block: usize,
    bytes: Tensor,
    scales: Scales,
    /// What `quant_state` says the weight was made of: only what writes the file again wants to know.
    dtype: DType,
}

impl FourBit {
    /// A weight (rows, cols) of these nibbles, `(rows · cols + 1) / 2` bytes, and scales, one a block.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] for a block size that does not exist; [`Error::Length`] where a part has the wrong
    /// length; [`Error::DTypeMismatch`].
    pub fn from_parts(
        shape: [usize; 2],
        kind: FourBitKind,
        block: usize,
        bytes: &Tensor,
        scales: Scales,
        dtype: DType,
    ) -> Result<Quantized> {
        check_block(block)?;
        let n = shape[0]
            .checked_mul(shape[1])
            .ok_or_else(|| Error::TooLarge { shape: shape.to_vec(), dtype: DType::Packed })?;
        let bytes = flat("4-bit weight", bytes, DType::U8, n.div_ceil(2))?;
        let scales = scales.checked(n.div_ceil(block))?;
        Ok(Quantized::new(shape, Layout::FourBit(FourBit { kind, block, bytes, scales, dtype })))
    }

    /// Quantises a weight (rows, cols) of any float dtype; the scales are quantised too if `double`.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] for a block size that does not exist; [`Error::Rank`], [`Error::UnsupportedDType`];
    /// [`Error::OutOfMemory`].
    pub fn quantize(weight: &Tensor, kind: FourBitKind, block: usize, double: bool) -> Result<Quantized> {
        check_block(block)?;
        let (rows, shape) = weight_rows("4-bit quantisation", weight)?;
        let data = rows.as_slice::<f32>()?;
        let n = data.len();
        let full = n / block * block;
        let mut bytes = Tensor::zeros([n.div_ceil(2)], DType::U8)?;
        let mut absmax = Tensor::zeros([n.div_ceil(block)], DType::F32)?;
        let (bounds, order) = kind.bounds();
        let nibble = |x: f32| order[bounds.iter().filter(|&&b| b < x).count()];
        let largest = |block: &[f32]| block.iter().fold(0f32, |m, x| m.max(x.abs()));
        {
            let (bytes, scales) = (bytes.as_slice_mut::<u8>()?, absmax.as_slice_mut::<f32>()?);
            let (of_full, rest) = bytes.split_at_mut(full / 2);
            parallel::chunks2(of_full, block / 2, &mut scales[..full / block], 1, |first, bytes, scales| {
                for ((b, scale), bytes) in scales.iter_mut().enumerate().zip(bytes.chunks_exact_mut(block / 2)) {
                    let x = &data[(first + b) * block..][..block];
                    *scale = largest(x);
                    let inverse = 1.0 / scale.max(LEAST);
                    for (byte, x) in bytes.iter_mut().zip(x.as_chunks::<2>().0) {
                        let [high, low] = x.map(|x| nibble((x * inverse).clamp(-1.0, 1.0)));
                        *byte = high << 4 | low;
                    }
                }
            });
            if full < n {
                // The last block divides where the others multiply by the inverse: so does bitsandbytes.
                let scale = largest(&data[full..]).max(LEAST);
                scales[full / block] = scale;
                for (byte, x) in rest.iter_mut().zip(data[full..].chunks(2)) {
                    let of = |x: Option<&f32>| x.map_or(0.0, |x| (x / scale).clamp(-1.0, 1.0));
                    *byte = nibble(of(x.first())) << 4 | nibble(of(x.get(1)));
                }
            }
        }
        let scales = if double { Scales::Nested(Nested::quantize(&absmax)?) } else { Scales::Plain(absmax) };
        let dtype = if weight.dtype() == DType::F64 { DType::F32 } else { weight.dtype() };
        FourBit::from_parts(shape, kind, block, &bytes, scales, dtype)
    }

    /// Which code.
    pub fn kind(&self) -> FourBitKind {
        self.kind
    }

    /// Elements of a block.
    pub fn block_size(&self) -> usize {
        self.block
    }

    /// Two elements a byte: (ceil(n / 2)) of u8.
    pub fn bytes(&self) -> &Tensor {
        &self.bytes
    }

    /// One a block.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Dtype of the weight that it was made of.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn to_device(&self, device: Device) -> Result<FourBit> {
        let (bytes, scales) = (self.bytes.to_device(device)?, self.scales.to_device(device)?);
        Ok(FourBit { bytes, scales, ..*self })
    }

    pub(super) fn nbytes(&self) -> usize {
        self.bytes.nbytes() + self.scales.nbytes()
    }

    /// As [`Quantized::unit`].
    pub(super) fn unit(&self, start: usize) -> Unit {
        let bytes = bytes_of(&self.bytes);
        let q = std::array::from_fn(|i| (bytes[(start + i) / 2] >> ((start + i + 1) % 2 * 4) & 15) as i8);
        let scale = match &self.scales {
            Scales::Plain(absmax) => floats_of(absmax)[start / self.block],
            Scales::Nested(nested) => nested.reader().get(start / self.block),
        };
        Unit { q, scale: [scale; 2], offset: 0.0 }
    }

    /// As [`Quantized::read`].
    pub(super) fn read(&self, start: usize, out: &mut [f32]) {
        let (bytes, code) = (bytes_of(&self.bytes), self.kind.code());
        match &self.scales {
            Scales::Plain(absmax) => {
                let absmax = floats_of(absmax);
                read(bytes, code, self.block, |b| absmax[b], start, out);
            }
            Scales::Nested(nested) => {
                let nested = nested.reader();
                read(bytes, code, self.block, |b| nested.get(b), start, out);
            }
        }
    }
}

/// Elements `start..` of blocks of `block` elements, each a code times its block's scale.
fn read(bytes: &[u8], code: &[f32; 16], block: usize, scale: impl Fn(usize) -> f32, start: usize, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::simd::level() >= crate::simd::Simd::Avx2 {
        // SAFETY: level() says that this machine has AVX2.
        return unsafe { super::x86::read(bytes, code, block, scale, start, out) };
    }
    portable(bytes, code, block, scale, start, out);
}

/// The same in plain Rust, which the other equals to the bit.
pub(super) fn portable(
    bytes: &[u8],
    code: &[f32; 16],
    block: usize,
    scale: impl Fn(usize) -> f32,
    start: usize,
    out: &mut [f32],
) {
    let mut at = start;
    let mut left = out;
    while !left.is_empty() {
        let n = left.len().min((at / block + 1) * block - at);
        let (part, rest) = left.split_at_mut(n);
        let scale = scale(at / block);
        for (i, o) in (at..).zip(part) {
            let byte = bytes[i / 2];
            *o = code[(if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 }) as usize] * scale;
        }
        (left, at) = (rest, at + n);
    }
}

fn check_block(block: usize) -> Result<()> {
    if BLOCK_SIZES.contains(&block) {
        return Ok(());
    }
    let expected = "one of 32, 64, 128, 256, 512, 1024, 2048 and 4096";
    Err(Error::InvalidValue { op: "4-bit weight", name: "blocksize", value: block as f64, expected })
}
