//! Sums and maxima.

use planish_cuda::ops::{gather, reduction as kernel};

use super::On;
use crate::ops::check::around;
use crate::{DType, Result, Tensor};

/// Σ x: a scalar.
pub(crate) fn sum(on: &On, x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let mut out = on.scratch("sum", (), DType::F32)?;
    kernel::sum(on.queue(), out.cells_mut()?, x.cells()?)?;
    Ok(out)
}

/// Σ along `axis`, to the shape `dims`; f32 whatever x is.
pub(crate) fn sum_axis(on: &On, x: &Tensor, axis: usize, dims: Vec<usize>) -> Result<Tensor> {
    let (outer, n, inner) = around(x.dims(), axis);
    let x = x.contiguous()?;
    if x.numel() == 0 {
        return on.zeros("sum_axis", dims, DType::F32);
    }
    if inner == 1 {
        let mut out = on.scratch("sum_axis", dims, DType::F32)?;
        kernel::sum_rows(on.queue(), out.cells_mut()?, x.cells()?, n)?;
        return Ok(out);
    }
    let mut out = on.zeros("sum_axis", dims, DType::F32)?;
    for i in 0..outer {
        let to = out.cells_mut()?.part(i * inner, inner)?;
        kernel::add_columns(on.queue(), to, x.cells()?.part(i * n * inner, n * inner)?)?;
    }
    Ok(out)
}

/// Σ over the rows of x, (rows, width), added to `sums`: (width).
pub(crate) fn add_rows(on: &On, x: &Tensor, sums: &mut Tensor) -> Result<()> {
    let x = x.contiguous()?;
    if x.numel() == 0 {
        return Ok(());
    }
    Ok(kernel::add_columns(on.queue(), sums.cells_mut()?, x.cells()?)?)
}

/// `axis` moved to the end.
fn last(x: &Tensor, axis: usize) -> Result<Tensor> {
    (axis + 1..x.rank()).try_fold(x.clone(), |x, i| x.transpose(i - 1, i))
}

/// The largest along `axis`, f32, and its index, both of the shape `dims`.
pub(crate) fn max_axis(on: &On, x: &Tensor, axis: usize, dims: Vec<usize>) -> Result<(Tensor, Tensor)> {
    let n = x.dims()[axis];
    let x = last(x, axis)?.contiguous()?;
    let mut best = on.scratch("max_axis", dims.as_slice(), DType::F32)?;
    let mut index = on.scratch("max_axis", dims, DType::U32)?;
    if x.numel() > 0 {
        let (to, at) = (best.cells_mut()?, index.cells_mut()?);
        kernel::max_rows(on.queue(), to, at, x.cells()?, n)?;
    }
    Ok((best, index))
}

/// dy at the index, 0 elsewhere; `dims` are those of x.
pub(crate) fn max_axis_backward(on: &On, dy: &Tensor, index: &Tensor, dims: &[usize], axis: usize) -> Result<Tensor> {
    let mut moved = dims.to_vec();
    let n = moved.remove(axis);
    moved.push(n);
    let mut dx = on.zeros("max_axis", moved, DType::F32)?;
    let (dy, index) = (dy.contiguous()?, index.contiguous()?);
    if dx.numel() > 0 {
        gather::backward(on.queue(), dx.cells_mut()?, dy.cells()?, index.cells()?, n)?;
    }
    let back = (axis + 1..dims.len()).rev().try_fold(dx, |x, i| x.transpose(i - 1, i))?;
    back.contiguous()
}
