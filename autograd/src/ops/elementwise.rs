//! Elementwise arithmetic. Two operands are stretched to a common shape by NumPy's rule; their gradients are
//! summed back to their own.

use planish_tensor::ops::elementwise as kernel;
use planish_tensor::ops::reduction::sum_to;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

const ARITHMETIC: Fixture = Fixture::None("one arithmetic operation: gradcheck says all there is to say");

/// Registry entry of addition.
pub static ADD: Op =
    Op { name: "add", backward: Backward::Rule, cuda: Cuda::Kernel("elementwise"), fixture: ARITHMETIC };
/// Registry entry of subtraction.
pub static SUB: Op =
    Op { name: "sub", backward: Backward::Rule, cuda: Cuda::Kernel("elementwise"), fixture: ARITHMETIC };
/// Registry entry of multiplication.
pub static MUL: Op =
    Op { name: "mul", backward: Backward::Rule, cuda: Cuda::Kernel("elementwise"), fixture: ARITHMETIC };
/// Registry entry of division.
pub static DIV: Op =
    Op { name: "div", backward: Backward::Rule, cuda: Cuda::Kernel("elementwise"), fixture: ARITHMETIC };
/// Registry entry of scaling.
pub static SCALE: Op =
    Op { name: "scale", backward: Backward::Rule, cuda: Cuda::Kernel("elementwise"), fixture: ARITHMETIC };
/// Registry entry of adding a number.
pub static ADD_SCALAR: Op =
    Op { name: "add_scalar", backward: Backward::Rule, cuda: Cuda::Kernel("elementwise"), fixture: ARITHMETIC };

/// a + b.
///
/// # Errors
/// Shapes that do not stretch to each other; dtypes that differ or are neither f32 nor f64.
pub fn add(a: &Var, b: &Var) -> Result<Var> {
    record1(&ADD, &[a, b], kernel::add(a.value(), b.value())?, || {
        let shapes = [a.dims().to_vec(), b.dims().to_vec()];
        move |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream();
            for (i, shape) in shapes.iter().enumerate() {
                if grads.wants(i) {
                    grads.add(i, sum_to(&dy, shape)?)?;
                }
            }
            Ok(())
        }
    })
}

/// a - b.
///
/// # Errors
/// As [`add`].
pub fn sub(a: &Var, b: &Var) -> Result<Var> {
    record1(&SUB, &[a, b], kernel::sub(a.value(), b.value())?, || {
        let shapes = [a.dims().to_vec(), b.dims().to_vec()];
        move |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream();
            if grads.wants(0) {
                grads.add(0, sum_to(&dy, &shapes[0])?)?;
            }
            if grads.wants(1) {
                grads.add(1, kernel::scale(&sum_to(&dy, &shapes[1])?, -1.0)?)?;
            }
            Ok(())
        }
    })
}

/// a · b. Saves both.
///
/// # Errors
/// As [`add`].
pub fn mul(a: &Var, b: &Var) -> Result<Var> {
    record1(&MUL, &[a, b], kernel::mul(a.value(), b.value())?, || {
        let (a, b) = (a.value().clone(), b.value().clone());
        move |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream();
            if grads.wants(0) {
                grads.add(0, kernel::mul_backward(&dy, &b, a.dims())?)?;
            }
            if grads.wants(1) {
                grads.add(1, kernel::mul_backward(&dy, &a, b.dims())?)?;
            }
            Ok(())
        }
    })
}

/// a / b. Saves both.
///
/// # Errors
/// As [`add`].
pub fn div(a: &Var, b: &Var) -> Result<Var> {
    record1(&DIV, &[a, b], kernel::div(a.value(), b.value())?, || {
        let (a, b) = (a.value().clone(), b.value().clone());
        move |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream();
            let found = kernel::div_backward(&dy, &a, &b, [grads.wants(0), grads.wants(1)])?;
            for (i, gradient) in found.into_iter().enumerate() {
                if let Some(gradient) = gradient {
                    grads.add(i, gradient)?;
                }
            }
            Ok(())
        }
    })
}

/// -a.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn neg(a: &Var) -> Result<Var> {
    scale(a, -1.0)
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

/// a + number.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn add_scalar(a: &Var, number: f64) -> Result<Var> {
    record1(&ADD_SCALAR, &[a], kernel::add_scalar(a.value(), number)?, || {
        |grads: &mut Grads<'_>| {
            let da = grads.take_upstream();
            grads.add(0, da)
        }
    })
}
