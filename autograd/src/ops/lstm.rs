//! One direction of a layer of an LSTM.

use planish_tensor::ops::lstm as kernel;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op =
    Op { name: "lstm", backward: Backward::Rule, cuda: Cuda::Kernel("lstm"), fixture: Fixture::Torch("lstm") };

/// h (steps, hidden) from the input's share of the gates (steps, 4 hidden) and W_hh (4 hidden, hidden); see [`kernel`].
/// Saves W_hh, the gates, the cells and h.
///
/// # Errors
/// Shapes that do not agree.
pub fn lstm(gates: &Var, w_hh: &Var, reverse: bool) -> Result<Var> {
    let (h, saved) = kernel::forward(gates.value(), w_hh.value(), reverse)?;
    record1(&OP, &[gates, w_hh], h, || {
        let w = w_hh.value().clone();
        move |grads: &mut Grads<'_>| {
            let (dgates, dw) = kernel::backward(grads.upstream(), &w, &saved, reverse)?;
            grads.add(0, dgates)?;
            grads.add(1, dw)
        }
    })
}
