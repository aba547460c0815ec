//! Rotary position embedding.

use planish_cuda::ops::rope::{self as kernel, Heads};

use super::On;
use crate::{Result, Tensor};

/// x turned by the tables, or back.
pub(crate) fn turn(on: &On, x: &Tensor, cos: &Tensor, sin: &Tensor, back: bool) -> Result<Tensor> {
    let (x, cos, sin) = (x.contiguous()?, cos.contiguous()?, sin.contiguous()?);
    let of = Heads { heads: x.dims()[1], size: x.dims()[2], half: cos.dims()[1] };
    let mut y = on.scratch("rope", x.shape(), x.dtype())?;
    if y.numel() > 0 {
        kernel::turn(on.queue(), y.cells_mut()?, x.cells()?, cos.cells()?, sin.cells()?, of, back)?;
    }
    Ok(y)
}
