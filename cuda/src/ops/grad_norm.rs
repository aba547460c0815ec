//! The norm of all gradients; see `cuda/kernels/grad_norm.cu`.

use super::types;
use crate::cache::Defines;
use crate::driver::Arg;
use crate::kernels::GRAD_NORM;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Queue, Result, Shape};

const OP: &str = "grad_norm";
const STRETCH: usize = 16384;

/// squares += Σ g²; squares: one f64.
///
/// # Errors
/// Sizes or types that do not agree; no room for the partial sums.
pub fn add_squares(queue: Queue<'_>, squares: SliceMut<'_>, g: Slice<'_>) -> Result<()> {
    g.expect_compute(OP, "the gradient")?;
    squares.expect(OP, "the sum", 1)?;
    squares.expect_dtype(OP, "the sum", DType::F64)?;
    let blocks = g.len().div_ceil(STRETCH);
    let partial = queue.alloc("partial sums of squares", blocks, DType::F64)?;
    let args = [partial.slice(DType::F64).arg(), g.arg(), Arg::U64(g.len() as u64)];
    let defines = types([("T", g.dtype())]);
    queue.launch(&GRAD_NORM, "grad_norm_partial", &defines, Shape::line(blocks, 256), &args)?;
    add(queue, squares, partial.slice(DType::F64), &defines)
}

/// squares += Σ g² over all of `gs`, of one type, by two launches and an upload however many they are.
///
/// # Errors
/// As [`add_squares`].
pub fn add_squares_of_all(queue: Queue<'_>, squares: SliceMut<'_>, gs: &[Slice<'_>]) -> Result<()> {
    squares.expect(OP, "the sum", 1)?;
    squares.expect_dtype(OP, "the sum", DType::F64)?;
    let (mut table, mut blocks) = (Vec::with_capacity(3 * gs.len()), 0);
    let mut whole = gs.iter().filter(|g| !g.is_empty()).peekable();
    let Some(dtype) = whole.peek().map(|g| g.dtype()) else { return Ok(()) };
    for g in whole {
        g.expect_compute(OP, "the gradient")?;
        g.expect_dtype(OP, "the gradient", dtype)?;
        table.extend([g.ptr().0, g.len() as u64, blocks as u64]);
        blocks += g.len().div_ceil(STRETCH);
    }
    let tensors = Arg::U32(super::size(OP, "tensors", table.len() / 3)?);
    let table = queue.upload("a table of gradients", &table)?;
    let partial = queue.alloc("partial sums of squares", blocks, DType::F64)?;
    let args = [partial.slice(DType::F64).arg(), Arg::Ptr(table.ptr()), tensors];
    let defines = types([("T", dtype)]);
    queue.launch(&GRAD_NORM, "grad_norm_partial_of_all", &defines, Shape::line(blocks, 256), &args)?;
    add(queue, squares, partial.slice(DType::F64), &defines)
}

fn add(queue: Queue<'_>, squares: SliceMut<'_>, partial: Slice<'_>, defines: &Defines) -> Result<()> {
    let blocks = partial.len();
    let args = [squares.arg(), partial.arg(), Arg::U32(super::size(OP, "blocks", blocks)?)];
    queue.launch(&GRAD_NORM, "grad_norm_add", defines, Shape::line(usize::from(blocks > 0), 256), &args)
}
