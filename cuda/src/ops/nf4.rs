//! NF4 to numbers; see `cuda/kernels/nf4.cu`.

use super::dequantise::Nested;
use super::{NULL, size, types, with};
use crate::driver::Arg;
use crate::kernels::NF4;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

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
    /// The addresses of codes, of what these stand for and of absmax, and the offset, as words of `struct Weight`.
    fn words(self) -> [u64; 4] {
        match self {
            Scales::Plain(absmax) => [0, 0, absmax.address(), 0],
            Scales::Nested(of) => {
                [of.codes.address(), of.code.address(), of.absmax.address(), of.offset.to_bits().into()]
            }
        }
    }

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

/// A weight as it is kept.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    /// (⌈n/2⌉) u8.
    pub packed: Slice<'a>,
    /// Of ⌈n/block⌉ blocks.
    pub scales: Scales<'a>,
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
    let [nested, kind @ ..] = kind(block, [Packed { packed, scales }].iter(), n)?;
    let mut args = vec![y.arg(), packed.arg()];
    args.extend(scales.args(OP, n.div_ceil(block))?.1);
    args.push(Arg::U64(n as u64));
    args.extend(kind.map(Arg::U32));
    let defines = with(types([("T", y.dtype())]), "NESTED", nested);
    queue.launch(&NF4, "nf4", &defines, Shape::line(n.div_ceil(ELEMENTS), 256), &args)
}

/// The same of weights of one size, whose scales are all plain or all nested in blocks of one size, in one launch; y: one after another.
///
/// # Errors
/// As [`dequantise`]; weights that differ.
pub fn dequantise_each(queue: Queue<'_>, y: SliceMut<'_>, weights: &[Packed<'_>], block: usize) -> Result<()> {
    y.expect_compute(OP, "y")?;
    if weights.is_empty() || y.is_empty() {
        return y.expect(OP, "y", 0);
    }
    let n = super::rows(OP, "y", *y, weights.len())?;
    let [nested, kind @ ..] = kind(block, weights.iter(), n)?;
    // `struct Weight` of the kernel.
    let mut table = Vec::with_capacity(weights.len() * 5);
    for weight in weights {
        table.push(weight.packed.address());
        table.extend(weight.scales.words());
    }
    let table = queue.upload("a table of weights", &table)?;
    let mut args = vec![y.arg(), Arg::Ptr(table.ptr()), Arg::U64(n as u64)];
    args.extend(kind.map(Arg::U32));
    let defines = with(types([("T", y.dtype())]), "NESTED", nested);
    queue.launch(&NF4, "nf4_each", &defines, Shape::grid([n.div_ceil(ELEMENTS), weights.len(), 1], 256), &args)
}

/// Whether scales are nested, the block, that of scales, and by how much numbers of packs and of blocks are shifted to find a block; the
/// same for all weights, of n elements each.
fn kind<'a>(block: usize, weights: impl Iterator<Item = &'a Packed<'a>>, n: usize) -> Result<[u32; 5]> {
    let wrong = |what, expected, got| Err(Error::Size { op: OP, what, expected, got });
    if block == 0 {
        return wrong("the block", "positive", block);
    }
    let mut all = None;
    for Packed { packed, scales } in weights {
        packed.expect_dtype(OP, "the packed weight", DType::U8)?;
        packed.expect(OP, "the packed weight", n.div_ceil(2))?;
        let (nested, _, block2) = scales.args(OP, n.div_ceil(block))?;
        if all.is_some_and(|all| all != (nested, block2)) {
            return wrong("the block of scales", "that of the other weights", block2);
        }
        all = Some((nested, block2));
    }
    let (nested, block2) = all.unwrap_or((false, 1));
    let fits = block.is_power_of_two() && block >= 8 && block2.is_power_of_two();
    let (shift, shift2) = if fits { (block.ilog2() - 3, block2.ilog2()) } else { (32, 0) };
    let [block, block2] = [size(OP, "the block", block)?, size(OP, "the block of scales", block2)?];
    Ok([u32::from(nested), block, block2, shift, shift2])
}
