//! Blocks of GGUF files to numbers; see `cuda/kernels/ggml.cu`.

use super::{NULL, packs, rows, size, types, with};
use crate::driver::Arg;
use crate::kernels::GGML;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result};

const OP: &str = "ggml";

/// A type of blocks.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// ggml's name of it: `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`, `Q4_K`, `Q5_K` or `Q6_K`.
    pub name: &'static str,
    /// Elements of a block.
    pub block: usize,
    /// Bytes of a block.
    pub bytes: usize,
}

impl Kind {
    /// Rows of `width` elements in blocks.
    fn rows(self, blocks: Slice<'_>, width: usize) -> Result<usize> {
        blocks.expect_dtype(OP, "the blocks", DType::U8)?;
        if !width.is_multiple_of(self.block) {
            return Err(Error::Size { op: OP, what: "the width", expected: "a whole number of blocks", got: width });
        }
        rows(OP, "the bytes of a row", blocks, width / self.block * self.bytes)
    }

    fn launch(self, queue: Queue<'_>, y: SliceMut<'_>, blocks: Slice<'_>, index: Arg<'_>, width: usize) -> Result<()> {
        y.expect_compute(OP, "y")?;
        let defines = types([("T", y.dtype())]);
        let defines = with(with(with(defines, "KIND", self.name), "BLOCK", self.block), "BYTES", self.bytes);
        let width = Arg::U32(size(OP, "the width", width)?);
        let args = [y.arg(), blocks.arg(), index, Arg::U64(y.len() as u64), width];
        queue.launch(&GGML, "ggml", &defines, packs(y.len()), &args)
    }
}

/// The values of all blocks; y: (rows, width).
///
/// # Errors
/// Sizes or types that do not agree.
pub fn dequantise(queue: Queue<'_>, y: SliceMut<'_>, blocks: Slice<'_>, kind: Kind, width: usize) -> Result<()> {
    y.expect(OP, "y", kind.rows(blocks, width)? * width)?;
    kind.launch(queue, y, blocks, NULL, width)
}

/// Rows by index, which the caller has checked: index: (count) u32, y: (count, width).
///
/// # Errors
/// Sizes or types that do not agree.
pub fn take(
    queue: Queue<'_>,
    y: SliceMut<'_>,
    blocks: Slice<'_>,
    index: Slice<'_>,
    kind: Kind,
    width: usize,
) -> Result<()> {
    kind.rows(blocks, width)?;
    index.expect_dtype(OP, "the index", DType::U32)?;
    y.expect(OP, "y", index.len() * width)?;
    kind.launch(queue, y, blocks, index.arg(), width)
}
