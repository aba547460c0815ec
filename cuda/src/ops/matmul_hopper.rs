//! Matrix products on Hopper; see `cuda/kernels/matmul_hopper.cu`. [`matmul`](super::matmul::matmul) sends there what
//! belongs there.

use super::matmul::{Layout, Term};
use super::{each, matmul_rows_hopper, size, with};
use crate::cache::Defines;
use crate::driver::{Arg, Fill, Swizzle, TENSOR_MAP_BYTES, TensorMap};
use crate::kernels::MATMUL_HOPPER;
use crate::memory::{Slice, SliceMut};
use crate::nvrtc::Arch;
use crate::{DType, Queue, Result, Shape};

const OP: &str = "matmul";

/// Rows and columns of a box, and bytes.
pub(super) const BOX: usize = 64;
const BOX_BYTES: usize = BOX * BOX * 2;

/// A tile of C and what makes it: part of the speed, not of the arithmetic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    /// Groups of four warps that multiply, each 64 rows.
    groups: usize,
    pub(super) columns: usize,
    stages: usize,
    /// Blocks that share B, their tiles one under the other.
    cluster: usize,
}

/// Hundreds of rows: training, prefill. 192 KiB of tiles. The wider a tile, and the more blocks share it, the less often the
/// second-level cache is asked.
const LARGE: Tile = Tile { groups: 2, columns: 256, stages: 4, cluster: 2 };
/// The same where tiles of [`LARGE`] would leave multiprocessors without work. 192 KiB.
const MIDDLE: Tile = Tile { groups: 2, columns: 128, stages: 6, cluster: 2 };
/// A few rows: decoding, where reading B is all. 96 KiB, so that two blocks share a multiprocessor.
const SMALL: Tile = Tile { groups: 1, columns: 64, stages: 6, cluster: 1 };

/// Where tiles of [`SMALL`] would leave multiprocessors without work: twice as many read B. 96 KiB.
const TINY: Tile = Tile { groups: 1, columns: 32, stages: 8, cluster: 1 };

/// Depth of a part. Part of the arithmetic.
const PART: usize = 1024;
/// Tiles of 64 by 64 of a product that is made in parts, at most. Part of the arithmetic.
const FEW_TILES: usize = 256;

impl Tile {
    pub(super) fn defines(self, mut defines: Defines) -> Defines {
        for (name, value) in
            [("GROUPS", self.groups), ("BN", self.columns), ("STAGES", self.stages), ("CLUSTER", self.cluster)]
        {
            defines = with(defines, name, value);
        }
        defines
    }

    /// Blocks that take a tile each, in whole clusters.
    fn count(self, [m, n]: [usize; 2]) -> usize {
        m.div_ceil(BOX * self.groups).next_multiple_of(self.cluster) * n.div_ceil(self.columns)
    }

    /// Blocks that run at a time, one on a multiprocessor, in whole clusters.
    fn room(self, multiprocessors: usize) -> usize {
        (multiprocessors - multiprocessors % self.cluster).max(self.cluster)
    }

    /// Time of a product on this many multiprocessors, in 64 rows and columns of each step.
    fn turns(self, size: [usize; 2], parts: usize, multiprocessors: usize) -> usize {
        (self.count(size) * parts).div_ceil(self.room(multiprocessors)) * self.groups * self.columns / BOX
    }

    /// The same without clusters, where these would leave multiprocessors without work: a row of tiles, or an odd one.
    fn alone(self, size: [usize; 2], parts: usize, multiprocessors: usize) -> Tile {
        let alone = Tile { cluster: 1, ..self };
        let slower = self.turns(size, parts, multiprocessors) > alone.turns(size, parts, multiprocessors);
        if slower || size[0] <= BOX * self.groups { alone } else { self }
    }

    fn shape(self, size: [usize; 2], parts: usize, multiprocessors: usize) -> Shape {
        let blocks = self.blocks(self.count(size), multiprocessors);
        Shape::grid([blocks, parts, 1], self.threads()).shared(self.shared()).clusters(self.cluster)
    }

    /// Blocks for so many tiles.
    pub(super) fn blocks(self, tiles: usize, multiprocessors: usize) -> usize {
        // One group takes a tile and ends: several blocks share a multiprocessor.
        if self.groups == 1 { tiles } else { tiles.min(self.room(multiprocessors)) }
    }

    pub(super) fn threads(self) -> u32 {
        128 * (self.groups as u32 + 1)
    }

    /// Bytes of shared memory.
    pub(super) fn shared(self) -> usize {
        self.stages * ((self.groups * BOX + self.columns) * BOX_BYTES / BOX + 16)
    }

    pub(super) fn rows(self) -> usize {
        self.groups * BOX
    }

