//! A linear map whose rows have a trained length (DoRA).

use planish_tensor::Tensor;
use planish_tensor::ops::dora_linear as kernel;
pub use planish_tensor::ops::dora_linear::row_norms;
use planish_tensor::ops::linear::backward_bias_add;
pub use planish_tensor::ops::lora_linear::Lora;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Error, Result, Var, record1};

/// Registry entry.
pub static OP: Op = Op {
    name: "dora_linear",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("dora_linear"),
    fixture: Fixture::Torch("dora_linear"),
};

/// y = (x - d) Wᵀ + m / n ⊙ (d (W + s·B A)ᵀ) + b with d = drop(x) and W frozen; see [`kernel`]. `norms` are those of
/// [`row_norms`] for the same W, A, B and s, and constant to the gradient.
///
/// Backward: gradients of x, A, B, m and b. Saves x, W, A, B, m, n, (rows, out) and (rows, r) activations.
///
/// # Errors
/// Shapes that do not agree; a tracked W, which this op has no gradient for.
pub fn dora_linear(
    x: &Var,
    weight: &Var,
    bias: Option<&Var>,
    (a, b): (&Var, &Var),
    (magnitude, norms): (&Var, &Tensor),
    lora: &Lora,
) -> Result<Var> {
    if weight.is_tracked() {
        return Err(Error::NoRule { op: OP.name, reason: "the base weight under a low-rank update is frozen" });
    }
    let parts = (a.value(), b.value());
    let lengths = (magnitude.value(), norms);
    let out = kernel::forward(x.value(), weight.value(), bias.map(Var::value), parts, lengths, lora)?;
    let mut inputs = vec![x, a, b, magnitude];
    inputs.extend(bias);
    record1(&OP, &inputs, out.y, || {
        let (x, w) = (x.saved(), weight.value().clone());
        let (av, bv, lora) = (a.value().clone(), b.value().clone(), lora.clone());
        let (mv, nv) = (magnitude.value().clone(), norms.clone());
        let (z, h, has_bias) = (out.z, out.h, bias.is_some());
        move |grads: &mut Grads<'_>| {
            let (dy, x) = (grads.upstream().clone(), x.get()?);
            let none = || kernel::Wanted { input: false, a: None, b: None, magnitude: None };
            let run = |wanted: kernel::Wanted<'_>| {
                kernel::backward(&dy, &x, &w, (&av, &bv), (&mv, &nv), (&z, &h), &lora, wanted)
            };
            if has_bias {
                grads.add_with(4, |db| backward_bias_add(&dy, db))?;
            }
            grads.add_with(3, |dm| run(kernel::Wanted { magnitude: Some(dm), ..none() }).map(drop))?;
            grads.add_with(2, |db| run(kernel::Wanted { b: Some(db), ..none() }).map(drop))?;
            let input = grads.wants(0);
            let mut dx = None;
            if grads.wants(1) {
                grads.add_with(1, |da| {
                    dx = run(kernel::Wanted { input, a: Some(da), ..none() })?;
                    Ok(())
                })?;
            } else if input {
                dx = run(kernel::Wanted { input, ..none() })?;
            }
            match dx {
                Some(dx) => grads.add(0, dx),
                None => Ok(()),
            }
        }
    })
}
