//! Dropout with a mask that is drawn again, not saved.

use planish_tensor::ops::dropout as kernel;
use planish_tensor::rng::Rows;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op = Op {
    name: "dropout",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("dropout"),
    fixture: Fixture::None("its masks are its own: their share and their scale are tested"),
};

/// y_i = x_i / (1 - p) with probability 1 - p, else 0, as the word of the element's row and column says.
///
/// x: (…, columns), with a row of `rows` for each of its rows. p = 0 is the identity: nothing is copied
/// or recorded. Saves the rows' keys.
///
/// # Errors
/// Keys that are not one for each row of x; p outside [0, 1); a dtype other than f32 and f64.
pub fn dropout(x: &Var, p: f64, rows: &Rows) -> Result<Var> {
    let y = kernel::forward(x.value(), p, rows)?;
    if p == 0.0 {
        return Ok(x.clone());
    }
    record1(&OP, &[x], y, || {
        let rows = rows.clone();
        move |grads: &mut Grads<'_>| {
            let dx = kernel::backward(grads.upstream(), p, &rows)?;
            grads.add(0, dx)
        }
    })
}
