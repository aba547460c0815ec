//! Lengths of rows, and columns scaled by them.

use planish_cuda::ops::dora_linear as kernel;

use super::On;
use crate::{DType, Result, Tensor};

/// ‖W + s·B A‖ by rows, f32. All values of a quantised W are made for it, and given back.
pub(crate) fn row_norms(on: &On, weight: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let weight = if weight.quantized().is_some() { weight.to_dtype(DType::F32)? } else { weight.contiguous()? };
    let wide = |t: &Tensor| t.to_dtype(DType::F32)?.contiguous();
    let (a, b) = (wide(a)?, wide(b)?);
    let mut norms = on.scratch("dora_linear", [weight.dims()[0]], DType::F32)?;
    if norms.numel() > 0 {
        let parts = [a.cells()?, b.cells()?];
        kernel::norms(on.queue(), norms.cells_mut()?, weight.cells()?, parts, scale as f32)?;
    }
    Ok(norms)
}

/// m / n, and 0 where n is 0.
pub(crate) fn gain(on: &On, magnitude: &Tensor, norms: &Tensor) -> Result<Tensor> {
    let (magnitude, norms) = (magnitude.contiguous()?, norms.contiguous()?);
    let mut gain = on.scratch("dora_linear", magnitude.shape(), DType::F32)?;
    if gain.numel() > 0 {
        kernel::gains(on.queue(), gain.cells_mut()?, magnitude.cells()?, norms.cells()?)?;
    }
    Ok(gain)
}

/// x ⊙ g of each row, in the dtype of x.
pub(crate) fn columns(on: &On, x: &Tensor, gain: &Tensor) -> Result<Tensor> {
    let (x, gain) = (x.contiguous()?, gain.contiguous()?);
    let mut y = on.scratch("dora_linear", x.shape(), x.dtype())?;
    if y.numel() > 0 {
        kernel::columns(on.queue(), y.cells_mut()?, x.cells()?, gain.cells()?)?;
    }
    Ok(y)
}
