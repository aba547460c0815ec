//! FP4, int8 and quantised scales to numbers; see `cuda/kernels/dequantise.cu`.

use super::{each, packs, rows, size, types};
use crate::driver::Arg;
use crate::kernels::DEQUANTISE;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result};

const OP: &str = "dequantise";

/// y = code\[nibble\] absmax; packed: (⌈n/2⌉) u8, absmax: (⌈n/block⌉) f32, y: (n).
///
/// # Errors
/// Sizes or types that do not agree; a block that is no power of two of at least 8.
pub fn fp4(queue: Queue<'_>, y: SliceMut<'_>, packed: Slice<'_>, absmax: Slice<'_>, block: usize) -> Result<()> {
    let n = y.len();
    y.expect_compute(OP, "y")?;
    if !block.is_power_of_two() || block < 8 {
        return Err(Error::Size { op: OP, what: "the block", expected: "a power of two of at least 8", got: block });
    }
    packed.expect_dtype(OP, "the packed weight", DType::U8)?;
    packed.expect(OP, "the packed weight", n.div_ceil(2))?;
    absmax.expect_dtype(OP, "absmax", DType::F32)?;
    absmax.expect(OP, "absmax", n.div_ceil(block))?;
    let args = [y.arg(), packed.arg(), absmax.arg(), Arg::U64(n as u64), Arg::U32(block.ilog2())];
    queue.launch(&DEQUANTISE, "fp4", &types([("T", y.dtype())]), packs(n), &args)
}

/// y = q absmax / 127; q: (rows, cols) of signed bytes, absmax: (rows) f32, y: (rows, cols).
///
/// # Errors
/// Sizes or types that do not agree.
pub fn int8(queue: Queue<'_>, y: SliceMut<'_>, q: Slice<'_>, absmax: Slice<'_>, cols: usize) -> Result<()> {
    y.expect_compute(OP, "y")?;
    q.expect_dtype(OP, "the weight", DType::U8)?;
    q.expect(OP, "the weight", y.len())?;
    absmax.expect_dtype(OP, "absmax", DType::F32)?;
    absmax.expect(OP, "absmax", rows(OP, "the columns", *y, cols)?)?;
    let cols = Arg::U32(size(OP, "the columns", cols)?);
    let args = [y.arg(), q.arg(), absmax.arg(), Arg::U64(y.len() as u64), cols];
    queue.launch(&DEQUANTISE, "int8", &types([("T", y.dtype())]), packs(y.len()), &args)
}

/// Scales that are quantised themselves: codes: (blocks) u8, code: (256) f32, absmax: (⌈blocks/block⌉) f32.
#[derive(Clone, Copy, Debug)]
pub struct Nested<'a> {
    /// A code for each scale.
    pub codes: Slice<'a>,
    /// What codes stand for.
    pub code: Slice<'a>,
    /// A scale for each block of scales.
    pub absmax: Slice<'a>,
    /// Scales of a block.
    pub block: usize,
    /// What is added to all.
    pub offset: f32,
}

impl Nested<'_> {
    /// Checks sizes and types for so many scales.
    pub(super) fn check(&self, op: &'static str, blocks: usize) -> Result<()> {
        if self.block == 0 {
            return Err(Error::Size { op, what: "the block of scales", expected: "positive", got: 0 });
        }
        self.codes.expect_dtype(op, "the codes of scales", DType::U8)?;
        self.codes.expect(op, "the codes of scales", blocks)?;
        let parts = [
            ("the code of scales", self.code, 256),
            ("the scales of scales", self.absmax, blocks.div_ceil(self.block)),
        ];
        parts.into_iter().try_for_each(|(what, slice, len)| {
            slice.expect_dtype(op, what, DType::F32)?;
            slice.expect(op, what, len)
        })
    }
}

/// absmax\[b\] = code\[codes\[b\]\] absmax2\[b / block\] + offset; absmax: (blocks) f32.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn scales(queue: Queue<'_>, absmax: SliceMut<'_>, of: Nested<'_>) -> Result<()> {
    let n = absmax.len();
    of.check(OP, n)?;
    absmax.expect_dtype(OP, "absmax", DType::F32)?;
    let args = [
        absmax.arg(),
        of.codes.arg(),
        of.code.arg(),
        of.absmax.arg(),
        Arg::F32(of.offset),
        Arg::U64(n as u64),
        Arg::U32(size(OP, "the block of scales", of.block)?),
    ];
    queue.launch(&DEQUANTISE, "scales", &types([("T", DType::F32)]), each(n), &args)
}
