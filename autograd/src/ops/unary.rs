//! Elementary functions, element by element.

use planish_tensor::ops::unary::{Unary, backward, forward};

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

const KNOWN: Fixture = Fixture::None("values are compared with the standard library's, slopes by gradcheck");

/// Registry entry of exp.
pub static EXP: Op = Op { name: "exp", backward: Backward::Rule, cuda: Cuda::Kernel("unary"), fixture: KNOWN };
/// Registry entry of ln.
pub static LN: Op = Op { name: "ln", backward: Backward::Rule, cuda: Cuda::Kernel("unary"), fixture: KNOWN };
/// Registry entry of sqrt.
pub static SQRT: Op = Op { name: "sqrt", backward: Backward::Rule, cuda: Cuda::Kernel("unary"), fixture: KNOWN };
/// Registry entry of tanh.
pub static TANH: Op = Op { name: "tanh", backward: Backward::Rule, cuda: Cuda::Kernel("unary"), fixture: KNOWN };
/// Registry entry of sigmoid.
pub static SIGMOID: Op = Op { name: "sigmoid", backward: Backward::Rule, cuda: Cuda::Kernel("unary"), fixture: KNOWN };
/// Registry entry of softcap.
pub static SOFTCAP: Op = Op { name: "softcap", backward: Backward::Rule, cuda: Cuda::Kernel("unary"), fixture: KNOWN };

/// y = e^x. Saves x.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn exp(x: &Var) -> Result<Var> {
    unary(&EXP, Unary::Exp, x)
}

/// y = ln x; -∞ at 0, NaN below. Saves x.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn ln(x: &Var) -> Result<Var> {
    unary(&LN, Unary::Ln, x)
}

/// y = √x; its slope at 0 is infinite. Saves x.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn sqrt(x: &Var) -> Result<Var> {
    unary(&SQRT, Unary::Sqrt, x)
}

/// y = tanh x. Saves x.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn tanh(x: &Var) -> Result<Var> {
    unary(&TANH, Unary::Tanh, x)
}

/// y = 1 / (1 + e^-x). Saves x.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn sigmoid(x: &Var) -> Result<Var> {
    unary(&SIGMOID, Unary::Sigmoid, x)
}

/// y = cap · tanh(x / cap): x near 0, never beyond ±cap. Saves x.
///
/// # Errors
/// A cap that is not positive and finite; a dtype other than f32 and f64.
pub fn softcap(x: &Var, cap: f64) -> Result<Var> {
    unary(&SOFTCAP, Unary::Softcap(cap), x)
}

fn unary(op: &'static Op, f: Unary, x: &Var) -> Result<Var> {
    record1(op, &[x], forward(f, x.value())?, || {
        let x = x.value().clone();
        move |grads: &mut Grads<'_>| {
            let dx = backward(f, grads.upstream(), &x)?;
            grads.add(0, dx)
        }
    })
}
