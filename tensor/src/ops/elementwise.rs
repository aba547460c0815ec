//! Elementwise arithmetic.

use crate::{Error, Result, Tensor, dispatch_real, parallel};

/// a += b, in place, for tensors of one shape and compute dtype.
///
/// # Errors
/// Shapes or dtypes that differ.
pub fn add_assign(a: &mut Tensor, b: &Tensor) -> Result<()> {
    if a.dims() != b.dims() {
        let (lhs, rhs) = (a.dims().to_vec(), b.dims().to_vec());
        return Err(Error::ShapeMismatch { op: "add_assign", what: "a and b", lhs, rhs });
    }
    let b = b.contiguous()?;
    dispatch_real!("add_assign", a.dtype(), R => {
        let b = b.as_slice::<R>()?;
        parallel::chunks(a.as_slice_mut::<R>()?, 1, |start, a| {
            for (a, &b) in a.iter_mut().zip(&b[start..]) {
                *a += b;
            }
        });
        Ok(())
    })
}

/// a + b for tensors of one shape and compute dtype.
///
/// # Errors
/// Shapes or dtypes that differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let mut out = a.copied()?;
    add_assign(&mut out, b)?;
    Ok(out)
}

/// a · factor.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn scale(a: &Tensor, factor: f64) -> Result<Tensor> {
    let mut out = a.copied()?;
    dispatch_real!("scale", a.dtype(), R => {
        let factor = <R as crate::Element>::from_f64(factor);
        parallel::chunks(out.as_slice_mut::<R>()?, 1, |_, a| {
            for a in a {
                *a *= factor;
            }
        });
    });
    Ok(out)
}
