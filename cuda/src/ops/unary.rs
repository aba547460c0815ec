//! Elementary functions; see `cuda/kernels/unary.cu`.

use super::{packs, same, types, with};
use crate::cache::Defines;
use crate::driver::Arg;
use crate::kernels::UNARY;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Queue, Result};

const OP: &str = "unary";

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unary {
    /// e^x.
    Exp,
    /// Natural logarithm.
    Ln,
    /// Square root.
    Sqrt,
    /// Hyperbolic tangent.
    Tanh,
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// c tanh(x / c).
    Softcap(f32),
}

impl Unary {
    /// The macro F, and c.
    fn number(self) -> (u32, f32) {
        match self {
            Unary::Exp => (0, 0.0),
            Unary::Ln => (1, 0.0),
            Unary::Sqrt => (2, 0.0),
            Unary::Tanh => (3, 0.0),
            Unary::Sigmoid => (4, 0.0),
            Unary::Softcap(c) => (5, c),
        }
    }

    fn defines(self, dtype: DType) -> Defines {
        with(types([("T", dtype)]), "F", self.number().0)
    }
}

/// y = f(x).
///
/// # Errors
/// Sizes or types that do not agree.
pub fn forward(queue: Queue<'_>, f: Unary, y: SliceMut<'_>, x: Slice<'_>) -> Result<()> {
    x.expect_compute(OP, "x")?;
    same(OP, x, &[("y", *y)])?;
    let args = [y.arg(), x.arg(), Arg::F32(f.number().1), Arg::U64(x.len() as u64)];
    queue.launch(&UNARY, "unary_forward", &f.defines(x.dtype()), packs(x.len()), &args)
}

/// dx = dy f'(x).
///
/// # Errors
/// As [`forward`].
pub fn backward(queue: Queue<'_>, f: Unary, dx: SliceMut<'_>, dy: Slice<'_>, x: Slice<'_>) -> Result<()> {
    x.expect_compute(OP, "x")?;
    same(OP, x, &[("dx", *dx), ("dy", dy)])?;
    let args = [dx.arg(), dy.arg(), x.arg(), Arg::F32(f.number().1), Arg::U64(x.len() as u64)];
    queue.launch(&UNARY, "unary_backward", &f.defines(x.dtype()), packs(x.len()), &args)
}
