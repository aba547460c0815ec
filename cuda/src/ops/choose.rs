//! The largest scores of rows; see `cuda/kernels/choose.cu`.

use super::{or_null, size, with};
use crate::driver::Arg;
use crate::kernels::CHOOSE;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

const OP: &str = "choose";

/// Most scores of a row: what a warp's registers hold.
pub const MOST: usize = 512;

/// Rows of a block: a warp each.
const ROWS: usize = 8;

/// chosen: (rows, k) u32, the places of each row's k largest scores (+ bias), in order; of equals the first are chosen. scores: (rows,
/// experts) f32, bias: (experts) f32.
///
/// # Errors
/// Sizes or types that do not agree; more than [`MOST`] experts; k above the experts.
pub fn choose(
    queue: Queue<'_>,
    chosen: SliceMut<'_>,
    scores: Slice<'_>,
    bias: Option<Slice<'_>>,
    experts: usize,
    k: usize,
) -> Result<()> {
    if !(1..=MOST).contains(&experts) {
        return Err(Error::Size { op: OP, what: "the number of experts", expected: "from 1 to 512", got: experts });
    }
    if !(1..=experts).contains(&k) {
        return Err(Error::Size { op: OP, what: "k", expected: "from 1 to the experts", got: k });
    }
    scores.expect_dtype(OP, "the scores", DType::F32)?;
    let rows = super::rows(OP, "the experts", scores, experts)?;
    chosen.expect_dtype(OP, "the choice", DType::U32)?;
    chosen.expect(OP, "the choice", rows * k)?;
    if let Some(bias) = bias {
        bias.expect_dtype(OP, "the bias", DType::F32)?;
        bias.expect(OP, "the bias", experts)?;
    }
    let sizes = [size(OP, "rows", rows)?, experts as u32, k as u32].map(Arg::U32);
    let args = [&[chosen.arg(), scores.arg(), or_null(bias)][..], &sizes].concat();
    let defines = with(Vec::new(), "PER", experts.div_ceil(32).next_power_of_two());
    queue.launch(&CHOOSE, "choose", &defines, Shape::line(rows.div_ceil(ROWS), 32 * ROWS as u32), &args)
}
