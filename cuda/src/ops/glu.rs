//! Gated linear units; see `cuda/kernels/glu.cu`.

use super::{packs, same, types, with};
use crate::driver::Arg;
use crate::kernels::GLU;
use crate::memory::{Slice, SliceMut};
use crate::{Queue, Result};

const OP: &str = "glu";

/// The gate's nonlinearity; formulas in `cuda/kernels/act.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// x σ(x).
    Silu,
    /// x Φ(x), by the error function.
    Gelu,
    /// 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))).
    GeluTanh,
    /// max(x, 0).
    Relu,
}

impl Act {
    /// The macro's value.
    pub fn number(self) -> u32 {
        self as u32
    }
}

/// y = act(gate) up.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn forward(queue: Queue<'_>, act: Act, y: SliceMut<'_>, gate: Slice<'_>, up: Slice<'_>) -> Result<()> {
    gate.expect_compute(OP, "gate")?;
    same(OP, gate, &[("up", up), ("y", *y)])?;
    let args = [y.arg(), gate.arg(), up.arg(), Arg::U64(gate.len() as u64)];
    let defines = with(types([("T", gate.dtype())]), "ACT", act.number());
    queue.launch(&GLU, "glu_forward", &defines, packs(gate.len()), &args)
}

/// dgate = dy up act'(gate), dup = dy act(gate).
///
/// # Errors
/// As [`forward`].
pub fn backward(
    queue: Queue<'_>,
    act: Act,
    dgate: SliceMut<'_>,
    dup: SliceMut<'_>,
    dy: Slice<'_>,
    gate: Slice<'_>,
    up: Slice<'_>,
) -> Result<()> {
    gate.expect_compute(OP, "gate")?;
    same(OP, gate, &[("up", up), ("dy", dy), ("dgate", *dgate), ("dup", *dup)])?;
    let args = [dgate.arg(), dup.arg(), dy.arg(), gate.arg(), up.arg(), Arg::U64(gate.len() as u64)];
    let defines = with(types([("T", gate.dtype())]), "ACT", act.number());
    queue.launch(&GLU, "glu_backward", &defines, packs(gate.len()), &args)
}
