//! A linear map with a low-rank update.

use planish_tensor::ops::linear::backward_bias_add;
use planish_tensor::ops::lora_linear as kernel;
pub use planish_tensor::ops::lora_linear::Lora;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Error, Result, Var, record1};

/// Registry entry.
pub static OP: Op = Op {
    name: "lora_linear",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("matmul"),
    fixture: Fixture::Torch("lora_linear"),
};

/// y = x Wᵀ + b + s · drop(x) Aᵀ Bᵀ, with W frozen; see [`kernel`].
///
/// Backward: gradients of x, A, B and b. Saves x, W, A, B and the update's (rows, r) activations; the
/// dropout mask is drawn again, not saved.
///
/// # Errors
/// Shapes that do not agree; a tracked W, which this op has no gradient for.
pub fn lora_linear(x: &Var, weight: &Var, bias: Option<&Var>, a: &Var, b: &Var, lora: &Lora) -> Result<Var> {
    if weight.is_tracked() {
        return Err(Error::NoRule { op: OP.name, reason: "the base weight under a low-rank update is frozen" });
    }
    let (y, h) = kernel::forward(x.value(), weight.value(), bias.map(Var::value), a.value(), b.value(), lora)?;
    let mut inputs = vec![x, a, b];
    inputs.extend(bias);
    record1(&OP, &inputs, y, || {
        let has_bias = bias.is_some();
        let (x, w) = (x.saved(), weight.value().clone());
        let (av, bv, lora) = (a.value().clone(), b.value().clone(), lora.clone());
        move |grads: &mut Grads<'_>| {
            let (dy, x) = (grads.upstream().clone(), x.get()?);
            let run = |wanted: kernel::Wanted<'_>| kernel::backward(&dy, &x, &w, &av, &bv, &h, &lora, wanted);
            if has_bias {
                grads.add_with(3, |db| backward_bias_add(&dy, db))?;
            }
            grads.add_with(2, |db| run(kernel::Wanted { input: false, a: None, b: Some(db) }).map(drop))?;
            let input = grads.wants(0);
            let mut dx = None;
            if grads.wants(1) {
                grads.add_with(1, |da| {
                    dx = run(kernel::Wanted { input, a: Some(da), b: None })?;
                    Ok(())
                })?;
            } else if input {
                dx = run(kernel::Wanted { input, a: None, b: None })?;
            }
            match dx {
                Some(dx) => grads.add(0, dx),
                None => Ok(()),
            }
        }
    })
}
