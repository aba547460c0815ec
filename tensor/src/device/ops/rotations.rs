//! Block-diagonal maps, and the orthogonal blocks that they are made of.

use planish_cuda::ops::{block_rotate, cayley};

use super::On;
use crate::ops::cayley::Cayley;
use crate::{DType, Result, Tensor};

/// x R by blocks of the features, or x Rᵀ; R: (groups or 1, n, n).
pub(crate) fn rotate(on: &On, x: &Tensor, r: &Tensor, turned: bool) -> Result<Tensor> {
    let (x, r) = (x.contiguous()?, r.to_dtype(DType::F32)?.contiguous()?);
    let sizes = [x.dims()[x.rank() - 1], r.dims()[1]];
    let mut y = on.scratch("block_rotate", x.shape(), x.dtype())?;
    if y.numel() > 0 {
        block_rotate::forward(on.queue(), y.cells_mut()?, x.cells()?, r.cells()?, sizes, turned)?;
    }
    Ok(y)
}

/// dR += Σ x dyᵀ of each block; x, dy: (rows, groups n).
pub(crate) fn blocks_add(on: &On, dy: &Tensor, x: &Tensor, dr: &mut Tensor) -> Result<()> {
    let (x, dy) = (x.contiguous()?, dy.contiguous()?);
    let sizes = [x.dims()[1], dr.dims()[1]];
    if x.numel() > 0 {
        block_rotate::blocks_add(on.queue(), dr.cells_mut()?, x.cells()?, dy.cells()?, sizes)?;
    }
    Ok(())
}

/// The terms of the series as the kernel takes them: 0 for the exact transform.
fn terms(kind: Cayley) -> u32 {
    match kind {
        Cayley::Exact => 0,
        Cayley::Series(terms) => u32::try_from(terms).unwrap_or(u32::MAX),
    }
}

/// R of q: (blocks, n (n - 1) / 2).
pub(crate) fn orthogonal(on: &On, q: &Tensor, n: usize, kind: Cayley) -> Result<Tensor> {
    let q = q.contiguous()?;
    let mut r = on.scratch("cayley", [q.dims()[0], n, n], DType::F32)?;
    if r.numel() > 0 {
        cayley::forward(on.queue(), r.cells_mut()?, q.cells()?, n, terms(kind))?;
    }
    Ok(r)
}

/// dq from dR.
pub(crate) fn orthogonal_backward(on: &On, dr: &Tensor, q: &Tensor, n: usize, kind: Cayley) -> Result<Tensor> {
    let (dr, q) = (dr.contiguous()?, q.contiguous()?);
    let mut dq = on.scratch("cayley", q.shape(), DType::F32)?;
    if dq.numel() > 0 {
        cayley::backward(on.queue(), dq.cells_mut()?, dr.cells()?, q.cells()?, n, terms(kind))?;
    }
    Ok(dq)
}
