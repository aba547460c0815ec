//! Matrix products of at most 8 rows on Hopper; see `cuda/kernels/matmul_rows_hopper.cu`. The bits are those of
//! [`matmul_hopper`](super::matmul_hopper), which sends there what belongs there.

use super::matmul::{Layout, Term};
use super::matmul_hopper::map;
use super::{size, with};
use crate::cache::Defines;
use crate::driver::{Arg, TENSOR_MAP_BYTES};
use crate::kernels::MATMUL_ROWS_HOPPER;
use crate::memory::SliceMut;
use crate::{Queue, Result, Shape};

const OP: &str = "matmul";

/// Rows of a box of A.
const ROWS: usize = 8;
/// Bytes of A in shared memory: two chunks of 16 steps of 64.
const BYTES_A: usize = 2 * 16 * ROWS * 128;
const BARRIERS: usize = 2;

/// Columns of a block and steps of B in its ring: 64 KiB, so that two blocks share a multiprocessor.
const TILES: [(usize, usize); 2] = [(64, 8), (32, 16)];

/// Whether these products go there.
pub(super) fn takes(m: usize, layout: Layout) -> bool {
    m <= ROWS && layout == Layout::FORWARD
}

/// Where the wider tile would leave multiprocessors without a second block, the narrower.
fn tile(n: usize, multiprocessors: usize) -> (usize, usize) {
    TILES[usize::from(n.div_ceil(TILES[0].0) < 2 * multiprocessors)]
}

/// What [`defines`](super::matmul::matmul) says of types and of adding, for this kernel: it has but one layout.
fn defines(of: &Defines, (columns, stages): (usize, usize)) -> Defines {
    let kept = of.iter().filter(|(name, _)| ["T", "O", "ADD"].contains(&name.as_str())).cloned().collect();
    with(with(kept, "BN", columns), "STAGES", stages)
}

/// As [`matmul_hopper`](super::matmul_hopper)'s.
pub(super) fn launch(
    queue: Queue<'_>,
    c: &SliceMut<'_>,
    [m, n]: [usize; 2],
    terms: [Option<&Term<'_>>; 2],
    (alpha, bias): (f32, Arg<'_>),
    of: &Defines,
) -> Result<()> {
    let multiprocessors = queue.device.driver().properties().multiprocessors.max(1) as usize;
    let tile @ (columns, stages) = tile(n, multiprocessors);
    let mut maps = [[0; TENSOR_MAP_BYTES]; 4];
    for (term, maps) in terms.into_iter().zip(maps.chunks_exact_mut(2)) {
        // Of a term without depth no box is asked for.
        if let Some(term) = term.filter(|term| term.depth > 0) {
            maps[0] = map(queue, term.a, false, [m, term.depth, ROWS])?;
            maps[1] = map(queue, term.b, false, [n, term.depth, columns])?;
        }
    }
    let mut args = vec![c.arg()];
    args.extend(maps.iter().map(|map| Arg::Bytes(map)));
    args.extend([bias, Arg::F32(alpha)]);
    let depth = |term: Option<&Term<'_>>| term.map_or(0, |term| term.depth);
    for (what, value) in [("m", m), ("n", n), ("the depth", depth(terms[0])), ("the depth", depth(terms[1]))] {
        args.push(Arg::U32(size(OP, what, value)?));
    }
    let shared = stages * columns * 128 + BYTES_A + 16 * (stages + BARRIERS);
    let shape = Shape::line(n.div_ceil(columns), 256).shared(shared);
    queue.launch(&MATMUL_ROWS_HOPPER, "matmul_rows_hopper", &defines(of, tile), shape, &args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::types;

    #[test]
    fn tiles_of_models_are_compiled_ahead() {
        for (n, to) in [(576, DType::BF16), (28_672, DType::BF16), (576, DType::F32), (131_072, DType::F32)] {
            let of = with(types([("T", DType::BF16), ("O", to)]), "ADD", 0);
            let defines = defines(&of, tile(n, 132));
            assert!(MATMUL_ROWS_HOPPER.lists(&defines), "{defines:?}");
        }
    }
}
