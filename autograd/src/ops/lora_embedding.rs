//! Rows of a table by token id, with a low-rank update.

use planish_tensor::ops::lora_embedding as kernel;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Error, Result, Var, record1};

/// Registry entry.
pub static OP: Op = Op {
    name: "lora_embedding",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("gather"),
    fixture: Fixture::Torch("lora_embedding"),
};

/// y_t = W\[ids_t\] + s·A\[:, ids_t\]ᵀ Bᵀ with W frozen; W: (vocabulary, size), A: (r, vocabulary), B: (size, r),
/// y: (tokens, size). See [`kernel`].
///
/// Backward: gradients of A and B. Saves B, the ids and (tokens, r) activations.
///
/// # Errors
/// Shapes that do not agree; an id that is no row of W; a tracked W, which this op has no gradient for.
pub fn lora_embedding(weight: &Var, a: &Var, b: &Var, ids: &[u32], scale: f64) -> Result<Var> {
    if weight.is_tracked() {
        return Err(Error::NoRule { op: OP.name, reason: "the base weight under a low-rank update is frozen" });
    }
    let (y, h) = kernel::forward(weight.value(), a.value(), b.value(), ids, scale)?;
    record1(&OP, &[a, b], y, || {
        let (b, ids) = (b.value().clone(), ids.to_vec());
        move |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream().contiguous()?;
            grads.add_with(0, |da| kernel::backward_a_add(&dy, &b, &ids, scale, da))?;
            grads.add_with(1, |db| kernel::backward_b_add(&dy, &h, db))
        }
    })
}
