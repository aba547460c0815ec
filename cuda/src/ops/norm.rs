//! How norms take rows; see `cuda/kernels/norm.cuh`.

use super::{types, with};
use crate::cache::Defines;
use crate::driver::Arg;
use crate::kernels::Kernel;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Queue, Result, Shape};

/// Threads that take a row, and with them the order of its sums: of the row's size and type alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    lanes: usize,
    packs: usize,
}

/// Multiprocessors, and threads that each takes at once of a kernel that keeps sums over rows (which its launch bounds
/// say): what does not run at once would run alone at the end. Constants, not the card's numbers, because the blocks of
/// rows, and so the bits, follow from them.
const MULTIPROCESSORS: usize = 132;
const RESIDENT: usize = 512;

/// Fewer rows would spend more on partial sums than on rows.
const FEWEST_ROWS: usize = 4;

impl Norm {
    /// For rows of `size` elements, of which a thread keeps as many as `packs` of 8.
    pub(super) fn new(size: usize, packs: usize) -> Norm {
        let lanes = size.div_ceil(8).div_ceil(packs);
        let lanes = if lanes <= 32 { lanes.next_power_of_two() } else { lanes.next_multiple_of(32).min(512) };
        // In five warps the backward kernel, compiled for sm_80, keeps a row in memory and not in registers.
        let lanes = if lanes == 160 { 192 } else { lanes };
        Norm { lanes, packs }
    }

    fn threads(self) -> usize {
        if self.lanes > 32 { self.lanes } else { 128 }
    }

    /// The definitions of a kernel.
    pub(super) fn defines(self, x: DType, weight: DType) -> Defines {
        with(with(types([("T", x), ("W", weight)]), "LANES", self.lanes), "PACKS", self.packs)
    }

    /// `lanes` threads for each of `n` rows or blocks of rows.
    pub(super) fn shape(self, n: usize) -> Shape {
        Shape::line(n.div_ceil(self.threads() / self.lanes), self.threads() as u32)
    }

    /// Rows of a block of rows.
    pub(super) fn rows_each(self, rows: usize) -> usize {
        let blocks = MULTIPROCESSORS * (RESIDENT / self.threads()) * (self.threads() / self.lanes);
        rows.div_ceil(blocks).max(FEWEST_ROWS)
    }
}

/// Partial sums that are folded at once.
const FOLDED: usize = 512;

/// `total` (columns) += the sum over the blocks of `partial` (blocks, columns), by a kernel made of `fold_partials`
/// (`columns.cuh`): of rows that are short there are thousands of blocks, summed in chunks first.
pub(super) fn fold(
    queue: Queue<'_>,
    (kernel, name, defines): (&Kernel, &'static str, &Defines),
    total: SliceMut<'_>,
    partial: Slice<'_>,
) -> Result<()> {
    let columns = total.len();
    if columns == 0 {
        return Ok(());
    }
    let blocks = partial.len() / columns;
    let chunks = if blocks > 2 * FOLDED { blocks.div_ceil(FOLDED) } else { 1 };
    let launch = |to: Arg<'_>, each: usize| {
        let args = [to, partial.arg(), Arg::U32(blocks as u32), Arg::U32(columns as u32), Arg::U32(each as u32)];
        queue.launch(kernel, name, defines, Shape::grid([columns.div_ceil(32), chunks, 1], 1024), &args)
    };
    if chunks == 1 {
        return launch(total.arg(), blocks);
    }
    let mut sums = queue.alloc("sums of partial sums", chunks * columns, DType::F32)?;
    launch(sums.slice_mut(DType::F32).arg(), FOLDED)?;
    fold(queue, (kernel, name, defines), total, sums.slice(DType::F32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::RMS_NORM;

    #[test]
    fn rows_are_shared_out_evenly() {
        // (size, packs, lanes, rows of a block of 32768)
        for (size, packs, lanes, each) in [
            (1, 4, 1, 4),
            (128, 4, 4, 4),
            (896, 4, 32, 16),
            (4096, 4, 128, 63),
            (5120, 4, 192, 125),
            (100_000, 4, 512, 249),
        ] {
            let norm = Norm::new(size, packs);
            assert_eq!((norm.lanes, norm.rows_each(32_768)), (lanes, each), "{size}");
            // Each thread of a warp takes part in its sums.
            assert!(norm.shape(3).block.is_multiple_of(32));
            assert_eq!(norm.shape(3).grid[0] as usize, 3usize.div_ceil(norm.threads() / lanes));
        }
    }

    /// Widths of models that there are, and sizes of heads whose queries and keys have norms.
    #[test]
    fn widths_of_models_are_compiled_ahead() {
        let heads = [64, 128, 256];
        let widths = [576, 768, 896, 960, 1024, 1152, 1536, 2048, 2304, 2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192];
        for size in heads.into_iter().chain(widths) {
            let defines = Norm::new(size, 4).defines(DType::BF16, DType::BF16);
            assert!(RMS_NORM.lists(&defines), "{size}: {defines:?}");
        }
    }
}
