//! Dropout.

use planish_cuda::DType as Type;
use planish_cuda::ops::dropout::{self as kernel, Dropout};

use super::On;
use crate::rng::Rows;
use crate::{Result, Tensor};

/// x under the mask of `rows`, one for each row of `columns`.
pub(crate) fn forward(on: &On, x: &Tensor, p: f64, rows: &Rows, columns: usize) -> Result<Tensor> {
    let x = x.contiguous()?;
    let mut y = on.scratch("dropout", x.shape(), x.dtype())?;
    if y.numel() > 0 {
        let words: Vec<u32> = rows.keys().iter().flat_map(|k| [*k as u32, (*k >> 32) as u32]).collect();
        let keys = on.words(&words)?;
        let (seed, purpose, step) = rows.stream().parts();
        let mask = Dropout { seed, purpose: purpose as u32, step, p };
        kernel::dropout(on.queue(), y.cells_mut()?, x.cells()?, keys.slice(Type::U32), &mask, columns)?;
    }
    Ok(y)
}
