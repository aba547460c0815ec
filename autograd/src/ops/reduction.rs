//! Sums, means and maxima.

use planish_tensor::Tensor;
use planish_tensor::ops::elementwise::scale;
use planish_tensor::ops::reduction as kernel;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record_without_rule, record1};

const CLOSED: Fixture = Fixture::None("a sum or a choice: unit tests and gradcheck say all there is to say");

/// Registry entry of the sum over everything or an axis.
pub static SUM: Op = Op { name: "sum", backward: Backward::Rule, cuda: Cuda::Kernel("reduction"), fixture: CLOSED };
/// Registry entry of the mean over everything or an axis.
pub static MEAN: Op = Op { name: "mean", backward: Backward::Rule, cuda: Cuda::Kernel("reduction"), fixture: CLOSED };
/// Registry entry of the maximum along an axis.
pub static MAX: Op = Op { name: "max", backward: Backward::Rule, cuda: Cuda::Kernel("reduction"), fixture: CLOSED };
/// Registry entry of the place of the maximum.
pub static ARGMAX: Op = Op {
    name: "argmax",
    backward: Backward::None("an index does not change smoothly"),
    cuda: Cuda::Kernel("reduction"),
    fixture: CLOSED,
};

/// dy, one number for each sum, stretched over what was summed.
fn stretched(dy: &Tensor, axis: Option<usize>, dims: &[usize]) -> Result<Tensor> {
    let kept = match axis {
        Some(axis) => dy.unsqueeze(axis)?,
        None => dy.clone(),
    };
    Ok(kept.broadcast_to(dims)?.contiguous()?)
}

fn record_sum(op: &'static Op, x: &Var, y: Tensor, axis: Option<usize>, factor: f64) -> Result<Var> {
    record1(op, &[x], y, || {
        let dims = x.dims().to_vec();
        move |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream();
            let dy = if factor == 1.0 { dy } else { scale(&dy, factor)? };
            grads.add(0, stretched(&dy, axis, &dims)?)
        }
    })
}

/// Σ x: a scalar.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn sum(x: &Var) -> Result<Var> {
    record_sum(&SUM, x, kernel::sum(x.value())?, None, 1.0)
}

/// Σ along `axis`, which disappears.
///
/// # Errors
/// An axis that x does not have; a dtype other than f32 and f64.
pub fn sum_axis(x: &Var, axis: usize) -> Result<Var> {
    record_sum(&SUM, x, kernel::sum_axis(x.value(), axis)?, Some(axis), 1.0)
}

/// Σ x / n: a scalar; NaN for no element, as in PyTorch.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn mean(x: &Var) -> Result<Var> {
    let n = x.value().numel();
    record_sum(&MEAN, x, kernel::mean(x.value())?, None, 1.0 / n as f64)
}

/// Mean along `axis`, which disappears; NaN for an axis of size 0.
///
/// # Errors
/// An axis that x does not have; a dtype other than f32 and f64.
pub fn mean_axis(x: &Var, axis: usize) -> Result<Var> {
    let sum = kernel::sum_axis(x.value(), axis)?;
    let factor = 1.0 / x.dims()[axis] as f64;
    record_sum(&MEAN, x, scale(&sum, factor)?, Some(axis), factor)
}

/// Largest along `axis`, which disappears. Of equals the first; NaN is larger than any number. The gradient
/// goes to the one that was chosen.
///
/// # Errors
/// An axis that x does not have, or of size 0; a dtype other than f32 and f64.
pub fn max_axis(x: &Var, axis: usize) -> Result<Var> {
    let (best, index) = kernel::max_axis(x.value(), axis)?;
    record1(&MAX, &[x], best, || {
        let dims = x.dims().to_vec();
        move |grads: &mut Grads<'_>| {
            let dx = kernel::max_axis_backward(grads.upstream(), &index, &dims, axis)?;
            grads.add(0, dx)
        }
    })
}

/// Place (u32) of the largest along `axis`, which disappears. Of equals the first.
///
/// # Errors
/// As [`max_axis`]; [`NoRule`](crate::Error::NoRule) if x is tracked.
pub fn argmax_axis(x: &Var, axis: usize) -> Result<Var> {
    record_without_rule(&ARGMAX, &[x], kernel::max_axis(x.value(), axis)?.1)
}
