//! NF4 to numbers; see `cuda/kernels/nf4.cu`.

use super::dequantise::Nested;
use super::{NULL, size, types, with};
use crate::driver::Arg;
use crate::kernels::NF4;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Queue, Result, Shape};

const OP: &str = "nf4";

/// Elements of a block of threads: 4 packs of 8 for each of 256.
const ELEMENTS: usize = 256 * 4 * 8;

/// A scale for each block.
#[derive(Clone, Copy, Debug)]
pub enum Scales<'a> {
    /// (blocks) f32.
    Plain(Slice<'a>),
    /// Quantised themselves.
    Nested(Nested<'a>),
}

impl Scales<'_> {
    /// As kernels take them: whether they are nested; codes, what these stand for, absmax and offset; scales of a block.
    ///
    /// # Errors
    /// Sizes or types that are not those of so many blocks.
    pub(super) fn args(self, op: &'static str, blocks: usize) -> Result<(bool, [Arg<'static>; 4], usize)> {
        match self {
            Scales::Plain(absmax) => {
                absmax.expect_dtype(op, "absmax", DType::F32)?;
                absmax.expect(op, "absmax", blocks)?;
                Ok((false, [NULL, NULL, absmax.arg(), Arg::F32(0.0)], 1))
            }
            Scales::Nested(of) => {
                of.check(op, blocks)?;
                Ok((true, [of.codes.arg(), of.code.arg(), of.absmax.arg(), Arg::F32(of.offset)], of.block))
            }
        }
    }
}

/// y = code\[nibble\] absmax; packed: (⌈n/2⌉) u8, scales of ⌈n/block⌉ blocks, y: (n).
///
/// # Errors
/// Sizes or types that do not agree.
pub fn dequantise(
    queue: Queue<'_>,
    y: SliceMut<'_>,
    packed: Slice<'_>,
    scales: Scales<'_>,
    block: usize,
) -> Result<()> {
    let n = y.len();
    y.expect_compute(OP, "y")?;
    packed.expect_dtype(OP, "the packed weight", DType::U8)?;
    packed.expect(OP, "the packed weight", n.div_ceil(2))?;
    if block == 0 {
        return Err(crate::Error::Size { op: OP, what: "the block", expected: "positive", got: block });
    }
    let (nested, scales, block2) = scales.args(OP, n.div_ceil(block))?;
    let fits = block.is_power_of_two() && block >= 8 && block2.is_power_of_two();
    let (shift, shift2) = if fits { (block.ilog2() - 3, block2.ilog2()) } else { (32, 0) };
    let [block, block2] = [size(OP, "the block", block)?, size(OP, "the block of scales", block2)?];
    let mut args = vec![y.arg(), packed.arg()];
    args.extend(scales);
    args.push(Arg::U64(n as u64));
    args.extend([block, block2, shift, shift2].map(Arg::U32));
    let defines = with(types([("T", y.dtype())]), "NESTED", u8::from(nested));
    queue.launch(&NF4, "nf4", &defines, Shape::line(n.div_ceil(ELEMENTS), 256), &args)
}
