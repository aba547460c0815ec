//! Rows by index: embedding, index_select, scatter_add.

use planish_cuda::memory::Slice;
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
