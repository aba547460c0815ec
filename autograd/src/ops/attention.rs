//! Attention over a packed stream.

use std::sync::Arc;

use planish_tensor::ops::attention as kernel;
use planish_tensor::ops::attention::Segments;
pub use planish_tensor::ops::attention::{Attention, Stem};

use crate::registry::{Backward, CUDA_LATER, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op =
    Op { name: "attention", backward: Backward::Rule, cuda: CUDA_LATER, fixture: Fixture::Torch("attention") };

/// Softmax(cap(scale · q kᵀ)) v within each segment; see [`kernel`] for the formula and the masks.
///
/// q: (queries, heads, size), k, v: (keys, kv_heads, size), result: (queries, heads, size). Segment s has
/// queries `cu_q[s]..cu_q[s + 1]` and keys `cu_k[s]..cu_k[s + 1]`. Saves q, k, v, the result and one
/// number a query and head.
///
/// # Errors
/// Shapes, dtypes, segment tables or options that do not agree.
pub fn attention(q: &Var, k: &Var, v: &Var, cu_q: &Arc<[u32]>, cu_k: &Arc<[u32]>, options: &Attention) -> Result<Var> {
    let stems: Arc<[Option<Stem>]> = Arc::new([]);
    branched(q, k, v, cu_q, cu_k, &stems, options)
}

/// As [`attention`], with keys of another segment before a segment's own where `stems` names them; `stems` has an
/// entry a segment, or none at all. The gradient of shared keys is the sum over all that see them.
///
/// # Errors
/// As [`attention`]; a stem that is no earlier segment without one, or is longer than it.
pub fn branched(
    q: &Var,
    k: &Var,
    v: &Var,
    cu_q: &Arc<[u32]>,
    cu_k: &Arc<[u32]>,
    stems: &Arc<[Option<Stem>]>,
    options: &Attention,
) -> Result<Var> {
    let table = Segments { cu_q, cu_k, stems };
    let (out, lse) = kernel::forward_branched(q.value(), k.value(), v.value(), &table, options)?;
    record1(&OP, &[q, k, v], out.clone(), || {
        let (q, k, v) = (q.value().clone(), k.value().clone(), v.value().clone());
        let (cu_q, cu_k, stems, options) = (cu_q.clone(), cu_k.clone(), stems.clone(), *options);
        move |grads: &mut Grads<'_>| {
            let table = Segments { cu_q: &cu_q, cu_k: &cu_k, stems: &stems };
            let (dq, dk, dv) = kernel::backward_branched(grads.upstream(), &q, &k, &v, &out, &lse, &table, &options)?;
            grads.add(0, dq)?;
            grads.add(1, dk)?;
            grads.add(2, dv)
        }
    })
}
