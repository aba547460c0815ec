//! Casts between dtypes.

use crate::parallel;
use crate::{DType, Element, Result, Tensor};

/// `src` as `dtype`, contiguous. Floats round to nearest even; floats to integers truncate and
/// saturate; anything but 0 is true.
pub(crate) fn convert(src: &Tensor, dtype: DType) -> Result<Tensor> {
    let src = src.contiguous()?;
    let mut out = Tensor::scratch(src.shape(), dtype)?;
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

/// Through f64, in which every float is exact, so there is one rounding (f64 keeps more than twice
/// f32's precision: a second rounding changes nothing). Integers are exact up to 2^53.
#[inline(always)]
fn cast<S: Element, D: Element>(x: S) -> D {
    D::from_f64(x.to_f64())
}
