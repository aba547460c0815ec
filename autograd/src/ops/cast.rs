//! Another dtype.

use planish_tensor::{DType, Error};

use crate::param::grad_dtype;
use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op = Op {
    name: "cast",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("cast"),
    fixture: Fixture::None("rounding is tested bit by bit where it is done"),
};

/// The same numbers as `dtype`, rounded to nearest even where it is narrower; x itself if it has that dtype.
///
/// Backward: the gradient in the compute dtype of x (f64 for f64, else f32): rounding counts as the identity.
///
/// # Errors
/// A tracked x and a `dtype` that is no float: no gradient could come back.
pub fn cast(x: &Var, dtype: DType) -> Result<Var> {
    if x.value().dtype() == dtype {
        return Ok(x.clone());
    }
    if x.is_tracked() && !dtype.is_float() {
        return Err(Error::UnsupportedDType { op: OP.name, dtype }.into());
    }
    record1(&OP, &[x], x.value().to_dtype(dtype)?, || {
        let from = grad_dtype(x.value().dtype());
        move |grads: &mut Grads<'_>| {
            let dx = grads.upstream().to_dtype(from)?;
            grads.add(0, dx)
        }
    })
}
