//! Arithmetic, element by element; see `cuda/kernels/elementwise.cu`.

use super::{NULL, packs, rows, same, size, types};
use crate::driver::Arg;
use crate::kernels::ELEMENTWISE;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result};

const OP: &str = "elementwise";

/// What is done with a and b.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// a + b.
    Add,
    /// a - b.
    Sub,
    /// a b.
    Mul,
    /// a / b.
    Div,
}

/// y = a ∘ b.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn binary(queue: Queue<'_>, kind: Binary, y: SliceMut<'_>, a: Slice<'_>, b: Slice<'_>) -> Result<()> {
    a.expect_compute(OP, "a")?;
    same(OP, a, &[("b", b), ("y", *y)])?;
    let name = match kind {
        Binary::Add => "elementwise_add",
        Binary::Sub => "elementwise_sub",
        Binary::Mul => "elementwise_mul",
        Binary::Div => "elementwise_div",
    };
    let args = [y.arg(), a.arg(), b.arg(), Arg::U64(a.len() as u64)];
    queue.launch(&ELEMENTWISE, name, &types([("T", a.dtype())]), packs(a.len()), &args)
}

/// y = Σ xᵢ of one to four, added up in f32 in order.
///
/// # Errors
/// Sizes or types that do not agree; another number of them.
pub fn sum(queue: Queue<'_>, y: SliceMut<'_>, xs: &[Slice<'_>]) -> Result<()> {
    let Some(&first) = xs.first().filter(|_| xs.len() <= 4) else {
        return Err(Error::Size { op: OP, what: "the number of terms", expected: "from 1 to 4", got: xs.len() });
    };
    first.expect_compute(OP, "a term")?;
    for x in xs {
        same(OP, first, &[("a term", *x), ("y", *y)])?;
    }
    let mut args = vec![y.arg()];
    args.extend((0..4).map(|i| xs.get(i).map_or(NULL, |x| x.arg())));
    args.push(Arg::U64(first.len() as u64));
    queue.launch(&ELEMENTWISE, "elementwise_sum", &types([("T", first.dtype())]), packs(first.len()), &args)
}

/// y = α x + β y. With β = 0 what y holds does not matter.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn axpby(queue: Queue<'_>, y: SliceMut<'_>, x: Slice<'_>, alpha: f32, beta: f32) -> Result<()> {
    x.expect_compute(OP, "x")?;
    same(OP, x, &[("y", *y)])?;
    let args = [y.arg(), x.arg(), Arg::F32(alpha), Arg::F32(beta), Arg::U64(x.len() as u64)];
    queue.launch(&ELEMENTWISE, "elementwise_axpby", &types([("T", x.dtype())]), packs(x.len()), &args)
}

/// y = x + number.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn add_scalar(queue: Queue<'_>, y: SliceMut<'_>, x: Slice<'_>, number: f32) -> Result<()> {
    x.expect_compute(OP, "x")?;
    same(OP, x, &[("y", *y)])?;
    let args = [y.arg(), x.arg(), Arg::F32(number), Arg::U64(x.len() as u64)];
    queue.launch(&ELEMENTWISE, "elementwise_add_scalar", &types([("T", x.dtype())]), packs(x.len()), &args)
}

/// Every row of y += `row`: (width) f32.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn add_row(queue: Queue<'_>, y: SliceMut<'_>, row: Slice<'_>) -> Result<()> {
    y.expect_compute(OP, "y")?;
    row.expect_dtype(OP, "the row", DType::F32)?;
    rows(OP, "the size of the row", *y, row.len())?;
    let args = [y.arg(), row.arg(), Arg::U64(y.len() as u64), Arg::U32(size(OP, "the row", row.len())?)];
    queue.launch(&ELEMENTWISE, "elementwise_add_row", &types([("T", y.dtype())]), packs(y.len()), &args)
}
