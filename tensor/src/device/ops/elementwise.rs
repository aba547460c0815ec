//! Elementwise arithmetic.

use planish_cuda::ops::copy::{self, Dim};
use planish_cuda::ops::elementwise as kernel;
pub(crate) use planish_cuda::ops::elementwise::Binary;

use super::On;
use crate::{DType, Result, Tensor};

/// a ∘ b, of one shape.
pub(crate) fn binary(on: &On, op: &'static str, kind: Binary, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let mut out = on.scratch(op, a.shape(), a.dtype())?;
    kernel::binary(on.queue(), kind, out.cells_mut()?, a.cells()?, b.cells()?)?;
    Ok(out)
}

/// a += b, of one shape and dtype, or a half b into an f32 a.
pub(crate) fn add_assign(on: &On, a: &mut Tensor, b: &Tensor) -> Result<()> {
    let b = b.contiguous()?;
    if a.dtype() == DType::F32 && b.dtype() != DType::F32 {
        let all = Dim { size: b.numel(), x: 1, y: 1 };
        return Ok(copy::add(on.queue(), a.cells_mut()?, b.cells()?, &[all])?);
    }
    Ok(kernel::axpby(on.queue(), a.cells_mut()?, b.cells()?, 1.0, 1.0)?)
}

/// Σ xᵢ of halves.
pub(crate) fn sum_of_halves(on: &On, xs: &[Tensor]) -> Result<Tensor> {
    let xs = xs.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
    let mut out = on.scratch("sum_of_halves", xs[0].shape(), xs[0].dtype())?;
    let cells = xs.iter().map(Tensor::cells).collect::<Result<Vec<_>>>()?;
    kernel::sum(on.queue(), out.cells_mut()?, &cells)?;
    Ok(out)
}

/// a · factor.
pub(crate) fn scale(on: &On, a: &Tensor, factor: f64) -> Result<Tensor> {
    let a = a.contiguous()?;
    let mut out = on.scratch("scale", a.shape(), a.dtype())?;
    kernel::axpby(on.queue(), out.cells_mut()?, a.cells()?, factor as f32, 0.0)?;
    Ok(out)
}

/// a + number.
pub(crate) fn add_scalar(on: &On, a: &Tensor, number: f64) -> Result<Tensor> {
    let a = a.contiguous()?;
    let mut out = on.scratch("add_scalar", a.shape(), a.dtype())?;
    kernel::add_scalar(on.queue(), out.cells_mut()?, a.cells()?, number as f32)?;
    Ok(out)
}
