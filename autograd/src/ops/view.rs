//! Views: no element is computed, gradients go back where the elements came from.

use planish_tensor::ops::reduction::sum_to;
use planish_tensor::ops::view as kernel;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

const MOVES: Fixture = Fixture::None("it moves elements: gradcheck says all there is to say");

/// Registry entry of broadcast_to.
pub static BROADCAST_TO: Op =
    Op { name: "broadcast_to", backward: Backward::Rule, cuda: Cuda::Kernel("copy"), fixture: MOVES };
/// Registry entry of narrow.
pub static NARROW: Op = Op { name: "narrow", backward: Backward::Rule, cuda: Cuda::Kernel("copy"), fixture: MOVES };
/// Registry entry of reshape.
pub static RESHAPE: Op = Op { name: "reshape", backward: Backward::Rule, cuda: Cuda::Kernel("copy"), fixture: MOVES };
/// Registry entry of transpose.
pub static TRANSPOSE: Op =
    Op { name: "transpose", backward: Backward::Rule, cuda: Cuda::Kernel("copy"), fixture: MOVES };

/// Elements `start..start + len` along `axis`.
///
/// # Errors
/// A range outside x.
pub fn narrow(x: &Var, axis: usize, start: usize, len: usize) -> Result<Var> {
    record1(&NARROW, &[x], x.value().narrow(axis, start, len)?, || {
        move |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream();
            grads.add_with(0, |dx| kernel::narrow_backward_add(&dy, axis, start, dx))
        }
    })
}

/// The same elements under another shape.
///
/// # Errors
/// Another number of elements.
pub fn reshape(x: &Var, shape: &[usize]) -> Result<Var> {
    record1(&RESHAPE, &[x], x.value().reshape(shape)?, || {
        let shape = x.dims().to_vec();
        move |grads: &mut Grads<'_>| {
            let dx = grads.upstream().reshape(shape)?;
            grads.add(0, dx)
        }
    })
}

/// Dimensions `a` and `b` exchanged.
///
/// # Errors
/// An axis outside x.
pub fn transpose(x: &Var, a: usize, b: usize) -> Result<Var> {
    record1(&TRANSPOSE, &[x], x.value().transpose(a, b)?, || {
        move |grads: &mut Grads<'_>| {
            let dx = grads.upstream().transpose(a, b)?;
            grads.add(0, dx)
        }
    })
}

/// Stretched to `shape` by NumPy's rule, without a copy. Backward sums up what was stretched.
///
/// # Errors
/// A shape that x does not stretch to.
pub fn broadcast_to(x: &Var, shape: &[usize]) -> Result<Var> {
    record1(&BROADCAST_TO, &[x], x.value().broadcast_to(shape)?, || {
        let shape = x.dims().to_vec();
        move |grads: &mut Grads<'_>| {
            let dx = sum_to(grads.upstream(), &shape)?;
            grads.add(0, dx)
        }
    })
}
