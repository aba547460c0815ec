//! Elements and rows by index; see `cuda/kernels/gather.cu`.

use super::{Runs, each, row_threads, rows, size, types};
use crate::driver::Arg;
use crate::kernels::GATHER;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

const OP: &str = "gather";

/// `y[r][j] = x[r][index[r][j]]`; x: (rows, width), index: (rows, picks) u32, below width.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn forward(queue: Queue<'_>, y: SliceMut<'_>, x: Slice<'_>, index: Slice<'_>, width: usize) -> Result<()> {
    x.expect_compute(OP, "x")?;
    let picks = check(index, rows(OP, "the width of x", x, width)?)?;
    y.expect(OP, "y", index.len())?;
    y.expect_dtype(OP, "y", x.dtype())?;
    let args = [
        y.arg(),
        x.arg(),
        index.arg(),
        Arg::U64(index.len() as u64),
        Arg::U32(picks),
        Arg::U32(size(OP, "width", width)?),
    ];
    queue.launch(&GATHER, "gather_forward", &types([("T", x.dtype())]), each(index.len()), &args)
}

/// `dx[r][index[r][j]] += dy[r][j]`, in order of j; dx: (rows, width) f32.
///
/// # Errors
/// As [`forward`].
pub fn backward(queue: Queue<'_>, dx: SliceMut<'_>, dy: Slice<'_>, index: Slice<'_>, width: usize) -> Result<()> {
    dy.expect_compute(OP, "dy")?;
    dx.expect_dtype(OP, "dx", DType::F32)?;
    let count = rows(OP, "the width of dx", *dx, width)?;
    let picks = check(index, count)?;
    dy.expect(OP, "dy", index.len())?;
    let (count32, width) = (size(OP, "rows", count)?, size(OP, "width", width)?);
    let args = [dx.arg(), dy.arg(), index.arg(), Arg::U32(count32), Arg::U32(picks), Arg::U32(width)];
    queue.launch(&GATHER, "gather_backward", &types([("T", dy.dtype())]), each(count), &args)
}

/// y row i = x row index\[i\]; x: (rows, width), index: (n) u32, y: (n, width).
///
/// # Errors
/// As [`forward`].
pub fn rows_by_index(queue: Queue<'_>, y: SliceMut<'_>, x: Slice<'_>, index: Slice<'_>, width: usize) -> Result<()> {
    x.expect_compute(OP, "x")?;
    rows(OP, "the width of x", x, width)?;
    index.expect_dtype(OP, "index", DType::U32)?;
    y.expect(OP, "y", index.len() * width)?;
    y.expect_dtype(OP, "y", x.dtype())?;
    let args = [y.arg(), x.arg(), index.arg(), Arg::U32(size(OP, "width", width)?)];
    let shape = Shape::line(index.len(), row_threads(width));
    queue.launch(&GATHER, "gather_rows", &types([("T", x.dtype())]), shape, &args)
}

/// y row index\[i\] += source row i, for each row in order of i; y: (rows, width) f32.
///
/// # Errors
/// An index beyond y; sizes or types that do not agree.
pub fn scatter_add(queue: Queue<'_>, y: SliceMut<'_>, source: Slice<'_>, index: &Runs, width: usize) -> Result<()> {
    const OP: &str = "scatter_add";
    source.expect_compute(OP, "the source")?;
    y.expect_dtype(OP, "y", DType::F32)?;
    let count = rows(OP, "the width of y", *y, width)?;
    source.expect(OP, "the source", index.len() * width)?;
    if let Some(row) = index.largest().filter(|&row| row as usize >= count) {
        return Err(Error::Size { op: OP, what: "an index", expected: "below the number of rows", got: row as usize });
    }
    let [to, starts, order] = index.args();
    let args = [y.arg(), source.arg(), to, starts, order, Arg::U32(size(OP, "width", width)?)];
    let shape = Shape::line(index.distinct(), row_threads(width));
    queue.launch(&GATHER, "scatter_add_rows", &types([("T", source.dtype())]), shape, &args)
}

/// Picks of a row.
fn check(index: Slice<'_>, rows: usize) -> Result<u32> {
    index.expect_dtype(OP, "index", DType::U32)?;
    let picks = index.len() / rows.max(1);
    index.expect(OP, "index", picks * rows)?;
    size(OP, "picks of a row", picks)
}

/// y row index\[i\] = x row i; y: (rows, width), x: (picks, width), index: (picks) u32. The other rows stay.
///
/// Indices must be below the number of rows and no two alike: they are on the device, so that is for whoever made them
/// to see to. With them there a recorded step can write to another place each time.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn place(queue: Queue<'_>, y: SliceMut<'_>, x: Slice<'_>, index: Slice<'_>, width: usize) -> Result<()> {
    x.expect_compute(OP, "x")?;
    y.expect_dtype(OP, "y", x.dtype())?;
    index.expect_dtype(OP, "the index", DType::U32)?;
    rows(OP, "the width", *y, width)?;
    x.expect(OP, "x", index.len() * width)?;
    let args = [y.arg(), x.arg(), index.arg(), Arg::U32(size(OP, "width", width)?)];
    let shape = Shape::line(index.len(), row_threads(width));
    queue.launch(&GATHER, "place_rows", &types([("T", x.dtype())]), shape, &args)
}
