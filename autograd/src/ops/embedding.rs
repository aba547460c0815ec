//! Rows of a table by token id.

use planish_tensor::ops::embedding as kernel;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op = Op {
    name: "embedding",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("embedding"),
    fixture: Fixture::Torch("embedding"),
};

/// y_t = W\[ids_t\]; W: (vocabulary, size) in any float dtype, y: (tokens, size) in the compute dtype.
///
/// Backward: row ids_t of dW += dy_t, token by token. Saves the ids.
///
/// # Errors
/// An id that is no row of W.
pub fn embedding(weight: &Var, ids: &[u32]) -> Result<Var> {
    let y = kernel::forward(weight.value(), ids)?;
    record1(&OP, &[weight], y, || {
        let ids = ids.to_vec();
        move |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream();
            grads.add_with(0, |dw| kernel::backward_add(&dy, &ids, dw))
        }
    })
}
