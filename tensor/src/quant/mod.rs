//! Quantised weights: bitsandbytes' 4-bit and 8-bit formats and the blocks of GGUF files.
//!
//! # Design
//! A quantised weight is no strided tensor of elements. It is a [`Quantized`]: a format, a shape (rows, cols) and
//! bytes, owned or mapped from a file. Everything is built on one operation, [`Quantized::read`]: write the f32 values
//! of a run of elements, counted in row-major order. It is carried by a [`Tensor`] of [`DType::Packed`], so that a
//! parameter, an adapter or a checkpoint holds it as any other weight; views of it (transposed, narrowed rows) keep
//! their strides. An op that does not know packed weights refuses the dtype.
//!
//! Products take it as their right-hand matrix, [`PackedMat`]: panels are dequantised while they are packed, so it is
//! never in memory as floats. The arithmetic after that is what it is for any weight, which gives the invariant that
//! all tests rest on: **a product with a packed weight has the bits of the product with its values in f32**. Law 5
//! (sampler and trainer agree to the bit) follows, whatever the format.
//!
//! On a [device](crate::Device) the blocks are in its memory, and each product makes the values of its weight in the type
//! that it computes in and forgets them again. They are these values, so that the invariant holds there too.
//!
//! The weight is frozen: it has no gradient, and asking for one is an error. The activations' gradient dx = dy W reads
//! the same blocks in the other direction.
//!
//! | format | bytes an element | value |
//! | --- | --- | --- |
//! | nf4, fp4 | 0.5 + 4 / block | code\[q\] · absmax of its block |
//! | the same, doubly quantised | 0.5 + 1 / block + 4 / (256 block) | absmax = code8\[a\] · absmax2 + offset |
//! | int8 | 1 + 4 / cols | q · (absmax of its row / 127) |
//! | GGUF | see [`ggml`] | |
//! | [panels](Panels) | 4, 2 or see there | the element: nothing is rounded, only laid out for decoding |
//!
//! Products and sums are rounded one by one in f32, as bitsandbytes and ggml round them.
//!
//! # Source
//! Dettmers et al., "QLoRA", arXiv:2305.14314, section 3 (NF4, double quantisation); "LLM.int8()", arXiv:2208.07339,
//! section 2 (row-wise int8; the outliers there are those of activations, which stay floats here); "8-bit optimizers",
//! arXiv:2110.02861, section 2 (the dynamic code of the second quantisation). Formats: bitsandbytes 0.50.

mod codes;
mod four_bit;
pub mod ggml;
mod int8;
mod matrix;
mod nested;
mod panels;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use codes::{FourBitKind, dynamic_code};
pub use four_bit::{BLOCK_SIZES, FourBit};
pub use ggml::{Ggml, GgmlKind};
pub use int8::Int8;
pub use matrix::PackedMat;
pub use nested::{NESTED_BLOCK, Nested, Scales};
pub use panels::Panels;

use std::sync::Arc;

use crate::device::Context;
use crate::gemm::panels::Unit;
use crate::{DType, Device, Error, Result, Tensor, parallel};

/// How a quantised weight is stored.
#[derive(Debug, Clone)]
pub enum Layout {
    /// bitsandbytes' 4-bit formats.
    FourBit(FourBit),
    /// bitsandbytes' row-wise int8.
    Int8(Int8),
    /// Blocks of a GGUF file.
    Ggml(Ggml),
    /// Floats or blocks in the order in which decoding reads them.
    Panels(Panels),
}

/// A quantised weight (rows, cols). Cloning shares the bytes.
#[derive(Debug, Clone)]
pub struct Quantized {
    shape: [usize; 2],
    layout: Layout,
}

impl Quantized {
    /// A weight of blocks that its layout has checked against the shape.
    pub(crate) fn new(shape: [usize; 2], layout: Layout) -> Quantized {
        Quantized { shape, layout }
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// How it is stored.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its format, for people: `nf4`, `int8`, `Q8_0`.
    pub fn format(&self) -> &'static str {
        match &self.layout {
            Layout::FourBit(x) => x.kind().name(),
            Layout::Int8(_) => "int8",
            Layout::Ggml(x) => x.kind().name(),
            Layout::Panels(x) => x.format(),
        }
    }

    /// Bytes of its blocks and scales.
    pub fn nbytes(&self) -> usize {
        match &self.layout {
            Layout::FourBit(x) => x.nbytes(),
            Layout::Int8(x) => x.bytes().nbytes() + x.scales().nbytes(),
            Layout::Ggml(x) => x.bytes().nbytes(),
            Layout::Panels(x) => x.nbytes(),
        }
    }

    /// Where its bytes are.
    pub fn device(&self) -> Device {
        self.context().map_or(Device::Cpu, |on| on.device())
    }

    pub(crate) fn context(&self) -> Option<&Arc<Context>> {
        match &self.layout {
            Layout::FourBit(x) => x.bytes().context(),
            Layout::Int8(x) => x.bytes().context(),
            Layout::Ggml(x) => x.bytes().context(),
            Layout::Panels(_) => None,
        }
    }

    /// The same blocks and scales on another device, or shared if they are there.
    ///
    /// # Errors
    /// As [`Tensor::to_device`].
    pub fn to_device(&self, device: Device) -> Result<Quantized> {
        let layout = match &self.layout {
            Layout::FourBit(x) => Layout::FourBit(x.to_device(device)?),
            Layout::Int8(x) => Layout::Int8(x.to_device(device)?),
            Layout::Ggml(x) => Layout::Ggml(x.to_device(device)?),
            Layout::Panels(_) if device.is_cpu() => self.layout.clone(),
            Layout::Panels(_) => return Err(Error::UnsupportedDType { op: "to_device", dtype: DType::Packed }),
        };
        Ok(Quantized { shape: self.shape, layout })
    }

