//! Rotary position embedding.

use planish_tensor::Tensor;
use planish_tensor::ops::rope as kernel;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op =
    Op { name: "rope", backward: Backward::Rule, cuda: Cuda::Kernel("rope"), fixture: Fixture::Torch("rope") };

/// Turns pairs of each head's leading dimensions by the angles of its token; see [`kernel`].
///
/// x: (tokens, heads, size), cos, sin: (tokens, m), m ≤ size / 2. Backward turns back. Saves the tables.
///
/// # Errors
/// Shapes or dtypes that do not agree.
pub fn rope(x: &Var, cos: &Tensor, sin: &Tensor) -> Result<Var> {
    let y = kernel::forward(x.value(), cos, sin)?;
    record1(&OP, &[x], y, || {
        let (cos, sin) = (cos.clone(), sin.clone());
        move |grads: &mut Grads<'_>| {
            let dx = kernel::backward(grads.upstream(), &cos, &sin)?;
            grads.add(0, dx)
        }
    })
}
