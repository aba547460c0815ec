//! Matrix products.

use planish_cuda::ops::elementwise;
use planish_cuda::ops::matmul::{Epilogue, Layout, Term, matmul};

use super::On;
use crate::gemm::Store;
use crate::{DType, Result, Tensor};

/// A two-dimensional tensor as the kernel takes it: without gaps, row by row or column by column; and which.
fn dense(t: &Tensor) -> Result<(Tensor, bool)> {
    if t.is_contiguous() {
        return Ok((t.clone(), false));
    }
    let transposed = t.transpose(0, 1)?;
    if transposed.is_contiguous() { Ok((transposed, true)) } else { Ok((t.copied()?, false)) }
}

/// C = or += A B + U V, all two-dimensional; A, U and C are f32, B and V of any float type.
pub(crate) fn product(
    on: &On,
    (a, b): (&Tensor, &Tensor),
    update: Option<(&Tensor, &Tensor)>,
    c: &mut Tensor,
    store: Store,
) -> Result<()> {
    let (m, n) = (a.dims()[0], b.dims()[1]);
    if m == 0 || n == 0 {
        return Ok(());
    }
    let (a, a_transposed) = dense(&a.to_dtype(DType::F32)?)?;
    // The kernel calls the layout of a weight, (n, k), the plain one.
    let (b, b_plain) = dense(b)?;
    let layout = Layout { a_transposed, b_transposed: !b_plain };
    // The factors of the update must lie as A and B do.
    let like = |t: &Tensor, transposed: bool| match transposed {
        false => t.contiguous(),
        true => t.transpose(0, 1)?.contiguous(),
    };
    let update = match update {
        None => None,
        Some((u, v)) => Some((like(&u.to_dtype(DType::F32)?, a_transposed)?, like(v, b_plain)?, u.dims()[1])),
    };
    let depth = if a_transposed { a.dims()[0] } else { a.dims()[1] };
    let mut terms = vec![Term { a: a.cells()?, b: b.cells()?, depth }];
    if let Some((u, v, depth)) = &update {
        terms.push(Term { a: u.cells()?, b: v.cells()?, depth: *depth });
    }
    let epilogue = Epilogue { add: matches!(store, Store::Add), ..Epilogue::default() };
    Ok(matmul(on.queue(), c.cells_mut()?, [m, n], layout, &terms, epilogue)?)
}

/// Every row of y += bias.
pub(crate) fn add_bias(on: &On, y: &mut Tensor, bias: &Tensor) -> Result<()> {
    if y.numel() == 0 {
        return Ok(());
    }
    let bias = bias.to_dtype(DType::F32)?.contiguous()?;
    Ok(elementwise::add_row(on.queue(), y.cells_mut()?, bias.cells()?)?)
}
