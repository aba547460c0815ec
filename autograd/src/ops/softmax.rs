//! Softmax, log-softmax and log-sum-exp over the last dimension.

use planish_tensor::ops::softmax as kernel;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry of softmax.
pub static SOFTMAX: Op =
    Op { name: "softmax", backward: Backward::Rule, cuda: Cuda::Kernel("softmax"), fixture: Fixture::Torch("softmax") };
/// Registry entry of log-softmax.
pub static LOG_SOFTMAX: Op = Op {
    name: "log_softmax",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("softmax"),
    fixture: Fixture::Torch("log_softmax"),
};
/// Registry entry of log-sum-exp.
pub static LOGSUMEXP: Op = Op {
    name: "logsumexp",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("softmax"),
    fixture: Fixture::None("it is x - log_softmax(x), which has one"),
};

/// y = e^x / Σ e^x. Saves y.
///
/// # Errors
/// A scalar x; a dtype other than f32 and f64.
pub fn softmax(x: &Var) -> Result<Var> {
    let y = kernel::softmax(x.value())?;
    record1(&SOFTMAX, &[x], y.clone(), || {
        move |grads: &mut Grads<'_>| {
            let dx = kernel::softmax_backward(grads.upstream(), &y)?;
            grads.add(0, dx)
        }
    })
}

/// y = x - ln Σ e^x. Saves y.
///
/// # Errors
/// A scalar x; a dtype other than f32 and f64.
pub fn log_softmax(x: &Var) -> Result<Var> {
    let y = kernel::log_softmax(x.value())?;
    record1(&LOG_SOFTMAX, &[x], y.clone(), || {
        move |grads: &mut Grads<'_>| {
            let dx = kernel::log_softmax_backward(grads.upstream(), &y)?;
            grads.add(0, dx)
        }
    })
}

/// ln Σ e^x; the last dimension disappears. Saves x and the result.
///
/// # Errors
/// A scalar x; a dtype other than f32 and f64.
pub fn logsumexp(x: &Var) -> Result<Var> {
    let y = kernel::logsumexp(x.value())?;
    record1(&LOGSUMEXP, &[x], y.clone(), || {
        let x = x.value().clone();
        move |grads: &mut Grads<'_>| {
            let dx = kernel::logsumexp_backward(grads.upstream(), &x, &y)?;
            grads.add(0, dx)
        }
    })
}
