//! A block-diagonal linear map of the features.

use planish_tensor::ops::block_rotate as kernel;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op = Op {
    name: "block_rotate",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("block_rotate"),
    fixture: Fixture::Torch("block_rotate"),
};

/// y\[t, g n + c\] = Σ_k x\[t, g n + k\] R_g\[k, c\]; x: (…, groups · n), R: (groups or 1, n, n). Saves both.
///
/// # Errors
/// Shapes that do not agree.
pub fn block_rotate(x: &Var, r: &Var) -> Result<Var> {
    record1(&OP, &[x, r], kernel::forward(x.value(), r.value())?, || {
        let (x, r) = (x.saved(), r.value().clone());
        move |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream();
            if grads.wants(1) {
                let x = x.get()?;
                grads.add_with(1, |dr| kernel::backward_r_add(&dy, &x, dr))?;
            }
            if grads.wants(0) {
                grads.add(0, kernel::backward_input(&dy, &r)?)?;
            }
            Ok(())
        }
    })
}
