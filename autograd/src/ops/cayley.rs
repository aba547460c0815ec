//! Orthogonal matrices from free numbers.

use planish_tensor::ops::cayley as kernel;
pub use planish_tensor::ops::cayley::Cayley;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op =
    Op { name: "cayley", backward: Backward::Rule, cuda: Cuda::Kernel("cayley"), fixture: Fixture::Torch("cayley") };

/// R (blocks, n, n) from q (blocks, n (n - 1) / 2); see [`kernel`]. Saves q.
///
/// # Errors
/// A q of another shape; a series of no term.
pub fn cayley(q: &Var, n: usize, kind: Cayley) -> Result<Var> {
    record1(&OP, &[q], kernel::forward(q.value(), n, kind)?, || {
        let q = q.value().clone();
        move |grads: &mut Grads<'_>| {
            let dq = kernel::backward(grads.upstream(), &q, n, kind)?;
            grads.add(0, dq)
        }
    })
}
