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
