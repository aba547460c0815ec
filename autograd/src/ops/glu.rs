//! Gated linear units. Each saves its gate and its input, or how they are made again.

use planish_tensor::ops::glu::{Act, backward, forward};

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry of SwiGLU.
pub static SWIGLU: Op =
    Op { name: "swiglu", backward: Backward::Rule, cuda: Cuda::Kernel("glu"), fixture: Fixture::Torch("swiglu") };
/// Registry entry of GeGLU, in both its forms.
pub static GEGLU: Op =
    Op { name: "geglu", backward: Backward::Rule, cuda: Cuda::Kernel("glu"), fixture: Fixture::Torch("geglu") };

/// y = silu(gate) · up. Saves gate and up.
///
/// # Errors
/// Shapes or dtypes that differ.
pub fn swiglu(gate: &Var, up: &Var) -> Result<Var> {
    gated(&SWIGLU, Act::Silu, gate, up)
}

/// y = gelu(gate) · up, with the error function. Saves gate and up.
///
/// # Errors
/// Shapes or dtypes that differ.
pub fn geglu(gate: &Var, up: &Var) -> Result<Var> {
    gated(&GEGLU, Act::Gelu, gate, up)
}

/// y = gelu(gate) · up, with the tanh approximation. Saves gate and up.
///
/// # Errors
/// Shapes or dtypes that differ.
pub fn geglu_tanh(gate: &Var, up: &Var) -> Result<Var> {
    gated(&GEGLU, Act::GeluTanh, gate, up)
}

fn gated(op: &'static Op, act: Act, gate: &Var, up: &Var) -> Result<Var> {
    let y = forward(act, gate.value(), up.value())?;
    let y = record1(op, &[gate, up], y, || {
        let (gate, up) = (gate.saved(), up.saved());
        move |grads: &mut Grads<'_>| {
            let (dgate, dup) = backward(act, grads.upstream(), gate.get()?, up.get()?)?;
            grads.add(0, dgate)?;
            grads.add(1, dup)
        }
    })?;
    Ok(y.remade(|| {
        let (gate, up) = (gate.saved(), up.saved());
        move || Ok(forward(act, &gate.get()?, &up.get()?)?)
    }))
}
