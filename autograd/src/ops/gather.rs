//! Elements of each row by index.

use planish_tensor::Tensor;
use planish_tensor::ops::gather as kernel;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op =
    Op { name: "gather", backward: Backward::Rule, cuda: Cuda::Kernel("gather"), fixture: Fixture::Torch("gather") };

/// y\[r\]\[j\] = x\[r\]\[index\[r\]\[j\]\] along the last dimension: picking log-probabilities of tokens, say.
///
/// x: (…, width), index: (…, picks) of u32, i64 or i32, y: (…, picks). Backward adds where the same element was
/// picked twice. Saves the index.
///
/// # Errors
/// An index that is none of the row; leading sizes that differ; a dtype other than f32 and f64.
pub fn gather(x: &Var, index: &Tensor) -> Result<Var> {
    record1(&OP, &[x], kernel::forward(x.value(), index)?, || {
        let index = index.clone();
        move |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream();
            grads.add_with(0, |dx| kernel::backward_add(&dy, &index, dx))
        }
    })
}
