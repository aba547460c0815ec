//! The most probable tokens of rows of logits; see `cuda/kernels/lm_head_top.cu`.

use super::size;
use crate::driver::Arg;
use crate::kernels::LM_HEAD_TOP;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

const OP: &str = "lm_head_top";

/// Most tokens that a row is asked for: what is sorted in shared memory.
pub const MOST: usize = 1024;

/// Threads of a block, as in the kernel.
const THREADS: u32 = 512;

/// ids: (rows, k) u32 and logprobs: (rows, k) f32, nats, the most probable first and of equals the lower id, from logits:
/// (rows, width) f32, which are divided by `temperature`.
///
/// # Errors
/// Sizes or types that do not agree; k outside of 1 to the width or above [`MOST`]; a temperature that is not positive.
pub fn most_probable(
    queue: Queue<'_>,
    ids: SliceMut<'_>,
    logprobs: SliceMut<'_>,
    logits: Slice<'_>,
    width: usize,
    k: usize,
    temperature: f32,
) -> Result<()> {
    logits.expect_dtype(OP, "the logits", DType::F32)?;
    let rows = super::rows(OP, "the vocabulary", logits, width)?;
    if !(1..=MOST.min(width)).contains(&k) {
        return Err(Error::Size { op: OP, what: "k", expected: "from 1 to the vocabulary, at most 1024", got: k });
    }
    if !(temperature > 0.0 && temperature.is_finite()) {
        let got = f64::from(temperature);
        return Err(Error::Value { op: OP, what: "the temperature", expected: "positive", got });
    }
    for (what, slice, dtype) in [("the ids", *ids, DType::U32), ("the log-probabilities", *logprobs, DType::F32)] {
        slice.expect_dtype(OP, what, dtype)?;
        slice.expect(OP, what, rows * k)?;
    }
    let sizes = [Arg::U32(size(OP, "the vocabulary", width)?), Arg::U32(k as u32), Arg::F32(temperature)];
    let args = [&[ids.arg(), logprobs.arg(), logits.arg()][..], &sizes].concat();
    queue.launch(&LM_HEAD_TOP, "lm_head_top", &Vec::new(), Shape::line(rows, THREADS), &args)
}
