//! Steps of an LSTM; see `cuda/kernels/lstm.cu`.

use super::{each, size};
use crate::cache::Defines;
use crate::driver::Arg;
use crate::kernels::LSTM;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

const OP: &str = "lstm";

/// A step: its row, and that of the step before it.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// This row.
    pub row: usize,
    /// The row before it; none at the first.
    pub before: Option<usize>,
}

impl Step {
    /// The arguments of a kernel, for n units and so many rows.
    fn args(self, n: usize, steps: usize) -> Result<[Arg<'static>; 3]> {
        let last = self.before.map_or(self.row, |before| before.max(self.row));
        if last >= steps {
            return Err(Error::Size { op: OP, what: "a row", expected: "one that there is", got: last });
        }
        let before = self.before.map_or(Ok(u32::MAX), |before| size(OP, "a row", before))?;
        Ok([Arg::U32(size(OP, "units", n)?), Arg::U32(size(OP, "a row", self.row)?), Arg::U32(before)])
    }
}

/// Steps of n units in a slice of `of` numbers a unit and step.
fn steps(slices: &[(&'static str, Slice<'_>, usize)], n: usize) -> Result<usize> {
    let (_, first, of) = slices[0];
    let steps = super::rows(OP, "the number of units", first, of * n)?;
    for (what, slice, of) in slices {
        slice.expect_dtype(OP, what, DType::F32)?;
        slice.expect(OP, what, steps * of * n)?;
    }
    Ok(steps)
}

/// The gates' row becomes i, f, g, o; rows of c and h are written. gates: (steps, 4 n), c, h: (steps, n), W: (4 n, n).
///
/// # Errors
/// Sizes or types that do not agree.
pub fn step(queue: Queue<'_>, [gates, c, h]: [SliceMut<'_>; 3], w: Slice<'_>, n: usize, step: Step) -> Result<()> {
    let steps = steps(&[("the gates", *gates, 4), ("c", *c, 1), ("h", *h, 1)], n)?;
    w.expect_dtype(OP, "W", DType::F32)?;
    w.expect(OP, "W", 4 * n * n)?;
    let [units, row, before] = step.args(n, steps)?;
    let args = [gates.arg(), c.arg(), h.arg(), w.arg(), units, row, before];
    // A warp a unit.
    queue.launch(&LSTM, "lstm_step", &Defines::new(), Shape::line(n.div_ceil(8), 256), &args)
}

/// The row of dgates from `next`, what W brings from the step after, and dc, what c does: (n) each, which becomes that of the
/// step before.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn step_backward(
    queue: Queue<'_>,
    [dgates, dc]: [SliceMut<'_>; 2],
    [gates, c, dh, next]: [Slice<'_>; 4],
    n: usize,
    step: Step,
) -> Result<()> {
    let steps = steps(&[("the gates", gates, 4), ("dgates", *dgates, 4), ("c", c, 1), ("dh", dh, 1)], n)?;
    for (what, slice) in [("dc", *dc), ("what comes from the step after", next)] {
        slice.expect_dtype(OP, what, DType::F32)?;
        slice.expect(OP, what, n)?;
    }
    let [units, row, before] = step.args(n, steps)?;
    let args = [dgates.arg(), dc.arg(), gates.arg(), c.arg(), dh.arg(), next.arg(), units, row, before];
    queue.launch(&LSTM, "lstm_step_backward", &Defines::new(), each(n), &args)
}