    /// The tile of products of n columns and so many rows each, none of no rows, and the tiles of rows of all.
    pub(super) fn of_runs(rows: &[usize], n: usize, transposed: bool, multiprocessors: usize) -> (Tile, usize) {
        let down = |tile: Tile| rows.iter().map(|rows| rows.div_ceil(tile.rows())).sum::<usize>();
        let tiles = |tile: Tile| down(tile) * n.div_ceil(tile.columns);
        let tile = if rows.iter().sum::<usize>() <= BOX * rows.len() {
            if tiles(SMALL) < multiprocessors && !transposed { TINY } else { SMALL }
        } else {
            let turns = |tile: Tile| tiles(tile).div_ceil(multiprocessors) * tile.groups * tile.columns;
            let [large, middle] = [LARGE, MIDDLE].map(|tile| Tile { cluster: 1, ..tile });
            if 9 * turns(large) <= 10 * turns(middle) { large } else { middle }
        };
        (tile, down(tile))
    }

    /// The tile of a product.
    fn of(size: [usize; 2], layout: Layout, parts: usize, multiprocessors: usize) -> Tile {
        // Few rows, or few columns as of a low-rank update: what counts is how many multiprocessors read.
        if size[0] <= BOX || size[1] <= BOX {
            let idle = SMALL.count(size) * parts < multiprocessors;
            // Rows of a box of a transposed B are 64 columns.
            return if idle && !layout.b_transposed { TINY } else { SMALL };
        }
        // A little more for the smaller tile, which the second-level cache cannot feed at full speed.
        let [large, middle] = [LARGE, MIDDLE].map(|tile| tile.alone(size, parts, multiprocessors));
        let turns = |tile: Tile| tile.turns(size, parts, multiprocessors);
        if 9 * turns(large) <= 10 * turns(middle) { large } else { middle }
    }
}

/// Whether products of halves go to this kernel on the queue's device.
pub(super) fn is_for(queue: Queue<'_>) -> bool {
    queue.device.arch() == Arch::specific(9, 0)
}

/// The map of a factor whose `rows` lie along the stored rows, or across them if `transposed`, in boxes of `height` rows.
pub(super) fn map(
    queue: Queue<'_>,
    x: Slice<'_>,
    transposed: bool,
    [rows, depth, height]: [usize; 3],
) -> Result<[u8; TENSOR_MAP_BYTES]> {
    let (along, across) = if transposed { (rows, depth) } else { (depth, rows) };
    queue.device.driver().tensor_map(&TensorMap {
        base: x.ptr(),
        dtype: x.dtype(),
        sizes: &[along as u64, across as u64],
        strides: &[(along * x.dtype().size()) as u64],
        tile: &[BOX as u32, height as u32],
        swizzle: Swizzle::Bytes128,
        fill: Fill::Zeros,
    })
}

