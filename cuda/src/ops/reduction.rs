//! Sums and maxima; see `cuda/kernels/reduction.cu`.

use super::{row_threads, rows, size, types};
use crate::driver::Arg;
use crate::kernels::REDUCTION;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Queue, Result, Shape};

const OP: &str = "reduction";

/// Threads that a card takes at once of the sums of columns: a constant, because the blocks of rows follow from it.
const RESIDENT: usize = 132 * 1024;

/// Fewer rows would spend more on partial sums than on rows.
const FEWEST_ROWS: usize = 8;

/// Elements that make a partial sum of everything.
pub const STRETCH: usize = 4096;

/// out = Σ of each row of `width`: (rows) f32.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn sum_rows(queue: Queue<'_>, out: SliceMut<'_>, x: Slice<'_>, width: usize) -> Result<()> {
    x.expect_compute(OP, "x")?;
    out.expect(OP, "the result", rows(OP, "the size of a row", x, width)?)?;
    out.expect_dtype(OP, "the result", DType::F32)?;
    sums(queue, out, x, width)
}

/// out = Σ x: one f32.
///
/// # Errors
/// Sizes or types that do not agree; no room for the partial sums.
pub fn sum(queue: Queue<'_>, mut out: SliceMut<'_>, x: Slice<'_>) -> Result<()> {
    x.expect_compute(OP, "x")?;
    out.expect(OP, "the result", 1)?;
    out.expect_dtype(OP, "the result", DType::F32)?;
    if x.len() <= STRETCH {
        // A block even for no element: its sum is 0.
        return launch_rows(queue, out.reborrow(), x, STRETCH, 1);
    }
    let n = x.len().div_ceil(STRETCH);
    let mut partial = queue.alloc("partial sums", n, DType::F32)?;
    sums(queue, partial.slice_mut(DType::F32), x, STRETCH)?;
    sum(queue, out, partial.slice(DType::F32))
}

fn sums(queue: Queue<'_>, out: SliceMut<'_>, x: Slice<'_>, width: usize) -> Result<()> {
    launch_rows(queue, out, x, width, x.len().div_ceil(width))
}

fn launch_rows(queue: Queue<'_>, out: SliceMut<'_>, x: Slice<'_>, width: usize, count: usize) -> Result<()> {
    let args = [out.arg(), x.arg(), Arg::U64(x.len() as u64), Arg::U32(size(OP, "the size of a row", width)?)];
    let shape = Shape::line(count, row_threads(width));
    queue.launch(&REDUCTION, "reduction_rows", &types([("T", x.dtype())]), shape, &args)
}

/// The largest of each row of `width`, (rows) f32, and its index, (rows) u32: the first of equals; NaN is largest.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn max_rows(queue: Queue<'_>, best: SliceMut<'_>, index: SliceMut<'_>, x: Slice<'_>, width: usize) -> Result<()> {
    x.expect_compute(OP, "x")?;
    let count = rows(OP, "the size of a row", x, width)?;
    best.expect(OP, "the largest", count)?;
    best.expect_dtype(OP, "the largest", DType::F32)?;
    index.expect(OP, "the index", count)?;
    index.expect_dtype(OP, "the index", DType::U32)?;
    let args = [best.arg(), index.arg(), x.arg(), Arg::U32(size(OP, "the size of a row", width)?)];
    let shape = Shape::line(count, row_threads(width));
    queue.launch(&REDUCTION, "reduction_max_rows", &types([("T", x.dtype())]), shape, &args)
}

/// out += Σ over the rows of x; x: (rows, width), out: (width) f32.
///
/// # Errors
/// Sizes or types that do not agree; no room for the partial sums.
pub fn add_columns(queue: Queue<'_>, out: SliceMut<'_>, x: Slice<'_>) -> Result<()> {
    x.expect_compute(OP, "x")?;
    out.expect_dtype(OP, "the result", DType::F32)?;
    let width = out.len();
    let count = rows(OP, "the size of the result", x, width)?;
    let (width32, count32) = (size(OP, "the size of a row", width)?, size(OP, "rows", count)?);
    let packs = width.div_ceil(8);
    let threads = packs.next_multiple_of(32).min(128);
    let chunks = packs.div_ceil(threads);
    let each = count.div_ceil((RESIDENT / (chunks * threads)).max(1)).max(FEWEST_ROWS);
    let blocks = count.div_ceil(each);
    let partial = queue.alloc("partial sums of columns", blocks * width, DType::F32)?;
    let partial = partial.slice(DType::F32);
    let defines = types([("T", x.dtype())]);
    let args =
        [partial.arg(), x.arg(), Arg::U32(count32), Arg::U32(each as u32), Arg::U32(width32), Arg::U32(chunks as u32)];
    let shape = Shape::line(blocks * chunks, threads as u32);
    queue.launch(&REDUCTION, "reduction_columns", &defines, shape, &args)?;
    super::norm::fold(queue, (&REDUCTION, "reduction_columns_add", &defines), out, partial)
}
