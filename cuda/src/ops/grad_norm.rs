//! The norm of all gradients; see `cuda/kernels/grad_norm.cu`.

use super::types;
use crate::driver::Arg;
use crate::kernels::GRAD_NORM;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Queue, Result, Shape};

const OP: &str = "grad_norm";
const STRETCH: usize = 16384;

/// squares += Σ g²; squares: one f64. Called for each tensor in a fixed order, it holds |g|² in the end.
///
/// # Errors
/// Sizes or types that do not agree; no room for the partial sums.
pub fn add_squares(queue: Queue<'_>, squares: SliceMut<'_>, g: Slice<'_>) -> Result<()> {
    g.expect_compute(OP, "the gradient")?;
    squares.expect(OP, "the sum", 1)?;
    squares.expect_dtype(OP, "the sum", DType::F64)?;
    let blocks = g.len().div_ceil(STRETCH);
    let partial = queue.alloc("partial sums of squares", blocks, DType::F64)?;
    let partial = partial.slice(DType::F64);
    let defines = types([("T", g.dtype())]);
    let args = [partial.arg(), g.arg(), Arg::U64(g.len() as u64)];
    queue.launch(&GRAD_NORM, "grad_norm_partial", &defines, Shape::line(blocks, 256), &args)?;
    let args = [squares.arg(), partial.arg(), Arg::U32(super::size(OP, "blocks", blocks)?)];
    queue.launch(&GRAD_NORM, "grad_norm_add", &defines, Shape::line(usize::from(blocks > 0), 256), &args)
}
