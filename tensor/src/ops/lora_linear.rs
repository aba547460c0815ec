//! A linear map with a low-rank update: y = x Wᵀ + b + s · drop(x) Aᵀ Bᵀ.
//!
//! x: (…, in), W: (out, in) in any float dtype, A: (r, in), B: (out, r), y: (…, out). The low-rank
//! product is added to the base product element by element, so with B = 0 the result is the base's,
//! bit for bit. Bound by the base product: the update costs r (in + out) / (in · out) of it.
//!
//! # Source
//! Hu et al., "LoRA", arXiv:2106.09685, equation 3; dropout on the update's input as in PEFT.

use super::elementwise::scale;
use super::linear::{self, flat, matmul, matmul_into};
use crate::gemm::Store;
use crate::rng::Rows;
use crate::{Error, Result, Tensor};

const OP: &str = "lora_linear";

/// The update's scale s and dropout.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// s: alpha / r, or alpha / sqrt(r) for rsLoRA.
    pub scale: f64,
    /// Dropout probability and this module's random numbers, a row for each row of x.
    pub dropout: Option<(f64, Rows)>,
}

/// What the update's input is after dropout.
fn dropped(x: &Tensor, lora: &Lora) -> Result<Tensor> {
    match &lora.dropout {
        Some((p, rows)) => super::dropout::forward(x, *p, rows),
        None => Ok(x.clone()),
    }
}

/// Returns (y, h) with h = s · drop(x) Aᵀ: (rows, r), which the backward pass needs.
///
/// # Errors
/// Shapes that do not agree; x of a dtype other than f32 and f64.
pub fn forward(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    a: &Tensor,
    b: &Tensor,
    lora: &Lora,
) -> Result<(Tensor, Tensor)> {
    let y = linear::forward(x, weight, bias)?;
    let (out, input) = (weight.dims()[0], weight.dims()[1]);
    if a.rank() != 2 || b.rank() != 2 || a.dims()[1] != input || b.dims() != [out, a.dims()[0]] {
        let (lhs, rhs) = (a.dims().to_vec(), b.dims().to_vec());
        return Err(Error::ShapeMismatch { op: OP, what: "A (r, in) and B (out, r) against weight", lhs, rhs });
    }
    let h = matmul(&flat(&dropped(x, lora)?, OP)?, &a.transpose(0, 1)?, x.dtype())?;
    let h = scale(&h, lora.scale)?;
    let dims = y.dims().to_vec();
    let mut flat_y = flat(&y, OP)?;
    drop(y);
    matmul_into(&h, &b.transpose(0, 1)?, &mut flat_y, Store::Add)?;
    Ok((flat_y.reshape(dims)?, h))
}

/// Which gradients the caller wants, and where to add those of A and B.
pub struct Wanted<'a> {
    /// Whether dx is wanted.
    pub input: bool,
    /// dA += here.
    pub a: Option<&'a mut Tensor>,
    /// dB += here.
    pub b: Option<&'a mut Tensor>,
}

/// Gradients of x, A and B. With u = s · dy B: dB += dyᵀ h, dA += uᵀ drop(x),
/// dx = dy W + undrop(u A).
///
/// # Errors
/// As [`forward`].
pub fn backward(
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    a: &Tensor,
    b: &Tensor,
    h: &Tensor,
    lora: &Lora,
    wanted: Wanted<'_>,
) -> Result<Option<Tensor>> {
    let flat_dy = flat(dy, OP)?;
    if let Some(db) = wanted.b {
        matmul_into(&flat_dy.transpose(0, 1)?, h, db, Store::Add)?;
    }
    if wanted.a.is_none() && !wanted.input {
        return Ok(None);
    }
    let u = scale(&matmul(&flat_dy, b, dy.dtype())?, lora.scale)?;
    if let Some(da) = wanted.a {
        matmul_into(&u.transpose(0, 1)?, &flat(&dropped(x, lora)?, OP)?, da, Store::Add)?;
    }
    if !wanted.input {
        return Ok(None);
    }
    let mut dx = matmul(&flat_dy, weight, dy.dtype())?;
    match &lora.dropout {
        None => matmul_into(&u, a, &mut dx, Store::Add)?,
        Some((p, rows)) => {
            let through = matmul(&u, a, dy.dtype())?;
            super::elementwise::add_assign(&mut dx, &super::dropout::backward(&through, *p, rows)?)?;
        }
    }
    dx.reshape(x.shape()).map(Some)
}
