//! Checks of arguments that several ops share.

use crate::{Error, Result, Tensor};

/// `a` has the shape and dtype of `b`.
pub(crate) fn same(op: &'static str, what: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    shape(op, what, a, b.dims())?;
    if a.dtype() != b.dtype() {
        return Err(Error::DTypeMismatch { op, expected: b.dtype(), got: a.dtype() });
    }
    Ok(())
}

/// `a` has the shape `dims`.
pub(crate) fn shape(op: &'static str, what: &'static str, a: &Tensor, dims: &[usize]) -> Result<()> {
    if a.dims() != dims {
        return Err(Error::ShapeMismatch { op, what, lhs: a.dims().to_vec(), rhs: dims.to_vec() });
    }
    Ok(())
}

/// ε of a norm.
pub(crate) fn eps(op: &'static str, eps: f64) -> Result<()> {
    if eps >= 0.0 && eps.is_finite() {
        return Ok(());
    }
    Err(Error::InvalidValue { op, name: "eps", value: eps, expected: "finite and at least 0" })
}

/// `axis` is one of `t`.
pub(crate) fn axis(op: &'static str, t: &Tensor, axis: usize) -> Result<()> {
    if axis >= t.rank() {
        return Err(Error::OutOfRange { op, what: "axis", index: axis as i128, len: t.rank() });
    }
    Ok(())
}

/// Every index is below `len`.
pub(crate) fn indices(op: &'static str, what: &'static str, indices: &[u32], len: usize) -> Result<()> {
    match indices.iter().find(|&&i| i as usize >= len) {
        Some(&index) => Err(Error::OutOfRange { op, what, index: index as i128, len }),
        None => Ok(()),
    }
}

/// Sizes before `axis` multiplied, of it, and after it multiplied.
pub(crate) fn around(dims: &[usize], axis: usize) -> (usize, usize, usize) {
    (dims[..axis].iter().product(), dims[axis], dims[axis + 1..].iter().product())
}
