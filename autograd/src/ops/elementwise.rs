//! Elementwise arithmetic.

use planish_tensor::ops::elementwise as kernel;

use crate::registry::{Backward, CUDA_LATER, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

const ARITHMETIC: Fixture = Fixture::None("one arithmetic operation: gradcheck says all there is to say");

/// Registry entry of addition.
pub static ADD: Op = Op { name: "add", backward: Backward::Rule, cuda: CUDA_LATER, fixture: ARITHMETIC };
/// Registry entry of scaling.
pub static SCALE: Op = Op { name: "scale", backward: Backward::Rule, cuda: CUDA_LATER, fixture: ARITHMETIC };

/// a + b, of one shape and dtype.
///
/// # Errors
/// Shapes or dtypes that differ.
pub fn add(a: &Var, b: &Var) -> Result<Var> {
    record1(&ADD, &[a, b], kernel::add(a.value(), b.value())?, || {
        |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream();
            grads.add(0, dy.clone())?;
            grads.add(1, dy)
        }
    })
}

/// a · factor.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn scale(a: &Var, factor: f64) -> Result<Var> {
    record1(&SCALE, &[a], kernel::scale(a.value(), factor)?, || {
        move |grads: &mut Grads<'_>| {
            let da = kernel::scale(grads.upstream(), factor)?;
            grads.add(0, da)
        }
    })
}
