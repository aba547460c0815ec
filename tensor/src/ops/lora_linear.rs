//! A linear map with a low-rank update: y = x Wᵀ + b + s · drop(x) Aᵀ Bᵀ.
//!
//! x: (…, in), W: (out, in) in any float dtype or [quantised](crate::quant), A: (r, in), B: (out, r), y: (…, out). The low-rank
//! product is added to the base product element by element, so with B = 0 the result is the base's,
//! bit for bit. Bound by the base product: the update costs r (in + out) / (in · out) of it.
//!
//! # Source
//! Hu et al., "LoRA", arXiv:2106.09685, equation 3; dropout on the update's input as in PEFT.

use super::elementwise::add_assign;
use super::left::{self, Map};
use super::linear::{self, flat, matmul, matmul_into, matrix, scaled_matmul};
use crate::device::{self, ops::linear as on_device};
use crate::gemm::{Mat, Store, gemm, gemm_update};
use crate::rng::Rows;
use crate::{DType, Error, Real, Result, Tensor, dispatch_real};

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

/// Checks A (r, in) and B (out, r) against W (out, in).
pub(crate) fn check_parts(op: &'static str, weight: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
    let fit = weight.rank() == 2 && a.rank() == 2 && b.rank() == 2;
    if !fit || a.dims()[1] != weight.dims()[1] || b.dims() != [weight.dims()[0], a.dims()[0]] {
        let (lhs, rhs) = (a.dims().to_vec(), b.dims().to_vec());
        return Err(Error::ShapeMismatch { op, what: "A (r, in) and B (out, r) against weight", lhs, rhs });
    }
    Ok(())
}

/// A B + U V + a bias on each row, in the dtype of A: the update's tile is added while it is in cache.
fn product_and_update(a: &Tensor, b: &Tensor, u: &Tensor, v: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if left::takes(a) {
        let map = Map { update: Some((u, v)), ..Map::plain(b, bias) };
        return Ok(left::products(OP, a, &[map])?.swap_remove(0));
    }
    let (rows, cols) = (a.dims()[0], b.dims()[1]);
    let mut c = a.scratch_beside(OP, [rows, cols], a.dtype())?;
    if let Some(on) = device::of(OP, [a, b, u, v].into_iter().chain(bias))? {
        on_device::product(&on, (a, b), Some((u, v)), bias, &mut c, Store::Set)?;
        return Ok(c);
    }
    let v = v.to_dtype(a.dtype())?;
    match a.dtype() {
        DType::F32 => linear::with_right!(OP, b, b => {
            let out = c.as_slice_mut::<f32>()?;
            gemm_update::<f32, _, _>(matrix(a), b, matrix(u), matrix::<f32>(&v), out, Store::Set);
        }),
        DType::F64 => {
            let b = b.to_dtype(DType::F64)?;
            let out = c.as_slice_mut::<f64>()?;
            gemm_update::<f64, _, _>(matrix(a), matrix::<f64>(&b), matrix(u), matrix::<f64>(&v), out, Store::Set);
        }
        dtype => return Err(Error::UnsupportedDType { op: OP, dtype }),
    }
    bias.map_or(Ok(()), |bias| linear::add_bias(&mut c, bias))?;
    Ok(c)
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
    let flat_x = flat(x, OP)?;
    linear::check(&flat_x, weight, bias)?;
    check_parts(OP, weight, a, b)?;
    let out = weight.dims()[0];
    let h = scaled_matmul(&flat(&dropped(x, lora)?, OP)?, &a.transpose(0, 1)?, x.dtype(), lora.scale)?;
    let y = product_and_update(&flat_x, &weight.transpose(0, 1)?, &h, &b.transpose(0, 1)?, bias)?;
    let mut dims = x.dims().to_vec();
    *dims.last_mut().expect("flat() refuses scalars") = out;
    Ok((y.reshape(dims)?, h))
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
    let flat_dy = flat(dy, OP)?.contiguous()?;
    if let Some(db) = wanted.b {
        add_transposed_product(h, &flat_dy, db)?;
    }
    if wanted.a.is_none() && !wanted.input {
        return Ok(None);
    }
    let u = scaled_matmul(&flat_dy, b, dy.dtype(), lora.scale)?;
    if let Some(da) = wanted.a {
        matmul_into(&u.transpose(0, 1)?, &flat(&dropped(x, lora)?, OP)?, da, Store::Add)?;
    }
    if !wanted.input {
        return Ok(None);
    }
    let dx = match &lora.dropout {
        None => product_and_update(&flat_dy, weight, &u, a, None)?,
        Some((p, rows)) => {
            let mut dx = matmul(&flat_dy, weight, dy.dtype())?;
            let through = matmul(&u, a, dy.dtype())?;
            add_assign(&mut dx, &super::dropout::backward(&through, *p, rows)?)?;
            dx
        }
    };
    dx.reshape(x.shape()).map(Some)
}

/// C (out, r) += Dᵀ H with D (rows, out) and H (rows, r), as (Hᵀ D)ᵀ: the wide matrix is then the packed one,
/// row by row, and the narrow one is transposed.
fn add_transposed_product(h: &Tensor, d: &Tensor, c: &mut Tensor) -> Result<()> {
    let (rows, r, out) = (h.dims()[0], h.dims()[1], d.dims()[1]);
    if c.dims() != [out, r] || d.dims()[0] != rows {
        let (lhs, rhs) = (d.dims().to_vec(), c.dims().to_vec());
        return Err(Error::ShapeMismatch { op: OP, what: "dy (rows, out) against dB (out, r)", lhs, rhs });
    }
    if let Some(on) = device::of(OP, [h, d, &*c])? {
        return on_device::product(&on, (&d.transpose(0, 1)?, h), None, None, c, Store::Add);
    }
    let mut product = Tensor::scratch([r, out], c.dtype())?;
    dispatch_real!(OP, c.dtype(), R => {
        let (h, d) = (h.as_slice::<R>()?, d.as_slice::<R>()?);
        let product = product.as_slice_mut::<R>()?;
        gemm(Mat::new(h, rows, r).t(), Mat::new(d, rows, out), product, Store::Set);
        transpose_add(product, c.as_slice_mut::<R>()?, out);
    });
    Ok(())
}

/// c[o, i] += p[i, o] with p (r, out).
fn transpose_add<R: Real>(p: &[R], c: &mut [R], out: usize) {
    let r = c.len() / out.max(1);
    for (o, c) in c.chunks_exact_mut(r.max(1)).enumerate() {
        for (i, c) in c.iter_mut().enumerate() {
            *c += p[i * out + o];
        }
    }
}
