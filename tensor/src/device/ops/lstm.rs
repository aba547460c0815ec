//! One direction of an LSTM, a launch a step.

use planish_cuda::ops::lstm::{self as kernel, Step};

use super::{On, linear};
use crate::gemm::Store;
use crate::{DType, Result, Tensor};

/// (gates i, f, g, o; c; h), from the input's share of the gates; `order` are the rows in the order that they are gone
/// through, each with the one before it.
pub(crate) fn forward(
    on: &On,
    gates: &Tensor,
    w_hh: &Tensor,
    order: impl Iterator<Item = (usize, Option<usize>)>,
) -> Result<[Tensor; 3]> {
    let (steps, n) = (gates.dims()[0], w_hh.dims()[1]);
    let (mut gates, w) = (gates.copied()?, w_hh.contiguous()?);
    let mut cells = on.scratch("lstm", [steps, n], DType::F32)?;
    let mut hidden = on.scratch("lstm", [steps, n], DType::F32)?;
    if hidden.numel() > 0 {
        for (row, before) in order {
            let rows = [gates.cells_mut()?, cells.cells_mut()?, hidden.cells_mut()?];
            kernel::step(on.queue(), rows, w.cells()?, n, Step { row, before })?;
        }
    }
    Ok([gates, cells, hidden])
}

/// (dgates, dW), by going through the rows backward: `order` is that.
pub(crate) fn backward(
    on: &On,
    dh: &Tensor,
    w_hh: &Tensor,
    [gates, cells, hidden]: [&Tensor; 3],
    order: impl Iterator<Item = (usize, Option<usize>)>,
    reverse: bool,
) -> Result<(Tensor, Tensor)> {
    let (steps, n) = (gates.dims()[0], w_hh.dims()[1]);
    let (dh, w) = (dh.contiguous()?, w_hh.contiguous()?);
    let mut dgates = on.zeros("lstm", [steps, 4 * n], DType::F32)?;
    let mut dw = on.zeros("lstm", [4 * n, n], DType::F32)?;
    if dgates.numel() == 0 {
        return Ok((dgates, dw));
    }
    let mut dc = on.zeros("lstm", [n], DType::F32)?;
    let mut next = on.zeros("lstm", [1, n], DType::F32)?;
    for (row, before) in order {
        let from = [gates.cells()?, cells.cells()?, dh.cells()?, next.cells()?];
        kernel::step_backward(on.queue(), [dgates.cells_mut()?, dc.cells_mut()?], from, n, Step { row, before })?;
        if before.is_some() {
            linear::product(on, (&dgates.narrow(0, row, 1)?, &w), None, None, &mut next, Store::Set)?;
        }
    }
    if steps > 1 {
        // Each row with the h that it was made from.
        let [later, earlier] = if reverse { [0, 1] } else { [1, 0] };
        let (d, h) = (dgates.narrow(0, later, steps - 1)?, hidden.narrow(0, earlier, steps - 1)?);
        linear::product(on, (&d.transpose(0, 1)?, &h), None, None, &mut dw, Store::Set)?;
    }
    Ok((dgates, dw))
}
