//! Rotary position embedding; see `cuda/kernels/rope.cu`.

use super::{each, same, size, types};
use crate::driver::Arg;
use crate::kernels::ROPE;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result};

const OP: &str = "rope";

/// Heads of a thread, as in the kernel.
const HEADS: usize = 4;

/// Sizes of x: (tokens, heads, size), of which 2 `half` turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Heads of a token.
    pub heads: usize,
    /// Dimensions of a head.
    pub size: usize,
    /// Pairs of dimensions that turn: the width of the tables.
    pub half: usize,
}

/// y = x turned, or turned back for the backward pass; cos, sin: (tokens, half) f32.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn turn(
    queue: Queue<'_>,
    y: SliceMut<'_>,
    x: Slice<'_>,
    cos: Slice<'_>,
    sin: Slice<'_>,
    of: Heads,
    back: bool,
) -> Result<()> {
    x.expect_compute(OP, "x")?;
    same(OP, x, &[("y", *y)])?;
    launch(queue, *y, x, cos, sin, of, back)
}

/// As [`turn`], over x itself.
///
/// # Errors
/// As [`turn`].
pub fn turn_in_place(
    queue: Queue<'_>,
    x: SliceMut<'_>,
    cos: Slice<'_>,
    sin: Slice<'_>,
    of: Heads,
    back: bool,
) -> Result<()> {
    x.expect_compute(OP, "x")?;
    launch(queue, *x, *x, cos, sin, of, back)
}

fn launch(
    queue: Queue<'_>,
    y: Slice<'_>,
    x: Slice<'_>,
    cos: Slice<'_>,
    sin: Slice<'_>,
    of: Heads,
    back: bool,
) -> Result<()> {
    if 2 * of.half > of.size {
        return Err(Error::Size { op: OP, what: "half", expected: "at most half the size of a head", got: of.half });
    }
    let tokens = super::rows(OP, "heads times size", x, of.heads * of.size)?;
    for (what, table) in [("cos", cos), ("sin", sin)] {
        table.expect(OP, what, tokens * of.half)?;
        table.expect_dtype(OP, what, DType::F32)?;
    }
    let packs = of.half.div_ceil(8) + (of.size - 2 * of.half).div_ceil(8);
    let groups = of.heads.div_ceil(HEADS);
    let threads = tokens * groups * packs;
    let args = [
        y.arg(),
        x.arg(),
        cos.arg(),
        sin.arg(),
        Arg::F32(if back { -1.0 } else { 1.0 }),
        Arg::U32(size(OP, "tokens times heads times size, in packs of 32,", threads)?),
        Arg::U32(size(OP, "heads", of.heads)?),
        Arg::U32(groups as u32),
        Arg::U32(size(OP, "size", of.size)?),
        Arg::U32(of.half as u32),
        Arg::U32(packs as u32),
    ];
    queue.launch(&ROPE, "rope", &types([("T", x.dtype())]), each(threads), &args)
}
