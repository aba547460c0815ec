//! Rows by index.
//!
//! x: (rows, …), index: (n), result: (n, …).

use super::{check, rows};
use crate::device;
use crate::{Error, Result, Tensor, dispatch_real};

const OP: &str = "index_select";

fn width(x: &Tensor, index: &[u32]) -> Result<usize> {
    let Some((&rows, rest)) = x.dims().split_first() else {
        return Err(Error::Rank { op: OP, expected: 1, shape: Vec::new() });
    };
    check::indices(OP, "row", index, rows)?;
    Ok(rest.iter().product())
}

/// Result row i = x row index\[i\].
///
/// # Errors
/// [`Error::OutOfRange`] for an index that is no row; a scalar x; a dtype other than f32 and f64.
pub fn forward(x: &Tensor, index: &[u32]) -> Result<Tensor> {
    let width = width(x, index)?;
    if let Some(on) = device::of(OP, [x])? {
        return device::ops::rows::take(&on, x, index);
    }
    let x = x.contiguous()?;
    let mut dims = x.dims().to_vec();
    dims[0] = index.len();
    let mut out = Tensor::scratch(dims, x.dtype())?;
    dispatch_real!(OP, x.dtype(), R => {
        rows::take(x.as_slice::<R>()?, width, index, out.as_slice_mut::<R>()?);
    });
    Ok(out)
}

/// dx row index\[i\] += dy row i, in order.
///
/// # Errors
/// As [`forward`].
pub fn backward_add(dy: &Tensor, index: &[u32], dx: &mut Tensor) -> Result<()> {
    let width = width(dx, index)?;
    if dy.dims().first() != Some(&index.len()) || dy.dims()[1..] != dx.dims()[1..] {
        let (lhs, rhs) = (dy.dims().to_vec(), dx.dims().to_vec());
        return Err(Error::ShapeMismatch { op: OP, what: "gradient (n, …) against x", lhs, rhs });
    }
    if let Some(on) = device::of(OP, [dy, &*dx])? {
        return device::ops::rows::add(&on, dy, index, dx);
    }
    let dy = dy.contiguous()?;
    dispatch_real!(OP, dy.dtype(), R => {
        rows::add(dy.as_slice::<R>()?, width, index, dx.as_slice_mut::<R>()?);
    });
    Ok(())
}