/// The product; everything has been checked, rows of factors are multiples of 8 halves and begin at multiples of 16
/// bytes, and the first depth is not 0.
pub(super) fn launch(
    queue: Queue<'_>,
    c: &SliceMut<'_>,
    [m, n]: [usize; 2],
    layout: Layout,
    [first, second]: [Option<&Term<'_>>; 2],
    (alpha, bias): (f32, Arg<'_>),
    defines: Defines,
) -> Result<()> {
    if m == 0 || n == 0 {
        return Ok(());
    }
    if matmul_rows_hopper::takes(m, layout) {
        return matmul_rows_hopper::launch(queue, c, [m, n], [first, second], (alpha, bias), &defines);
    }
    let multiprocessors = queue.device.driver().properties().multiprocessors.max(1) as usize;
    let parts = if second.is_none() { parts([m, n], layout, first.map_or(0, |term| term.depth)) } else { 1 };
    let tile = Tile::of([m, n], layout, parts, multiprocessors);
    let mut maps = [[0; TENSOR_MAP_BYTES]; 4];
    for (term, maps) in [first, second].into_iter().zip(maps.chunks_exact_mut(2)) {
        // Of a term without depth no box is asked for.
        if let Some(term) = term.filter(|term| term.depth > 0) {
            maps[0] = map(queue, term.a, layout.a_transposed, [m, term.depth, BOX])?;
            maps[1] = map(queue, term.b, layout.b_transposed, [n, term.depth, tile.columns.min(BOX)])?;
        }
    }
    let depth = |term: Option<&Term<'_>>| size(OP, "the depth", term.map_or(0, |term| term.depth)).map(Arg::U32);
    let sizes = [size(OP, "m", m)?, size(OP, "n", n)?].map(Arg::U32);
    let depths = [depth(first)?, depth(second)?];
    let product = |c: Arg<'_>, bias, alpha, defines: Defines, steps: u32| {
        let mut args = vec![c];
        args.extend(maps.iter().map(|map| Arg::Bytes(map)));
        args.extend([bias, Arg::F32(alpha)]);
        args.extend(sizes);
        args.extend(depths);
        args.extend([sizes[1], Arg::U32(steps)]);
        let shape = tile.shape([m, n], parts, multiprocessors);
        queue.launch(&MATMUL_HOPPER, "matmul_hopper", &tile.defines(defines), shape, &args)
    };
    if parts == 1 {
        return product(c.arg(), bias, alpha, defines, 0);
    }
    let room = queue.alloc("parts of a weight's gradient", parts * m * n, DType::F32)?;
    let of_parts = defines.iter().map(|(name, value)| {
        let value = match name.as_str() {
            "O" => "f32",
            "ADD" => "0",
            _ => value,
        };
        (name.clone(), value.to_owned())
    });
    let whole = room.slice(DType::F32).arg();
    product(whole, super::NULL, 1.0, of_parts.collect(), (PART / BOX) as u32)?;
    let count = Arg::U32(size(OP, "the number of parts", parts)?);
    let args = [c.arg(), whole, bias, Arg::F32(alpha), Arg::U64((m * n) as u64), sizes[1], count];
    queue.launch(&MATMUL_HOPPER, "matmul_hopper_join", &SMALL.defines(defines), each(m * n), &args)
}

/// Parts in which a product is made: the gradient of a small weight, of many tokens, would leave most of a card without work.
fn parts([m, n]: [usize; 2], layout: Layout, depth: usize) -> usize {
    let small = m.div_ceil(BOX) * n.div_ceil(BOX) <= FEW_TILES;
    if layout == Layout::WEIGHT_GRADIENT && small { depth.div_ceil(PART) } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::types;

    fn defines(to: DType, layout: Layout, add: bool) -> Defines {
        let flags = [("A_T", layout.a_transposed), ("B_T", layout.b_transposed), ("ADD", add)];
        flags
            .into_iter()
            .fold(types([("T", DType::BF16), ("O", to)]), |all, (name, flag)| with(all, name, u8::from(flag)))
    }

    /// Two blocks share B where there are two rows of tiles, and no multiprocessor is left without work for it.
    #[test]
    fn clusters_are_for_rows_of_tiles() {
        let of = |m, n, multiprocessors| Tile::of([m, n], Layout::FORWARD, 1, multiprocessors);
        let shape = |m, n| of(m, n, 132).shape([m, n], 1, 132);
        for (size, cluster, blocks) in [
            ([8192, 8192], 2, 132),
            ([256, 256 * 66], 2, 132),
            // A row of tiles: narrower ones, as many as there are multiprocessors.
            ([128, 256 * 66], 1, 132),
            // Three rows of 44 tiles are a turn; four would be two.
            ([384, 256 * 44], 1, 132),
            ([640, 256 * 20], 2, 120),
        ] {
            let shape = shape(size[0], size[1]);
            assert_eq!((shape.cluster, shape.grid), (cluster, [blocks, 1, 1]), "{size:?}");
        }
        // Half a cluster has no place.
        assert_eq!(of(8192, 8192, 113).shape([8192; 2], 1, 113).grid, [112, 1, 1]);
    }

    /// The products of models from 0.1B to 8B and of adapters, of any number of rows, on the cards that there are.
    #[test]
    fn tiles_of_models_are_compiled_ahead() {
        let widths = [8, 16, 64, 128, 192, 512, 576, 896, 1024, 1536, 2048, 4096, 4864, 8960, 14_336];
        let rows = [1, 5, 16, 64, 100, 128, 512, 1024, 1100, 2048, 4096, 8192, 16_384];
        let listed = |defines: Defines, what: &str| assert!(MATMUL_HOPPER.lists(&defines), "{what}: {defines:?}");
        let sizes = rows.into_iter().flat_map(|rows| widths.map(|a| widths.map(|b| (rows, a, b)))).flatten();
        for (rows, a, b) in sizes {
            for multiprocessors in [114, 132] {
                for layout in [Layout::FORWARD, Layout::INPUT_GRADIENT] {
                    let tile = Tile::of([rows, a], layout, 1, multiprocessors);
                    listed(tile.defines(defines(DType::BF16, layout, false)), &format!("{rows} rows of {a}"));
                }
                let (layout, size) = (Layout::WEIGHT_GRADIENT, [a, b]);
                let parts = parts(size, layout, rows);
                let tile = Tile::of(size, layout, parts, multiprocessors);
                let what = format!("the gradient of {a} x {b} over {rows} rows");
                listed(tile.defines(defines(DType::F32, layout, parts == 1)), &what);
                if parts > 1 {
                    listed(SMALL.defines(defines(DType::F32, layout, true)), &what);
                }
            }
        }
    }
}
