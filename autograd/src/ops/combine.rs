//! What a token's experts made of it, weighed and added up.

use planish_tensor::ops::combine as kernel;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op = Op {
    name: "combine",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("combine"),
    fixture: Fixture::None("it weighs rows and adds them: gradcheck and unit tests say all there is to say"),
};

/// y_t = Σ_j w_tj parts_(places_(t k + j)), in order of j; see [`kernel`].
///
/// Backward: dparts_(places_c) = w_c dy_t, dw_c = parts_(places_c) · dy_t for each choice c of token t. Saves parts, w and places.
///
/// # Errors
/// Shapes or dtypes that do not agree; places that are not each row of parts once.
pub fn combine(parts: &Var, weights: &Var, places: &[u32]) -> Result<Var> {
    let y = kernel::forward(parts.value(), weights.value(), places)?;
    record1(&OP, &[parts, weights], y, || {
        let (parts, weights, places) = (parts.saved(), weights.value().clone(), places.to_vec());
        move |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream();
            let (dparts, dw) = kernel::backward(&dy, &parts.get()?, &weights, &places, grads.wants(0))?;
            if let Some(dparts) = dparts {
                grads.add(0, dparts)?;
            }
            if grads.wants(1) { grads.add(1, dw) } else { Ok(()) }
        }
    })
}
