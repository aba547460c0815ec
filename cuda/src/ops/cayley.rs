//! Orthogonal matrices from free numbers; see `cuda/kernels/cayley.cu`.

use super::size;
use crate::cache::Defines;
use crate::driver::Arg;
use crate::kernels::CAYLEY;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

const OP: &str = "cayley";

/// Matrices of scratch for each block: that of the kernels.
const MATRICES: usize = 5;

/// (blocks, n) as the kernels take it, after checking q against R or its gradient.
fn check(q: Slice<'_>, r: Slice<'_>, n: usize) -> Result<(usize, u32)> {
    q.expect_dtype(OP, "q", DType::F32)?;
    r.expect_dtype(OP, "R", DType::F32)?;
    // Elements of a matrix are counted in 32 bits.
    if n == 0 || n >= 1 << 15 || !r.len().is_multiple_of(n * n) {
        let expected = "from 1 to 2^15 - 1, with a square that divides the elements of R";
        return Err(Error::Size { op: OP, what: "the size of a block", expected, got: n });
    }
    let blocks = r.len() / (n * n);
    q.expect(OP, "q", blocks * (n * (n - 1) / 2))?;
    Ok((blocks, size(OP, "the size of a block", n)?))
}

fn shape(blocks: usize, n: usize) -> Shape {
    Shape::line(blocks, (n * n).next_multiple_of(32).min(256) as u32)
}

/// R = (I - Q)(I + Q)⁻¹, or its series cut after `terms`, if that is not 0; q: (blocks, n (n - 1) / 2), R: (blocks, n, n).
///
/// # Errors
/// Sizes or types that do not agree; no room for the kernel's scratch.
pub fn forward(queue: Queue<'_>, r: SliceMut<'_>, q: Slice<'_>, n: usize, terms: u32) -> Result<()> {
    let (blocks, n32) = check(q, *r, n)?;
    let scratch = queue.alloc("matrices", MATRICES * r.len(), DType::F32)?;
    let args = [r.arg(), q.arg(), scratch.slice(DType::F32).arg(), Arg::U32(n32), Arg::U32(terms)];
    queue.launch(&CAYLEY, "cayley_forward", &Defines::new(), shape(blocks, n), &args)
}

/// dq from dR.
///
/// # Errors
/// As [`forward`].
pub fn backward(queue: Queue<'_>, dq: SliceMut<'_>, dr: Slice<'_>, q: Slice<'_>, n: usize, terms: u32) -> Result<()> {
    let (blocks, n32) = check(q, dr, n)?;
    super::same(OP, q, &[("dq", *dq)])?;
    let scratch = queue.alloc("matrices", MATRICES * dr.len(), DType::F32)?;
    let scratch = scratch.slice(DType::F32).arg();
    let args = [dq.arg(), dr.arg(), q.arg(), scratch, Arg::U32(n32), Arg::U32(terms)];
    queue.launch(&CAYLEY, "cayley_backward", &Defines::new(), shape(blocks, n), &args)
}
