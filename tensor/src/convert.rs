//! Casts between dtypes.

use crate::parallel;
use crate::simd::simd_fn;
use crate::{DType, Element, Float, Result, Tensor};

/// `src` as `dtype`, contiguous. Floats round to nearest even; floats to integers truncate and
/// saturate; anything but 0 is true.
pub(crate) fn convert(src: &Tensor, dtype: DType) -> Result<Tensor> {
    if src.memory().is_some() {
        return crate::device::convert(src, dtype);
    }
    if let Some(weight) = src.quantized() {
        return match src.context() {
            Some(on) => crate::device::ops::quantised::values(on, src, weight, dtype),
            None => crate::quant::values(src, weight, dtype),
        };
    }
    let src = src.contiguous()?;
    let mut out = Tensor::scratch(src.shape(), dtype)?;
    let through_f32 = |d: DType| matches!(d, DType::F32 | DType::BF16 | DType::F16);
    if through_f32(src.dtype()) && through_f32(dtype) {
        crate::dispatch_float!("convert", src.dtype(), S => crate::dispatch_float!("convert", dtype, D => {
            let input = src.as_slice::<S>()?;
            parallel::chunks(out.as_slice_mut::<D>()?, 1, |start, chunk| narrow(&input[start..], chunk));
        }));
        return Ok(out);
    }
    crate::dispatch!(src.dtype(), S => crate::dispatch!(dtype, D => {
        let input = src.as_slice::<S>()?;
        parallel::chunks(out.as_slice_mut::<D>()?, 1, |start, chunk| {
            for (o, &x) in chunk.iter_mut().zip(&input[start..]) {
                *o = cast::<S, D>(x);
            }
        });
    }));
    Ok(out)
}

simd_fn! {
    /// Floats of up to 32 bits, through f32, which holds them all.
    fn narrow<S: Float, D: Float>(input: &[S], out: &mut [D]) {
        for (o, x) in out.iter_mut().zip(input) {
            *o = D::round(x.widen::<f32>());
        }
    }
}

#[inline(always)]
fn cast<S: Element, D: Element>(x: S) -> D {
    D::from_f64(x.to_f64())
}
