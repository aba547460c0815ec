//! Dropout with a mask that is drawn again, not saved.

use planish_tensor::ops::dropout as kernel;
use planish_tensor::rng::Stream;

use crate::registry::{Backward, CUDA_LATER, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op = Op {
    name: "dropout",
    backward: Backward::Rule,
    cuda: CUDA_LATER,
    fixture: Fixture::None("its masks are its own: their share and their scale are tested"),
};

/// y_i = x_i / (1 - p) with probability 1 - p, else 0: element i is kept as the stream's word i says.
///
/// p = 0 is the identity: nothing is copied or recorded. Saves nothing.
///
/// # Errors
/// p outside [0, 1); a dtype other than f32 and f64.
pub fn dropout(x: &Var, p: f64, stream: Stream) -> Result<Var> {
    let y = kernel::forward(x.value(), p, stream)?;
    if p == 0.0 {
        return Ok(x.clone());
    }
    record1(&OP, &[x], y, || {
        move |grads: &mut Grads<'_>| {
            let dx = kernel::backward(grads.upstream(), p, stream)?;
            grads.add(0, dx)
        }
    })
}
