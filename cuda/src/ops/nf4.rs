//! NF4 to numbers; see `cuda/kernels/nf4.cu`.

use super::{size, types};
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
