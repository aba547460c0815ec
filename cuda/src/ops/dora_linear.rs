//! Lengths of rows and scaled columns of DoRA; see `cuda/kernels/dora_linear.cu`.

use super::{each, packs, row_threads, rows, same, size, types};
use crate::driver::Arg;
use crate::kernels::DORA_LINEAR;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

const OP: &str = "dora_linear";

/// Rows of the weight that a block takes: that of the kernel.
const ROWS: usize = 8;

/// n = ‖W + s·B A‖ by rows; W: (out, in) of any compute type, A: (r, in), B: (out, r), n: (out), all f32.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn norms(queue: Queue<'_>, n: SliceMut<'_>, w: Slice<'_>, [a, b]: [Slice<'_>; 2], scale: f32) -> Result<()> {
    w.expect_compute(OP, "the weight")?;
    for (what, slice) in [("the norms", *n), ("A", a), ("B", b)] {
        slice.expect_dtype(OP, what, DType::F32)?;
    }
    let out = n.len();
    if out == 0 || !w.len().is_multiple_of(out) || !b.len().is_multiple_of(out) {
        let expected = "a positive divisor of the elements of W and of B";
        return Err(Error::Size { op: OP, what: "the number of norms", expected, got: out });
    }
    let (input, r) = (w.len() / out, b.len() / out);
    a.expect(OP, "A", r * input)?;
    let [out32, input32, r32] = [("rows", out), ("the size of a row", input), ("the rank", r)];
    let of = |(what, n)| size(OP, what, n).map(Arg::U32);
    let args = [n.arg(), w.arg(), a.arg(), b.arg(), of(out32)?, of(input32)?, of(r32)?, Arg::F32(scale)];
    let shape = Shape::line(out.div_ceil(ROWS), row_threads(input));
    queue.launch(&DORA_LINEAR, "dora_linear_norms", &types([("T", w.dtype())]), shape, &args)
}

/// g = m / n, and 0 where n is 0; all f32.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn gains(queue: Queue<'_>, g: SliceMut<'_>, m: Slice<'_>, n: Slice<'_>) -> Result<()> {
    m.expect_dtype(OP, "m", DType::F32)?;
    same(OP, m, &[("n", n), ("g", *g)])?;
    let args = [g.arg(), m.arg(), n.arg(), Arg::U32(size(OP, "m", m.len())?)];
    queue.launch(&DORA_LINEAR, "dora_linear_gains", &types([("T", DType::F32)]), each(m.len()), &args)
}

/// y = x with each column scaled by its g: (out) f32; x, y: (rows, out).
///
/// # Errors
/// Sizes or types that do not agree.
pub fn columns(queue: Queue<'_>, y: SliceMut<'_>, x: Slice<'_>, g: Slice<'_>) -> Result<()> {
    x.expect_compute(OP, "x")?;
    same(OP, x, &[("y", *y)])?;
    g.expect_dtype(OP, "g", DType::F32)?;
    rows(OP, "the number of columns", x, g.len())?;
    let args = [y.arg(), x.arg(), g.arg(), Arg::U64(x.len() as u64), Arg::U32(size(OP, "the columns", g.len())?)];
    queue.launch(&DORA_LINEAR, "dora_linear_columns", &types([("T", x.dtype())]), packs(x.len()), &args)
}
