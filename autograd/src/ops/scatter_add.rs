//! Rows added up by index.

use planish_tensor::ops::{index_select, scatter_add as kernel};

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op = Op {
    name: "scatter_add",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("gather"),
    fixture: Fixture::None("it adds rows: gradcheck and unit tests say all there is to say"),
};

/// y = x, then y\[index_i\] += source_i along the first dimension, in order of i.
///
/// Backward: dx = dy, dsource_i = dy\[index_i\]. Saves the index.
///
/// # Errors
/// An index that is no row of x; sizes or dtypes that do not agree.
pub fn scatter_add(x: &Var, index: &[u32], source: &Var) -> Result<Var> {
    let y = kernel::forward(x.value(), index, source.value())?;
    record1(&OP, &[x, source], y, || {
        let index = index.to_vec();
        move |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream();
            if grads.wants(1) {
                grads.add(1, index_select::forward(&dy, &index)?)?;
            }
            grads.add(0, dy)
        }
    })
}
