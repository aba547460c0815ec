//! Variables joined along an axis.

use planish_tensor::Tensor;
use planish_tensor::ops::concat as kernel;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op = Op {
    name: "concat",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("copy"),
    fixture: Fixture::None("it moves elements: gradcheck says all there is to say"),
};

/// The variables one after the other along `axis`. Backward cuts the gradient up again.
///
/// # Errors
/// No variable at all; an axis that they do not have; other sizes or dtypes that differ.
pub fn concat(vars: &[&Var], axis: usize) -> Result<Var> {
    let values: Vec<&Tensor> = vars.iter().map(|v| v.value()).collect();
    record1(&OP, vars, kernel::forward(&values, axis)?, || {
        let sizes: Vec<usize> = vars.iter().map(|v| v.dims()[axis]).collect();
        move |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream();
            let mut start = 0;
            for (i, size) in sizes.into_iter().enumerate() {
                if grads.wants(i) {
                    // A copy: a view would keep the whole of dy alive.
                    grads.add(i, dy.narrow(axis, start, size)?.copied()?)?;
                }
                start += size;
            }
            Ok(())
        }
    })
}
