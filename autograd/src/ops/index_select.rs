//! Rows by index.

use planish_tensor::ops::index_select as kernel;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op = Op {
    name: "index_select",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("gather"),
    fixture: Fixture::None("it copies rows: gradcheck says all there is to say"),
};

/// y_i = x\[index_i\] along the first dimension. Backward: dx\[index_i\] += dy_i, in order.
///
/// # Errors
/// An index that is no row of x.
pub fn index_select(x: &Var, index: &[u32]) -> Result<Var> {
    let y = kernel::forward(x.value(), index)?;
    record1(&OP, &[x], y, || {
        let index = index.to_vec();
        move |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream();
            grads.add_with(0, |dx| kernel::backward_add(&dy, &index, dx))
        }
    })
}
