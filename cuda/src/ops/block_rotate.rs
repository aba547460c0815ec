//! A block-diagonal linear map; see `cuda/kernels/block_rotate.cu`.

use super::{each, reduction, rows, same, size, types};
use crate::driver::Arg;
use crate::kernels::BLOCK_ROTATE;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result};

const OP: &str = "block_rotate";

/// Rows of x that a partial sum takes at least.
pub const PART: usize = 256;

/// Numbers of all partial sums together, at most, unless one part alone has more.
const ROOM: usize = 1 << 22;

/// (groups, whether they share one block) after checking blocks of size n against x.
fn check(x: Slice<'_>, blocks: Slice<'_>, width: usize, n: usize) -> Result<(usize, bool)> {
    x.expect_compute(OP, "x")?;
    blocks.expect_dtype(OP, "the blocks", DType::F32)?;
    rows(OP, "the number of features", x, width)?;
    if n == 0 || !width.is_multiple_of(n) {
        let expected = "a positive divisor of the features";
        return Err(Error::Size { op: OP, what: "the size of a block", expected, got: n });
    }
    let groups = width / n;
    let shared = blocks.len() == n * n;
    if !shared {
        blocks.expect(OP, "the blocks", groups * n * n)?;
    }
    Ok((groups, shared))
}

/// y = x R by groups of n of the `width` features, or x Rᵀ if `turned`; R: (groups or 1, n, n) f32, x, y: (rows, width).
///
/// # Errors
/// Sizes or types that do not agree.
pub fn forward(
    queue: Queue<'_>,
    y: SliceMut<'_>,
    x: Slice<'_>,
    r: Slice<'_>,
    [width, n]: [usize; 2],
    turned: bool,
) -> Result<()> {
    let (groups, shared) = check(x, r, width, n)?;
    same(OP, x, &[("y", *y)])?;
    let args = [
        y.arg(),
        x.arg(),
        r.arg(),
        Arg::U64(x.len() as u64),
        Arg::U32(size(OP, "groups", groups)?),
        Arg::U32(size(OP, "the size of a block", n)?),
        Arg::U32(shared.into()),
        Arg::U32(turned.into()),
    ];
    queue.launch(&BLOCK_ROTATE, "block_rotate_forward", &types([("T", x.dtype())]), each(x.len()), &args)
}

/// dR += Σ x dyᵀ of each group, and over groups that share a block; x, dy: (rows, width), dR: (groups or 1, n, n) f32.
///
/// # Errors
/// Sizes or types that do not agree; no room for the partial sums.
pub fn blocks_add(
    queue: Queue<'_>,
    dr: SliceMut<'_>,
    x: Slice<'_>,
    dy: Slice<'_>,
    [width, n]: [usize; 2],
) -> Result<()> {
    let (groups, _) = check(x, *dr, width, n)?;
    same(OP, x, &[("dy", dy)])?;
    let (count, part) = (x.len() / width, groups * n * n);
    if count == 0 {
        return Ok(());
    }
    // A function of the sizes alone, as the order of sums is.
    let parts = count.div_ceil(PART).min((ROOM / part).max(1));
    let rows_of_part = count.div_ceil(parts);
    let parts = count.div_ceil(rows_of_part);
    let partial = queue.alloc("partial sums of blocks", parts * part, DType::F32)?;
    let partial = partial.slice(DType::F32);
    let args = [
        partial.arg(),
        x.arg(),
        dy.arg(),
        Arg::U64(partial.len() as u64),
        Arg::U32(size(OP, "rows", count)?),
        Arg::U32(size(OP, "rows of a part", rows_of_part)?),
        Arg::U32(size(OP, "groups", groups)?),
        Arg::U32(size(OP, "the size of a block", n)?),
    ];
    let shape = each(partial.len());
    queue.launch(&BLOCK_ROTATE, "block_rotate_blocks", &types([("T", x.dtype())]), shape, &args)?;
    // Of a shared block the groups are rows too.
    reduction::add_columns(queue, dr, partial)
}
