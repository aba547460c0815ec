//! Elements of each row by index.

use planish_cuda::DType as Type;
use planish_cuda::ops::gather;

use super::On;
use crate::{Result, Tensor};

/// `y[r][j] = x[r][index[r][j]]`; `at` are the indices, checked, of shape `dims`.
pub(crate) fn forward(on: &On, x: &Tensor, at: &[u32], dims: &[usize]) -> Result<Tensor> {
    let (x, width) = (x.contiguous()?, x.dims()[x.rank() - 1]);
    let mut y = on.scratch("gather", dims, x.dtype())?;
    if y.numel() > 0 {
        let at = on.words(at)?;
        gather::forward(on.queue(), y.cells_mut()?, x.cells()?, at.slice(Type::U32), width)?;
    }
    Ok(y)
}

/// `dx[r][index[r][j]] += dy[r][j]`.
pub(crate) fn backward_add(on: &On, dy: &Tensor, at: &[u32], dx: &mut Tensor) -> Result<()> {
    if dy.numel() == 0 {
        return Ok(());
    }
    let (dy, width) = (dy.contiguous()?, dx.dims()[dx.rank() - 1]);
    let at = on.words(at)?;
    Ok(gather::backward(on.queue(), dx.cells_mut()?, dy.cells()?, at.slice(Type::U32), width)?)
}
