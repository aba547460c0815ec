//! Products of runs of rows, each with a matrix of its own; on Hopper one launch, see `cuda/kernels/matmul_runs_hopper.cu`.

use super::matmul::{Epilogue, Layout, Term, fits_tensor_cores, matmul};
use super::matmul_hopper::{self, BOX, Tile, map};
use super::{size, types, with};
use crate::driver::{Arg, DevicePtr, TENSOR_MAP_BYTES};
use crate::kernels::MATMUL_RUNS_HOPPER;
use crate::memory::{Slice, SliceMut};
use crate::{Error, Queue, Result, Shape};

const OP: &str = "products of runs";

/// Words of a map, and of a tile of rows in the kernel's table.
const MAP: usize = TENSOR_MAP_BYTES / 4;
const ROW_TILE: usize = 4;

/// Whether [`matmul_runs`] of halves is one launch on the queue's device, or one for each run.
pub fn is_one_launch(queue: Queue<'_>) -> bool {
    matmul_hopper::is_for(queue)
}

/// C_r = A_r B_g for the rows `starts[g]..starts[g + 1]` of each run g; a: (rows, depth), each of `rights` (n, depth), or (depth, n)
/// if they are `transposed`, c: (rows, n).
///
/// A row's bits are those of [`matmul`] with its matrix.
///
/// # Errors
/// Runs that are not those of c; sizes or types that do not agree.
pub fn matmul_runs(
    queue: Queue<'_>,
    mut c: SliceMut<'_>,
    n: usize,
    a: Slice<'_>,
    rights: &[Slice<'_>],
    transposed: bool,
    starts: &[usize],
) -> Result<()> {
    let rows = starts.last().copied().unwrap_or(0);
    if starts.len() != rights.len() + 1 || starts[0] != 0 || !starts.is_sorted() {
        return Err(Error::Length { op: OP, what: "where runs begin", expected: rights.len() + 1, got: starts.len() });
    }
    c.expect(OP, "C", rows * n)?;
    if rows == 0 || n == 0 {
        return Ok(());
    }
    let depth = super::rows(OP, "the rows", a, rows)?;
    let layout = Layout { a_transposed: false, b_transposed: transposed };
    let runs: Vec<Run<'_>> = starts
        .windows(2)
        .zip(rights)
        .filter(|(run, _)| run[0] < run[1])
        .map(|(run, &right)| Run { start: run[0], end: run[1], right })
        .collect();
    let mut terms = Vec::with_capacity(runs.len());
    for &Run { start, end, right } in &runs {
        right.expect(OP, "a matrix", n * depth)?;
        terms.push(Term { a: a.part(start * depth, (end - start) * depth)?, b: right, depth });
    }
    let together = matmul_hopper::is_for(queue) && runs.len() > 1 && depth > 0;
    if together && terms.iter().all(|term| fits_tensor_cores(term, [rows, n], layout)) && c.dtype() == a.dtype() {
        return launch(queue, &c, [rows, n, depth], a, &runs, transposed);
    }
    for (run, term) in runs.iter().zip(&terms) {
        let count = run.end - run.start;
        let part = c.reborrow().part(run.start * n, count * n)?;
        matmul(queue, part, [count, n], layout, std::slice::from_ref(term), Epilogue::default())?;
    }
    Ok(())
}

/// Rows that have a matrix.
#[derive(Clone, Copy, Debug)]
struct Run<'a> {
    start: usize,
    end: usize,
    right: Slice<'a>,
}

/// Everything has been checked, and no run is empty.
fn launch(
    queue: Queue<'_>,
    c: &SliceMut<'_>,
    [rows, n, depth]: [usize; 3],
    a: Slice<'_>,
    runs: &[Run<'_>],
    transposed: bool,
) -> Result<()> {
    let multiprocessors = queue.device.driver().properties().multiprocessors.max(1) as usize;
    let lengths: Vec<usize> = runs.iter().map(|run| run.end - run.start).collect();
    let (tile, down) = Tile::of_runs(&lengths, n, transposed, multiprocessors);
    let mut words = Vec::with_capacity(MAP * runs.len() + ROW_TILE * down);
    for run in runs {
        let bytes = map(queue, run.right, transposed, [n, depth, tile.columns.min(BOX)])?;
        words.extend(bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)));
    }
    for (number, run) in runs.iter().enumerate() {
        let end = size(OP, "the rows", run.end)?;
        for row in (run.start..run.end).step_by(tile.rows()) {
            words.extend([number as u32, row as u32, end, 0]);
        }
    }
    let table = queue.upload("a table of runs", &words)?;
    let maps = table.ptr();
    let tiles = DevicePtr(maps.0 + (4 * MAP * runs.len()) as u64);
    let args = [
        c.arg(),
        Arg::Bytes(&map(queue, a, false, [rows, depth, BOX])?),
        Arg::Ptr(maps),
        Arg::Ptr(tiles),
        Arg::U32(size(OP, "tiles of rows", down)?),
        Arg::U32(size(OP, "n", n)?),
        Arg::U32(size(OP, "the depth", depth)?),
    ];
    let flags = [("A_T", 0), ("B_T", u8::from(transposed)), ("ADD", 0)];
    let defines =
        flags.into_iter().fold(types([("T", a.dtype()), ("O", c.dtype())]), |all, (name, flag)| with(all, name, flag));
    let blocks = tile.blocks(down * n.div_ceil(tile.columns), multiprocessors);
    let shape = Shape::line(blocks, tile.threads()).shared(tile.shared());
    queue.launch(&MATMUL_RUNS_HOPPER, "matmul_runs_hopper", &tile.defines(defines), shape, &args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn tiles_of_models_are_compiled_ahead() {
        let to = types([("T", DType::BF16), ("O", DType::BF16)]);
        for (runs, rows) in [(8, 16_384), (64, 65_536), (64, 8192), (128, 32_768), (8, 8), (64, 512), (2, 300)] {
            for (n, transposed) in [(2048, true), (1024, false), (14_336, false), (4096, true), (768, false)] {
                let (tile, _) = Tile::of_runs(&vec![rows / runs; runs], n, transposed, 132);
                let flags = [("A_T", 0), ("B_T", u8::from(transposed)), ("ADD", 0)];
                let defines =
                    tile.defines(flags.into_iter().fold(to.clone(), |all, (name, flag)| with(all, name, flag)));
                assert!(MATMUL_RUNS_HOPPER.lists(&defines), "{runs} runs of {rows} rows, {n}: {defines:?}");
            }
        }
    }
}
