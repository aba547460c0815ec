//! Linear maps: y = x Wᵀ + b; the kernel is `cuda/kernels/matmul.cu`.

use super::matmul::{Epilogue, Layout, Term, matmul};
use super::{reduction, rows};
use crate::memory::{Slice, SliceMut};
use crate::{Error, Queue, Result};

const OP: &str = "linear";

/// y = x Wᵀ + b; x: (rows, input), W: (output, input), b: (output), y: (rows, output).
///
/// # Errors
/// Sizes or types that do not agree.
pub fn forward(
    queue: Queue<'_>,
    y: SliceMut<'_>,
    x: Slice<'_>,
    weight: Slice<'_>,
    bias: Option<Slice<'_>>,
    input: usize,
) -> Result<()> {
    let (count, output) = (rows(OP, "the input size", x, input)?, rows(OP, "the input size", weight, input)?);
    let term = Term { a: x, b: weight, depth: input };
    matmul(queue, y, [count, output], Layout::FORWARD, &[term], Epilogue { bias, ..Epilogue::default() })
}

/// dx = dy W, if wanted; dW += dyᵀ x and db += Σ dy, f32, if given.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    queue: Queue<'_>,
    dx: Option<SliceMut<'_>>,
    dweight: Option<SliceMut<'_>>,
    dbias: Option<SliceMut<'_>>,
    dy: Slice<'_>,
    x: Slice<'_>,
    weight: Slice<'_>,
    input: usize,
) -> Result<()> {
    let (count, output) = (rows(OP, "the input size", x, input)?, rows(OP, "the input size", weight, input)?);
    dy.expect(OP, "dy", count * output)?;
    if let Some(dx) = dx {
        let term = Term { a: dy, b: weight, depth: output };
        matmul(queue, dx, [count, input], Layout::INPUT_GRADIENT, &[term], Epilogue::default())?;
    }
    if let Some(dweight) = dweight {
        let term = Term { a: dy, b: x, depth: count };
        let add = Epilogue { add: true, ..Epilogue::default() };
        matmul(queue, dweight, [output, input], Layout::WEIGHT_GRADIENT, &[term], add)?;
    }
    match dbias {
        Some(dbias) if dbias.len() != output => {
            Err(Error::Length { op: OP, what: "the bias's gradient", expected: output, got: dbias.len() })
        }
        Some(dbias) => reduction::add_columns(queue, dbias, dy),
        None => Ok(()),
    }
}
