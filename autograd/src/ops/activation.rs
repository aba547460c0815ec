//! Nonlinearities on their own; gated ones are in [`glu`](super::glu).

use planish_tensor::ops::activation::{Act, backward, forward};

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry of SiLU.
pub static SILU: Op =
    Op { name: "silu", backward: Backward::Rule, cuda: Cuda::Kernel("activation"), fixture: Fixture::Torch("silu") };
/// Registry entry of GELU, in both its forms.
pub static GELU: Op =
    Op { name: "gelu", backward: Backward::Rule, cuda: Cuda::Kernel("activation"), fixture: Fixture::Torch("gelu") };
/// Registry entry of ReLU.
pub static RELU: Op = Op {
    name: "relu",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("activation"),
    fixture: Fixture::None("one comparison: gradcheck and a test of its edges say all there is to say"),
};

/// y = x σ(x). Saves x.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn silu(x: &Var) -> Result<Var> {
    activation(&SILU, Act::Silu, x)
}

/// y = x Φ(x), with the error function. Saves x.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn gelu(x: &Var) -> Result<Var> {
    activation(&GELU, Act::Gelu, x)
}

/// y = 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))). Saves x.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn gelu_tanh(x: &Var) -> Result<Var> {
    activation(&GELU, Act::GeluTanh, x)
}

/// y = max(x, 0); the slope at 0 is 0. Saves x.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn relu(x: &Var) -> Result<Var> {
    activation(&RELU, Act::Relu, x)
}

fn activation(op: &'static Op, act: Act, x: &Var) -> Result<Var> {
    record1(op, &[x], forward(act, x.value())?, || {
        let x = x.value().clone();
        move |grads: &mut Grads<'_>| {
            let dx = backward(act, grads.upstream(), &x)?;
            grads.add(0, dx)
        }
    })
}