    /// Writes the values of elements `start..start + out.len()`, counted row by row.
    ///
    /// # Panics
    /// If they reach past the weight; if it is on a device.
    pub fn read(&self, start: usize, out: &mut [f32]) {
        assert!(start + out.len() <= self.shape[0] * self.shape[1], "elements past a quantised weight");
        match &self.layout {
            Layout::FourBit(x) => x.read(start, out),
            Layout::Int8(x) => x.read(self.shape[1], start, out),
            Layout::Ggml(x) => x.read(start, out),
            Layout::Panels(x) => x.read(self.shape[1], start, out),
        }
    }

    /// The elements from `start` on that one scale is for, or two: [`DEPTH`](crate::gemm::panels::DEPTH) of one row, which is
    /// a multiple of as many.
    ///
    /// # Panics
    /// If they reach past the weight; if it is laid out in panels already.
    fn unit(&self, start: usize) -> Unit {
        match &self.layout {
            Layout::FourBit(x) => x.unit(start),
            Layout::Int8(x) => x.unit(self.shape[1], start),
            Layout::Ggml(x) => x.unit(start),
            Layout::Panels(_) => unreachable!("checked before it was laid out"),
        }
    }

    /// All values, in f32, bf16, f16 or f64, rounded once from f32.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::UnsupportedDType`].
    pub fn dequantize(&self, dtype: DType) -> Result<Tensor> {
        Tensor::packed(self.clone()).to_dtype(dtype)
    }

    /// ‖W - Q‖ / ‖W‖: how far its values are from those it was made of, summed in f64 in element order.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`]; [`Error::OutOfMemory`]; [`Error::NotHere`] on a device.
    pub fn relative_rms(&self, original: &Tensor) -> Result<f64> {
        if let Some(on) = self.context() {
            return Err(Error::NotHere { op: "quantisation error", device: on.device() });
        }
        if original.dims() != self.shape {
            let (lhs, rhs) = (original.dims().to_vec(), self.shape.to_vec());
            return Err(Error::ShapeMismatch { op: "quantisation error", what: "weight against blocks", lhs, rhs });
        }
        let original = original.to_dtype(DType::F32)?.contiguous()?;
        let (data, cols) = (original.as_slice::<f32>()?, self.shape[1].max(1));
        let rows = parallel::map(data.len() / cols, |r| {
            let mut values = vec![0.0; cols];
            self.read(r * cols, &mut values);
            let square = |x: f64| x * x;
            let pairs = data[r * cols..(r + 1) * cols].iter().zip(&values);
            pairs.fold((0.0, 0.0), |(e, n), (&w, &q)| (e + square(w as f64 - q as f64), n + square(w as f64)))
        });
        let (error, norm) = rows.into_iter().fold((0.0, 0.0), |(e, n), (de, dn)| (e + de, n + dn));
        Ok(if norm > 0.0 { (error / norm).sqrt() } else { error.sqrt() })
    }
}

/// The values of a view of a packed tensor, as `dtype`.
pub(crate) fn values(view: &Tensor, weight: &Quantized, dtype: DType) -> Result<Tensor> {
    if view.rank() == 2 && !view.is_contiguous() {
        // Transposed: made as it is stored, then copied across.
        return values(&view.transpose(0, 1)?, weight, dtype)?.transpose(0, 1)?.contiguous();
    }
    if !view.is_contiguous() {
        return Err(Error::UnsupportedDType { op: "to_dtype", dtype: DType::Packed });
    }
    let mut out = Tensor::scratch(view.shape(), DType::F32)?;
    let width = view.dims().last().copied().unwrap_or(1);
    parallel::chunks(out.as_slice_mut::<f32>()?, width, |start, run| weight.read(view.offset() + start, run));
    out.to_dtype(dtype)
}

/// A run of bytes of a tensor that was checked to be one of bytes when it was taken in.
fn bytes_of(t: &Tensor) -> &[u8] {
    t.as_slice::<u8>().expect("checked when it was made")
}

/// As [`bytes_of`], for scales.
fn floats_of(t: &Tensor) -> &[f32] {
    t.as_slice::<f32>().expect("checked when it was made")
}

/// A contiguous tensor of `dtype` and `len` elements, flat.
fn flat(what: &'static str, t: &Tensor, dtype: DType, len: usize) -> Result<Tensor> {
    if t.dtype() != dtype {
        return Err(Error::DTypeMismatch { op: what, expected: dtype, got: t.dtype() });
    }
    if t.numel() != len {
        return Err(Error::Length { op: what, len: t.numel(), shape: vec![len] });
    }
    t.reshape([len])
}

/// A weight as contiguous f32 rows.
fn weight_rows(op: &'static str, weight: &Tensor) -> Result<(Tensor, [usize; 2])> {
    if weight.rank() != 2 {
        return Err(Error::Rank { op, expected: 2, shape: weight.dims().to_vec() });
    }
    if !weight.dtype().is_float() {
        return Err(Error::UnsupportedDType { op, dtype: weight.dtype() });
    }
    Ok((weight.to_dtype(DType::F32)?.contiguous()?, [weight.dims()[0], weight.dims()[1]]))
}
