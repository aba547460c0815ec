//! Linear maps of few rows with a weight in NF4; see `cuda/kernels/matmul_nf4.cu` and `matmul_nf4_hopper.cu`.
//!
//! The results are those of [`nf4`](super::nf4) and [`matmul`](super::matmul), to the bit.

use super::matmul::Term;
use super::matmul_hopper::{is_for, map};
use super::nf4::Scales;
use super::{or_null, size, types, with};
use crate::driver::{Arg, TENSOR_MAP_BYTES};
use crate::kernels::{MATMUL_NF4, MATMUL_NF4_HOPPER};
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

const OP: &str = "matmul_nf4";

/// Rows, columns and depth of a stage; on Hopper 96 KiB of stages, so that two blocks share a multiprocessor.
const TILE: usize = 64;
const STAGES: usize = 6;

/// Elsewhere: rows of a block where there are few, and stages of A.
const FEW: usize = 16;
const STAGES_OF_A: usize = 4;

/// A weight (n, k) in NF4.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// (n k / 2) u8, the upper nibble first.
    pub packed: Slice<'a>,
    /// Scales of blocks.
    pub scales: Scales<'a>,
    /// Elements of a block.
    pub block: usize,
}

/// Whether [`matmul`] takes a product: of halves, at most 64 rows, a depth that is a multiple of 64, an update as
/// tensor cores take it, blocks that are powers of two.
pub fn takes(a: Slice<'_>, [m, k]: [usize; 2], weight: Weight<'_>, update: Option<&Term<'_>>) -> bool {
    let nested = match weight.scales {
        Scales::Plain(_) => true,
        Scales::Nested(nested) => nested.block.is_power_of_two(),
    };
    let half = matches!(a.dtype(), DType::BF16 | DType::F16);
    let blocks = weight.block.is_power_of_two() && weight.block >= 32;
    let aligned = |slice: Slice<'_>| slice.ptr().0.is_multiple_of(16);
    let second = update.is_none_or(|t| t.depth.is_multiple_of(8) && aligned(t.a) && aligned(t.b));
    let first = m <= TILE && k > 0 && k.is_multiple_of(TILE) && aligned(a) && aligned(weight.packed);
    half && first && second && blocks && nested
}

/// C = A Wᵀ + A2 B2ᵀ; a: (m, k), c: (m, n), `update`: A2 (m, depth) and B2 (n, depth) with a depth that is a multiple of 8.
///
/// # Errors
/// Sizes or types that do not agree; what [`takes`] says no to.
pub fn matmul(
    queue: Queue<'_>,
    c: SliceMut<'_>,
    [m, n, k]: [usize; 3],
    a: Slice<'_>,
    weight: Weight<'_>,
    update: Option<&Term<'_>>,
) -> Result<()> {
    if !takes(a, [m, k], weight, update) {
        let expected = "at most 64 rows of a multiple of 64 halves";
        return Err(Error::Size { op: OP, what: "the product", expected, got: m });
    }
    let blocks = (n * k).div_ceil(weight.block);
    c.expect_compute(OP, "C")?;
    c.expect(OP, "C", m * n)?;
    a.expect(OP, "A", m * k)?;
    weight.packed.expect_dtype(OP, "the packed weight", DType::U8)?;
    weight.packed.expect(OP, "the packed weight", n * k / 2)?;
    if let Some(term) = update {
        for (what, slice, rows) in [("A of the update", term.a, m), ("B of the update", term.b, n)] {
            slice.expect_dtype(OP, what, a.dtype())?;
            slice.expect(OP, what, rows * term.depth)?;
        }
    }
    let (nested, scales, block2) = weight.scales.args(OP, blocks)?;
    if m == 0 || n == 0 {
        return Ok(());
    }
    let defines = with(types([("T", a.dtype()), ("O", c.dtype())]), "NESTED", u8::from(nested));
    // The code's numbers, and the scales'.
    let codes = 4 * (16 + if nested { 256 } else { 0 });
    let mut of_weight = vec![weight.packed.arg()];
    of_weight.extend(scales);
    of_weight.extend([weight.block, block2].map(|block| Arg::U32(block.ilog2())));
    for (what, size_of) in [("m", m), ("n", n), ("the depth", k), ("the depth", update.map_or(0, |term| term.depth))] {
        of_weight.push(Arg::U32(size(OP, what, size_of)?));
    }
    if !is_for(queue) {
        let rows = if m <= FEW { FEW } else { TILE };
        let [a2, b2] = [update.map(|term| term.a), update.map(|term| term.b)].map(or_null);
        let args = [&[c.arg(), a.arg(), a2, b2][..], &of_weight].concat();
        let shape = Shape::line(n.div_ceil(TILE), 128).shared((STAGES_OF_A * rows + 2 * TILE) * TILE * 2 + codes);
        return queue.launch(&MATMUL_NF4, "matmul_nf4", &with(defines, "BM", rows), shape, &args);
    }
    let first = map(queue, a, false, [m, k, TILE])?;
    let mut second = [[0; TENSOR_MAP_BYTES]; 2];
    let update = update.filter(|term| term.depth > 0);
    if let Some(term) = update {
        second = [map(queue, term.a, false, [m, term.depth, TILE])?, map(queue, term.b, false, [n, term.depth, TILE])?];
    }
    let mut args = vec![c.arg(), Arg::Bytes(&first), Arg::Bytes(&second[0]), Arg::Bytes(&second[1])];
    args.extend(of_weight);
    let shape = Shape::line(n.div_ceil(TILE), 384).shared(STAGES * (2 * TILE * TILE * 2 + 16) + codes);
    queue.launch(&MATMUL_NF4_HOPPER, "matmul_nf4_hopper", &with(defines, "STAGES", STAGES), shape, &args)
}
