//! NF4 to numbers; see `cuda/kernels/nf4.cu`.

use super::{each, size, types};
use crate::driver::Arg;
use crate::kernels::NF4;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Queue, Result, Shape};

const OP: &str = "nf4";

/// Elements of a block of threads: 4 packs of 8 for each of 256.
const ELEMENTS: usize = 256 * 4 * 8;

/// y = code\[nibble\] absmax; packed: (⌈n/2⌉) u8, absmax: (⌈n/block⌉) f32, y: (n).
///
/// # Errors
/// Sizes or types that do not agree.
pub fn dequantise(queue: Queue<'_>, y: SliceMut<'_>, packed: Slice<'_>, absmax: Slice<'_>, block: usize) -> Result<()> {
    let n = y.len();
    y.expect_compute(OP, "y")?;
    packed.expect_dtype(OP, "the packed weight", DType::U8)?;
    packed.expect(OP, "the packed weight", n.div_ceil(2))?;
    absmax.expect_dtype(OP, "absmax", DType::F32)?;
    if block == 0 {
        return Err(crate::Error::Size { op: OP, what: "the block", expected: "positive", got: block });
    }
    absmax.expect(OP, "absmax", n.div_ceil(block))?;
    let shift = if block.is_power_of_two() && block >= 8 { block.ilog2() - 3 } else { 32 };
    let block = Arg::U32(size(OP, "the block", block)?);
    let args = [y.arg(), packed.arg(), absmax.arg(), Arg::U64(n as u64), block, Arg::U32(shift)];
    queue.launch(&NF4, "nf4", &types([("T", y.dtype())]), Shape::line(n.div_ceil(ELEMENTS), 256), &args)
}

/// Double quantisation undone: absmax\[b\] = code2\[absmax8\[b\]\] absmax2\[b / block2\] + offset.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn absmax(
    queue: Queue<'_>,
    absmax: SliceMut<'_>,
    absmax8: Slice<'_>,
    code2: Slice<'_>,
    absmax2: Slice<'_>,
    offset: f32,
    block2: usize,
) -> Result<()> {
    let n = absmax.len();
    absmax8.expect(OP, "the quantised absmax", n)?;
    absmax8.expect_dtype(OP, "the quantised absmax", DType::U8)?;
    if block2 == 0 {
        return Err(crate::Error::Size { op: OP, what: "the block of absmax", expected: "positive", got: block2 });
    }
    for (what, slice, len) in
        [("absmax", *absmax, n), ("the code of absmax", code2, 256), ("absmax of absmax", absmax2, n.div_ceil(block2))]
    {
        slice.expect(OP, what, len)?;
        slice.expect_dtype(OP, what, DType::F32)?;
    }
    let args = [
        absmax.arg(),
        absmax8.arg(),
        code2.arg(),
        absmax2.arg(),
        Arg::F32(offset),
        Arg::U64(n as u64),
        Arg::U32(size(OP, "the block of absmax", block2)?),
    ];
    queue.launch(&NF4, "nf4_absmax", &types([("T", DType::F32)]), each(n), &args)
}
