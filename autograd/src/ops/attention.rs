//! Attention over a packed stream.

use std::sync::Arc;

use planish_tensor::ops::attention as kernel;
pub use planish_tensor::ops::attention::Attention;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op = Op {
    name: "attention",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("attention"),
    fixture: Fixture::Torch("attention"),
};

/// Softmax(cap(scale · q kᵀ)) v within each segment; see [`kernel`] for the formula and the masks.
///
/// q: (queries, heads, size), k, v: (keys, kv_heads, size), result: (queries, heads, size). Segment s has
/// queries `cu_q[s]..cu_q[s + 1]` and keys `cu_k[s]..cu_k[s + 1]`. Saves q, k, v, the result and one
/// number a query and head.
///
/// # Errors
/// Shapes, dtypes, segment tables or options that do not agree.
pub fn attention(q: &Var, k: &Var, v: &Var, cu_q: &Arc<[u32]>, cu_k: &Arc<[u32]>, options: &Attention) -> Result<Var> {
    let (out, lse) = kernel::forward(q.value(), k.value(), v.value(), cu_q, cu_k, options)?;
    record1(&OP, &[q, k, v], out.clone(), || {
        let (q, k, v) = (q.value().clone(), k.value().clone(), v.value().clone());
        let (cu_q, cu_k, options) = (cu_q.clone(), cu_k.clone(), *options);
        move |grads: &mut Grads<'_>| {
            let (dq, dk, dv) = kernel::backward(grads.upstream(), &q, &k, &v, &out, &lse, &cu_q, &cu_k, &options)?;
            grads.add(0, dq)?;
            grads.add(1, dk)?;
            grads.add(2, dv)
        }
    })
}
