//! Softmax, log-softmax, log-sum-exp.

use planish_cuda::ops::softmax as kernel;
pub(crate) use planish_cuda::ops::softmax::Kind;

use super::On;
use crate::{DType, Result, Tensor};

fn width(x: &Tensor) -> usize {
    x.dims()[x.rank() - 1]
}

/// y.
pub(crate) fn forward(on: &On, op: &'static str, kind: Kind, x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let mut y = on.scratch(op, x.shape(), x.dtype())?;
    if y.numel() > 0 {
        kernel::forward(on.queue(), kind, y.cells_mut()?, x.cells()?, width(&x))?;
    }
    Ok(y)
}

/// dx, from the saved y.
pub(crate) fn backward(on: &On, op: &'static str, kind: Kind, dy: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (dy, y) = (dy.contiguous()?, y.contiguous()?);
    let mut dx = on.scratch(op, y.shape(), y.dtype())?;
    if dx.numel() > 0 {
        kernel::backward(on.queue(), kind, dx.cells_mut()?, dy.cells()?, y.cells()?, width(&y))?;
    }
    Ok(dx)
}

/// ln Σ e^x of each row.
pub(crate) fn logsumexp(on: &On, x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let lead = &x.dims()[..x.rank() - 1];
    if x.numel() == 0 {
        return on.full("logsumexp", f32::NEG_INFINITY, lead);
    }
    let mut lse = on.scratch("logsumexp", lead, DType::F32)?;
    kernel::logsumexp(on.queue(), lse.cells_mut()?, x.cells()?, width(&x))?;
    Ok(lse)
}

/// dx = dy e^(x - lse).
pub(crate) fn logsumexp_backward(on: &On, dy: &Tensor, x: &Tensor, lse: &Tensor) -> Result<Tensor> {
    let (dy, x, lse) = (dy.contiguous()?, x.contiguous()?, lse.contiguous()?);
    let mut dx = on.scratch("logsumexp", x.shape(), x.dtype())?;
    if dx.numel() > 0 {
        kernel::logsumexp_backward(on.queue(), dx.cells_mut()?, dy.cells()?, x.cells()?, lse.cells()?, width(&x))?;
    }
    Ok(dx)
}
