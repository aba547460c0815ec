//! RMSNorm.

use planish_tensor::ops::rms_norm as kernel;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

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
            let mut dx = None;
            if grads.wants(1) {
                grads.add_with(1, |dw| {
                    dx = Some(kernel::backward(&dy, &x, &w, &r, offset, Some(dw))?);
                    Ok(())
                })?;
            } else {
                dx = Some(kernel::backward(&dy, &x, &w, &r, offset, None)?);
            }
            match dx {
                Some(dx) => grads.add(0, dx),
                None => Ok(()),
            }
        }
    })?;
    Ok(y.remade(|| {
        let (x, w) = (x.value().clone(), weight.value().clone());
        move || Ok(kernel::forward(&x, &w, eps, offset)?.0)
    }))
}
