//! Nonlinearities on their own; see `cuda/kernels/activation.cu`.

pub use super::glu::Act;
use super::{packs, same, types, with};
use crate::driver::Arg;
use crate::kernels::ACTIVATION;
use crate::memory::{Slice, SliceMut};
use crate::{Queue, Result};

const OP: &str = "activation";

/// y = act(x).
///
/// # Errors
/// Sizes or types that do not agree.
pub fn forward(queue: Queue<'_>, act: Act, y: SliceMut<'_>, x: Slice<'_>) -> Result<()> {
    x.expect_compute(OP, "x")?;
    same(OP, x, &[("y", *y)])?;
    let defines = with(types([("T", x.dtype())]), "ACT", act.number());
    let args = [y.arg(), x.arg(), Arg::U64(x.len() as u64)];
    queue.launch(&ACTIVATION, "activation_forward", &defines, packs(x.len()), &args)
}

/// dx = dy act'(x).
///
/// # Errors
/// As [`forward`].
pub fn backward(queue: Queue<'_>, act: Act, dx: SliceMut<'_>, dy: Slice<'_>, x: Slice<'_>) -> Result<()> {
    x.expect_compute(OP, "x")?;
    same(OP, x, &[("dx", *dx), ("dy", dy)])?;
    let defines = with(types([("T", x.dtype())]), "ACT", act.number());
    let args = [dx.arg(), dy.arg(), x.arg(), Arg::U64(x.len() as u64)];
    queue.launch(&ACTIVATION, "activation_backward", &defines, packs(x.len()), &args)
}
