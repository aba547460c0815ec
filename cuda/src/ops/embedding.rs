//! Rows of a table by token id; see `cuda/kernels/embedding.cu`.

use super::{Runs, row_threads, rows, size, types};
use crate::driver::Arg;
use crate::kernels::EMBEDDING;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

const OP: &str = "embedding";

/// out row t = table row ids\[t\]; table: (vocabulary, width), ids: (tokens) u32, out: (tokens, width).
///
/// Ids must be below the vocabulary. They are on the device, so that is for whoever made them to see to.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn forward(queue: Queue<'_>, out: SliceMut<'_>, table: Slice<'_>, ids: Slice<'_>, width: usize) -> Result<()> {
    table.expect_compute(OP, "the table")?;
    out.expect_compute(OP, "the result")?;
    ids.expect_dtype(OP, "ids", DType::U32)?;
    rows(OP, "the width of the table", table, width)?;
    out.expect(OP, "the result", ids.len() * width)?;
    let args = [out.arg(), table.arg(), ids.arg(), Arg::U32(size(OP, "width", width)?)];
    let defines = types([("T", out.dtype()), ("W", table.dtype())]);
    queue.launch(&EMBEDDING, "embedding_forward", &defines, Shape::line(ids.len(), row_threads(width)), &args)
}

/// dtable row ids\[t\] += dout row t, for each row in order of t; dtable: (vocabulary, width) f32.
///
/// # Errors
/// An id beyond the table; sizes or types that do not agree.
pub fn backward(queue: Queue<'_>, dtable: SliceMut<'_>, dout: Slice<'_>, ids: &Runs, width: usize) -> Result<()> {
    dout.expect_compute(OP, "the gradient")?;
    dtable.expect_dtype(OP, "the table's gradient", DType::F32)?;
    let vocabulary = rows(OP, "the width of the table", *dtable, width)?;
    dout.expect(OP, "the gradient", ids.len() * width)?;
    if let Some(id) = ids.largest().filter(|&id| id as usize >= vocabulary) {
        return Err(Error::Size { op: OP, what: "a token id", expected: "below the vocabulary", got: id as usize });
    }
    let [rows, starts, order] = ids.args();
    let args = [dtable.arg(), dout.arg(), rows, starts, order, Arg::U32(size(OP, "width", width)?)];
    // W does not matter here; that of the masters keeps the number of variants low.
    let defines = types([("T", dout.dtype()), ("W", dout.dtype())]);
    queue.launch(&EMBEDDING, "embedding_backward", &defines, Shape::line(ids.distinct(), row_threads(width)), &args)
}
