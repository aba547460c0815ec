//! Softmax, log-softmax and log-sum-exp over rows; see `cuda/kernels/softmax.cu`.

use super::{row_threads, rows, same, size, types};
use crate::driver::Arg;
use crate::kernels::SOFTMAX;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Queue, Result, Shape};

const OP: &str = "softmax";

/// Softmax or its logarithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// e^(x - m) / s.
    Softmax,
    /// x - m - ln s.
    LogSoftmax,
}

/// y = (log) softmax of rows of `width`.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn forward(queue: Queue<'_>, kind: Kind, y: SliceMut<'_>, x: Slice<'_>, width: usize) -> Result<()> {
    let (count, shape_width) = check(x, width)?;
    same(OP, x, &[("y", *y)])?;
    let name = match kind {
        Kind::Softmax => "softmax_forward",
        Kind::LogSoftmax => "log_softmax_forward",
    };
    let args = [y.arg(), x.arg(), Arg::U32(shape_width)];
    queue.launch(&SOFTMAX, name, &types([("T", x.dtype())]), Shape::line(count, row_threads(width)), &args)
}

/// dx from dy and the saved y.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    queue: Queue<'_>,
    kind: Kind,
    dx: SliceMut<'_>,
    dy: Slice<'_>,
    y: Slice<'_>,
    width: usize,
) -> Result<()> {
    let (count, shape_width) = check(y, width)?;
    same(OP, y, &[("dx", *dx), ("dy", dy)])?;
    let name = match kind {
        Kind::Softmax => "softmax_backward",
        Kind::LogSoftmax => "log_softmax_backward",
    };
    let args = [dx.arg(), dy.arg(), y.arg(), Arg::U32(shape_width)];
    queue.launch(&SOFTMAX, name, &types([("T", y.dtype())]), Shape::line(count, row_threads(width)), &args)
}

/// lse = ln Σ e^x of each row, (rows) f32.
///
/// # Errors
/// As [`forward`].
pub fn logsumexp(queue: Queue<'_>, lse: SliceMut<'_>, x: Slice<'_>, width: usize) -> Result<()> {
    let (count, shape_width) = check(x, width)?;
    lse.expect(OP, "lse", count)?;
    lse.expect_dtype(OP, "lse", DType::F32)?;
    let args = [lse.arg(), x.arg(), Arg::U32(shape_width)];
    let shape = Shape::line(count, row_threads(width));
    queue.launch(&SOFTMAX, "logsumexp_forward", &types([("T", x.dtype())]), shape, &args)
}

/// dx = dy e^(x - lse); dy, lse: (rows) f32.
///
/// # Errors
/// As [`forward`].
pub fn logsumexp_backward(
    queue: Queue<'_>,
    dx: SliceMut<'_>,
    dy: Slice<'_>,
    x: Slice<'_>,
    lse: Slice<'_>,
    width: usize,
) -> Result<()> {
    let (count, shape_width) = check(x, width)?;
    same(OP, x, &[("dx", *dx)])?;
    for (what, slice) in [("dy", dy), ("lse", lse)] {
        slice.expect(OP, what, count)?;
        slice.expect_dtype(OP, what, DType::F32)?;
    }
    let args = [dx.arg(), dy.arg(), x.arg(), lse.arg(), Arg::U32(shape_width)];
    let shape = Shape::line(count, row_threads(width));
    queue.launch(&SOFTMAX, "logsumexp_backward", &types([("T", x.dtype())]), shape, &args)
}

fn check(x: Slice<'_>, width: usize) -> Result<(usize, u32)> {
    x.expect_compute(OP, "x")?;
    Ok((rows(OP, "the size of a row", x, width)?, size(OP, "the size of a row", width)?))
}
