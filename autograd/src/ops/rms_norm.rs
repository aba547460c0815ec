//! RMSNorm.

use planish_tensor::Tensor;
use planish_tensor::ops::rms_norm as kernel;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record, record1};

/// Registry entry.
pub static OP: Op = Op {
    name: "rms_norm",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("rms_norm"),
    fixture: Fixture::Torch("rms_norm"),
};

/// y = x / sqrt(mean x² + ε) · (w + offset) over the last dimension; see [`kernel`].
///
/// Saves x, w and one number a row.
///
/// # Errors
/// Shapes that do not agree.
pub fn rms_norm(x: &Var, weight: &Var, eps: f64, offset: f64) -> Result<Var> {
    let (y, r) = kernel::forward(x.value(), weight.value(), eps, offset)?;
    let y = record1(&OP, &[x, weight], y, || {
        let (x, w) = (x.value().clone(), weight.value().clone());
        move |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream();
            let dx = gradients(grads, 1, [&dy, &x, &w, &r], None, offset)?;
            grads.add(0, dx)
        }
    })?;
    Ok(from_saved(y, x.value(), weight, eps, offset))
}

/// (x + added, [`rms_norm`] of it), each in one pass: forward, and backward, where what reaches the sum by other ways is
/// added on the way. The same bits on the processor as [`add`](super::elementwise::add) and [`rms_norm`] one after the
/// other; on a device the gradients of halves are rounded once less.
///
/// Saves the sum, w and one number a row.
///
/// # Errors
/// Shapes that do not agree.
pub fn rms_norm_added(x: &Var, added: &Var, weight: &Var, eps: f64, offset: f64) -> Result<(Var, Var)> {
    let (sum, y, r) = kernel::forward_added(x.value(), added.value(), weight.value(), eps, offset)?;
    let outputs = record(&OP, &[x, added, weight], vec![sum.clone(), y], || {
        let (sum, w) = (sum.clone(), weight.value().clone());
        move |grads: &mut Grads<'_>| {
            let (past, dy) = (grads.upstream_of(0).cloned(), grads.upstream_of(1).cloned());
            let dsum = match dy {
                Some(dy) => gradients(grads, 2, [&dy, &sum, &w, &r], past.as_ref(), offset)?,
                // The norm is used nowhere.
                None => past.expect("a rule runs only if an output has an upstream gradient"),
            };
            grads.add(0, dsum.clone())?;
            grads.add(1, dsum)
        }
    })?;
    let [sum, y] = <[Var; 2]>::try_from(outputs).expect("two outputs");
    let y = from_saved(y, sum.value(), weight, eps, offset);
    Ok((sum, y))
}

/// y with how to make it again from what its rule keeps.
fn from_saved(y: Var, x: &Tensor, weight: &Var, eps: f64, offset: f64) -> Var {
    y.remade(|| {
        let (x, w) = (x.clone(), weight.value().clone());
        move || Ok(kernel::forward(&x, &w, eps, offset)?.0)
    })
}

/// The gradient of what was normed; that of the weight, input `weight`, is added to it.
fn gradients(
    grads: &mut Grads<'_>,
    weight: usize,
    [dy, x, w, r]: [&Tensor; 4],
    past: Option<&Tensor>,
    offset: f64,
) -> Result<Tensor> {
    if !grads.wants(weight) {
        return Ok(kernel::backward(dy, x, w, r, past, offset, None)?);
    }
    let mut dx = None;
    grads.add_with(weight, |dw| {
        dx = Some(kernel::backward(dy, x, w, r, past, offset, Some(dw))?);
        Ok(())
    })?;
    Ok(dx.expect("made with the weight's"))
}
