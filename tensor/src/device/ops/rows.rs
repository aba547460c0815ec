//! Rows by index: embedding, index_select, scatter_add.

use planish_cuda::memory::Slice;
use planish_cuda::ops::combine::{self, Choices};
use planish_cuda::ops::{embedding, gather};

use super::On;
use crate::{DType, Result, Tensor};

/// Rows `ids` of a table, widened to f32.
pub(crate) fn embedding_forward(on: &On, table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    if ids.is_empty() {
        return on.scratch("embedding", [0, table.dims()[1]], DType::F32);
    }
    let ids = on.words(ids)?;
    embedding_at(on, table, ids.slice(planish_cuda::DType::U32))
}

/// The same of ids on the device, which are rows of the table.
pub(crate) fn embedding_at(on: &On, table: &Tensor, ids: Slice<'_>) -> Result<Tensor> {
    if let Some(packed) = table.quantized() {
        return super::quantised::rows(on, table, packed, ids);
    }
    let (table, width) = (table.contiguous()?, table.dims()[1]);
    let mut out = on.scratch("embedding", [ids.len(), width], DType::F32)?;
    if out.numel() > 0 {
        embedding::forward(on.queue(), out.cells_mut()?, table.cells()?, ids, width)?;
    }
    Ok(out)
}

/// Rows `index` of x: (rows, …), of any dtype that computes.
pub(crate) fn take(on: &On, x: &Tensor, index: &[u32]) -> Result<Tensor> {
    if index.is_empty() {
        return on.scratch("index_select", [&[0], &x.dims()[1..]].concat(), x.dtype());
    }
    let index = on.words(index)?;
    take_at(on, x, index.slice(planish_cuda::DType::U32))
}

/// The same of an index on the device.
pub(super) fn take_at(on: &On, x: &Tensor, index: Slice<'_>) -> Result<Tensor> {
    let x = x.contiguous()?;
    let width = x.dims()[1..].iter().product();
    let mut dims = x.dims().to_vec();
    dims[0] = index.len();
    let mut out = on.scratch("index_select", dims, x.dtype())?;
    if out.numel() > 0 {
        gather::rows_by_index(on.queue(), out.cells_mut()?, x.cells()?, index, width)?;
    }
    Ok(out)
}

/// Row `index[i]` of y: (rows, …) += row i of `rows`, for each row in order of i.
pub(crate) fn add(on: &On, rows: &Tensor, index: &[u32], y: &mut Tensor) -> Result<()> {
    if rows.numel() == 0 {
        return Ok(());
    }
    let rows = rows.contiguous()?;
    let width = y.dims()[1..].iter().product();
    let runs = on.runs(index)?;
    Ok(gather::scatter_add(on.queue(), y.cells_mut()?, rows.cells()?, &runs, width)?)
}

/// y_t = Σ_j w_tj parts_(places_(t k + j)), in the type of parts.
pub(crate) fn combine(on: &On, parts: &Tensor, weights: &Tensor, places: &[u32]) -> Result<Tensor> {
    let (parts, weights) = (parts.contiguous()?, weights.contiguous()?);
    let mut y = on.scratch("combine", [weights.dims()[0], parts.dims()[1]], parts.dtype())?;
    if y.numel() == 0 {
        return Ok(y);
    }
    let places = on.words(places)?;
    let places = places.slice(planish_cuda::DType::U32);
    let of = Choices { weights: weights.cells()?, places, of_token: weights.dims()[1] };
    combine::forward(on.queue(), y.cells_mut()?, parts.cells()?, of)?;
    Ok(y)
}

/// Its gradients: of parts, if it is wanted, and of w.
pub(crate) fn combine_backward(
    on: &On,
    dy: &Tensor,
    parts: &Tensor,
    weights: &Tensor,
    places: &[u32],
    wants_parts: bool,
) -> Result<(Option<Tensor>, Tensor)> {
    let (dy, parts, weights) = (dy.to_dtype(parts.dtype())?.contiguous()?, parts.contiguous()?, weights.contiguous()?);
    let mut dw = on.scratch("combine", weights.shape(), DType::F32)?;
    let mut dparts = if wants_parts { Some(on.scratch("combine", parts.shape(), parts.dtype())?) } else { None };
    if parts.numel() > 0 {
        let places = on.words(places)?;
        let places = places.slice(planish_cuda::DType::U32);
        let of = Choices { weights: weights.cells()?, places, of_token: weights.dims()[1] };
        let to = dparts.as_mut().map(Tensor::cells_mut).transpose()?;
        combine::backward(on.queue(), to, dw.cells_mut()?, dy.cells()?, parts.cells()?, of)?;
    }
    Ok((dparts, dw))
}
