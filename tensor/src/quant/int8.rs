//! bitsandbytes' row-wise int8 (LLM.int8()): q = round(127 x / absmax of the row), halves to even.
//!
//! The weight is rounded to f16 first, as bitsandbytes does when it takes one in. A value is q · (absmax / 127), the
//! quotient rounded to f32 first: what bitsandbytes trains with. Its int8 product with quantised activations, and the
//! columns of outliers that this leaves in 16 bits, are no part of the weight and not done here: activations stay f32.

use super::{Layout, Quantized, flat, floats_of, weight_rows};
use crate::gemm::panels::{DEPTH, Unit};
use crate::{DType, Device, Error, Result, Tensor, f16, parallel};

/// An int8 weight.
#[derive(Debug, Clone)]
pub struct Int8 {
    bytes: Tensor,
    scales: Tensor,
}

impl Int8 {
    /// A weight (rows, cols) of these integers and a largest absolute value for each row.
    ///
    /// # Errors
    /// [`Error::Length`] where a part has the wrong length; [`Error::DTypeMismatch`].
    pub fn from_parts(shape: [usize; 2], bytes: &Tensor, scales: &Tensor) -> Result<Quantized> {
        let n = shape[0]
            .checked_mul(shape[1])
            .ok_or_else(|| Error::TooLarge { shape: shape.to_vec(), dtype: DType::Packed })?;
        let bytes = flat("int8 weight", bytes, DType::I8, n)?;
        let scales = flat("SCB", scales, DType::F32, shape[0])?;
        Ok(Quantized::new(shape, Layout::Int8(Int8 { bytes, scales })))
    }

    /// Quantises a weight (rows, cols) of any float dtype.
    ///
    /// # Errors
    /// [`Error::Rank`], [`Error::UnsupportedDType`]; [`Error::OutOfMemory`].
    pub fn quantize(weight: &Tensor) -> Result<Quantized> {
        let (rows, shape) = weight_rows("int8 quantisation", weight)?;
        let (data, cols) = (rows.as_slice::<f32>()?, shape[1]);
        let mut bytes = Tensor::zeros([data.len()], DType::I8)?;
        let mut scales = Tensor::zeros([shape[0]], DType::F32)?;
        parallel::chunks2(
            bytes.as_slice_mut::<i8>()?,
            cols,
            scales.as_slice_mut::<f32>()?,
            1,
            |first, bytes, scales| {
                for ((r, scale), bytes) in scales.iter_mut().enumerate().zip(bytes.chunks_exact_mut(cols)) {
                    let row = data[(first + r) * cols..][..cols].iter().map(|&x| f16::from_f32(x).to_f32());
                    *scale = row.clone().fold(0f32, |m, x| m.max(x.abs()));
                    // Rounded twice, as torch divides a number by a tensor.
                    let factor = 1.0 / *scale * 127.0;
                    for (byte, x) in bytes.iter_mut().zip(row) {
                        // A row of zeros is one of zeros.
                        *byte = if *scale > 0.0 { (x * factor).round_ties_even() as i8 } else { 0 };
                    }
                }
            },
        );
        Int8::from_parts(shape, &bytes, &scales)
    }

    /// An i8 for each element: (rows · cols).
    pub fn bytes(&self) -> &Tensor {
        &self.bytes
    }

    /// The largest absolute value of each row: (rows) of f32.
    pub fn scales(&self) -> &Tensor {
        &self.scales
    }

    pub(super) fn to_device(&self, device: Device) -> Result<Int8> {
        Ok(Int8 { bytes: self.bytes.to_device(device)?, scales: self.scales.to_device(device)? })
    }

    /// As [`Quantized::unit`]; rows are `cols` long.
    pub(super) fn unit(&self, cols: usize, start: usize) -> Unit {
        let (bytes, scales) = self.parts();
        let q = bytes[start..start + DEPTH].try_into().expect("as many");
        Unit { q, scale: [scales[start / cols] * (1.0 / 127.0); 2], offset: 0.0 }
    }

    fn parts(&self) -> (&[i8], &[f32]) {
        (self.bytes.as_slice().expect("checked when it was made"), floats_of(&self.scales))
    }

    /// As [`Quantized::read`]; rows are `cols` long.
    pub(super) fn read(&self, cols: usize, start: usize, mut out: &mut [f32]) {
        let (bytes, scales) = self.parts();
        let mut at = start;
        while !out.is_empty() {
            let row = at / cols;
            let n = out.len().min((row + 1) * cols - at);
            let (part, rest) = out.split_at_mut(n);
            super::ggml::scale_bytes(&bytes[at..at + n], scales[row] * (1.0 / 127.0), part);
            (out, at) = (rest, at + n);
        }
    }
}
