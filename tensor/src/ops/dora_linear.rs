//! A linear map whose rows have a trained length: with d = drop(x) and V = W + s·B A,
//!
//! y = (x - d) Wᵀ + g ⊙ (d Vᵀ) + b,  g_o = m_o / n_o,  n_o = ‖V_o‖₂
//!
//! x: (…, in), W: (out, in) in any float dtype, A: (r, in), B: (out, r), m, n, g, b: (out), y: (…, out). Without
//! dropout d is x and y = g ⊙ (x Vᵀ) + b. V never exists: d Vᵀ = d Wᵀ + s·(d Aᵀ) Bᵀ, as in [`super::lora_linear`],
//! and its row norms n are made by [`row_norms`] a row at a time. n is a constant to the gradient.
//!
//! Bound by the base product (two of them with dropout); the norms cost 2 r out in operations a pass, as much as
//! the base product of r rows.
//!
//! # Source
//! Liu et al., "DoRA", arXiv:2402.09353, equation 5; the norm held constant: section 4.3; dropout as in PEFT.

use super::elementwise::{add_assign, mul, sub};
use super::linear::{self, flat, matmul};
use super::lora_linear::{self, Lora};
use super::{check, dropout};
use crate::device::{self, ops::dora_linear as on_device};
use crate::gemm::Right;
use crate::quant::PackedMat;
use crate::reduce::dot;
use crate::{DType, Float, Real, Result, Tensor, dispatch_float, dispatch_real, parallel};

const OP: &str = "dora_linear";

/// Rows of V that a task takes at a time.
const ROWS: usize = 16;

crate::simd::simd_fn! {
    /// v = w + Σ_k c_k A_k, in the order of k.
    fn updated_row<R: Real, W: Float>(v: &mut [R], w: &[W], coefficients: &[R], a: &[R]) {
        let width = v.len();
        for (v, w) in v.iter_mut().zip(w) {
            *v = w.widen();
        }
        for (&c, a) in coefficients.iter().zip(a.chunks_exact(width.max(1))) {
            for (v, &a) in v.iter_mut().zip(a) {
                *v = c.mul_add(a, *v);
            }
        }
    }
}

/// n_o = ‖W_o + s·B_o A‖₂: (out), in the dtype of A.
///
/// # Errors
/// Shapes that do not agree; A of a dtype other than f32 and f64.
pub fn row_norms(weight: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    lora_linear::check_parts(OP, weight, a, b)?;
    if let Some(on) = device::of(OP, [weight, a, b])? {
        return on_device::row_norms(&on, weight, a, b, scale);
    }
    let (out, input, r) = (weight.dims()[0], weight.dims()[1], a.dims()[0]);
    if let Some(packed) = PackedMat::of(weight)
        && a.dtype() == DType::F32
    {
        return packed_row_norms(packed, a, b, scale);
    }
    let dtype = if weight.quantized().is_some() { a.dtype() } else { weight.dtype() };
    let (weight, a) = (weight.to_dtype(dtype)?.contiguous()?, a.contiguous()?);
    let b = super::elementwise::scale(&b.to_dtype(a.dtype())?, scale)?.contiguous()?;
    let mut norms = Tensor::zeros([out], a.dtype())?;
    dispatch_real!(OP, a.dtype(), R => dispatch_float!(OP, weight.dtype(), W => {
        let (w, a, b) = (weight.as_slice::<W>()?, a.as_slice::<R>()?, b.as_slice::<R>()?);
        let blocks = parallel::map(out.div_ceil(ROWS), |block| {
            let mut v = vec![R::ZERO; input];
            let rows = block * ROWS..out.min((block + 1) * ROWS);
            rows.map(|o| {
                updated_row(&mut v, &w[o * input..(o + 1) * input], &b[o * r..(o + 1) * r], a);
                dot(&v, &v).sqrt()
            }).collect::<Vec<R>>()
        });
        norms.as_slice_mut::<R>()?.iter_mut().zip(blocks.into_iter().flatten()).for_each(|(n, x)| *n = x);
    }));
    Ok(norms)
}

/// [`row_norms`] of a quantised weight, a row at a time.
fn packed_row_norms(weight: PackedMat<'_>, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let (out, input, r) = (weight.rows(), weight.cols(), a.dims()[0]);
    let a = a.contiguous()?;
    let b = super::elementwise::scale(&b.to_dtype(a.dtype())?, scale)?.contiguous()?;
    let mut norms = Tensor::zeros([out], DType::F32)?;
    let (a, b) = (a.as_slice::<f32>()?, b.as_slice::<f32>()?);
    let blocks = parallel::map(out.div_ceil(ROWS), |block| {
        let (mut w, mut v) = (vec![0f32; input], vec![0f32; input]);
        let rows = block * ROWS..out.min((block + 1) * ROWS);
        rows.map(|o| {
            weight.read_row(o, &mut w);
            updated_row(&mut v, &w, &b[o * r..(o + 1) * r], a);
            dot(&v, &v).sqrt()
        })
        .collect::<Vec<f32>>()
    });
    norms.as_slice_mut::<f32>()?.iter_mut().zip(blocks.into_iter().flatten()).for_each(|(n, x)| *n = x);
    Ok(norms)
}

/// What the forward pass gives.
pub struct Output {
    /// y.
    pub y: Tensor,
    /// d Vᵀ: (rows, out), which the backward pass needs.
    pub z: Tensor,
    /// s · d Aᵀ: (rows, r), likewise.
    pub h: Tensor,
}

fn dropped(x: &Tensor, lora: &Lora) -> Result<Option<Tensor>> {
    lora.dropout.as_ref().map(|(p, rows)| dropout::forward(x, *p, rows)).transpose()
}

/// g = m / n. A row of zeros has no direction: it stays zero.
fn gain(magnitude: &Tensor, norms: &Tensor) -> Result<Tensor> {
    check::same(OP, "magnitude against norms", magnitude, norms)?;
    if let Some(on) = device::of(OP, [magnitude, norms])? {
        return on_device::gain(&on, magnitude, norms);
    }
    let mut gain = magnitude.contiguous()?.copied()?;
    let norms = norms.contiguous()?;
    dispatch_real!(OP, gain.dtype(), R => {
        for (g, &n) in gain.as_slice_mut::<R>()?.iter_mut().zip(norms.as_slice::<R>()?) {
            *g = if n == R::ZERO { R::ZERO } else { *g / n };
        }
    });
    Ok(gain)
}

/// x ⊙ g of each row. On a device x may be a half, which the product is rounded to.
fn columns(x: &Tensor, gain: &Tensor) -> Result<Tensor> {
    match device::of(OP, [x, gain])? {
        Some(on) => on_device::columns(&on, x, gain),
        None => mul(x, gain),
    }
}

/// y and what the backward pass needs. `norms` are those of [`row_norms`].
///
/// # Errors
/// Shapes that do not agree; x of a dtype other than f32 and f64.
pub fn forward(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    (a, b): (&Tensor, &Tensor),
    (magnitude, norms): (&Tensor, &Tensor),
    lora: &Lora,
) -> Result<Output> {
    let x = flat(x, OP).map(|flat| (flat, x.dims().to_vec()))?;
    let ((x, mut dims), plain) = (x, Lora { scale: lora.scale, dropout: None });
    linear::check(&x, weight, bias)?;
    check::shape(OP, "magnitude against weight (out, in)", magnitude, &weight.dims()[..1])?;
    let gain = gain(magnitude, norms)?;
    let d = dropped(&x, lora)?;
    let (z, h) = lora_linear::forward(d.as_ref().unwrap_or(&x), weight, None, a, b, &plain)?;
    let mut y = columns(&z, &gain)?;
    if let Some(d) = &d {
        add_assign(&mut y, &matmul(&sub(&x, d)?, &weight.transpose(0, 1)?, x.dtype())?)?;
    }
    if let Some(bias) = bias {
        linear::add_bias(&mut y, bias)?;
    }
    *dims.last_mut().expect("flat() refuses scalars") = weight.dims()[0];
    Ok(Output { y: y.reshape(dims)?, z, h })
}

/// Which gradients the caller wants, and where to add those of the parameters.
pub struct Wanted<'a> {
    /// Whether dx is wanted.
    pub input: bool,
    /// dA += here.
    pub a: Option<&'a mut Tensor>,
    /// dB += here.
    pub b: Option<&'a mut Tensor>,
    /// dm += here.
    pub magnitude: Option<&'a mut Tensor>,
}

/// Gradients of x, A, B and m. With dz = g ⊙ dy: those of A, B and d are those of [`lora_linear`] under dz;
/// dm_o += Σ dy_o z_o / n_o over rows; dx = dd, or with dropout dy W + undrop(dd - dy W).
///
/// # Errors
/// As [`forward`].
pub fn backward(
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    (a, b): (&Tensor, &Tensor),
    (magnitude, norms): (&Tensor, &Tensor),
    (z, h): (&Tensor, &Tensor),
    lora: &Lora,
    wanted: Wanted<'_>,
) -> Result<Option<Tensor>> {
    let (flat_dy, flat_x) = (flat(dy, OP)?.contiguous()?, flat(x, OP)?);
    if let Some(dm) = wanted.magnitude {
        let mut sums = Tensor::zeros_on(magnitude.device(), magnitude.shape(), magnitude.dtype())?;
        linear::backward_bias_add(&mul(&flat_dy, z)?, &mut sums)?;
        add_assign(dm, &gain(&sums, norms)?)?;
    }
    if wanted.a.is_none() && wanted.b.is_none() && !wanted.input {
        return Ok(None);
    }
    let dz = columns(&flat_dy, &gain(magnitude, norms)?)?;
    let d = dropped(&flat_x, lora)?;
    let plain = Lora { scale: lora.scale, dropout: None };
    let parts = lora_linear::Wanted { input: wanted.input, a: wanted.a, b: wanted.b };
    let dd = lora_linear::backward(&dz, d.as_ref().unwrap_or(&flat_x), weight, a, b, h, &plain, parts)?;
    let Some(dd) = dd else { return Ok(None) };
    let dx = match &lora.dropout {
        None => dd,
        Some((p, rows)) => {
            let mut dx = matmul(&flat_dy, weight, dy.dtype())?;
            let through = sub(&dd, &dx)?;
            add_assign(&mut dx, &dropout::backward(&through, *p, rows)?)?;
            dx
        }
    };
    dx.reshape(x.shape()).map(Some)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{bits, random, same_bits_on_any_threads, values};
    use super::*;

    /// With B = 0 and m the norms, the map is the base's to the bit.
    #[test]
    fn a_fresh_adapter_changes_nothing() {
        let (x, w, a) =
            (random(&[5, 40], DType::F32, 0), random(&[9, 40], DType::BF16, 1), random(&[3, 40], DType::F32, 2));
        let b = Tensor::zeros([9, 3], DType::F32).unwrap();
        let norms = row_norms(&w, &a, &b, 2.0).unwrap();
        let lora = Lora { scale: 2.0, dropout: None };
        let y = forward(&x, &w, None, (&a, &b), (&norms, &norms), &lora).unwrap().y;
        assert_eq!(bits(&y), bits(&linear::forward(&x, &w, None).unwrap()));
    }

    #[test]
    fn norms_are_those_of_the_updated_rows() {
        let (w, a, b) =
            (random(&[37, 21], DType::F64, 1), random(&[4, 21], DType::F64, 2), random(&[37, 4], DType::F64, 3));
        let delta = super::super::elementwise::scale(&matmul(&b, &a, DType::F64).unwrap(), 0.7).unwrap();
        let v = values(&super::super::elementwise::add(&w, &delta).unwrap());
        let got = values(&row_norms(&w, &a, &b, 0.7).unwrap());
        for (row, got) in v.chunks_exact(21).zip(got) {
            let want = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            assert!((got - want).abs() <= 1e-13 * want, "{got} is not {want}");
        }
        same_bits_on_any_threads(|| {
            let f32 = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
            vec![row_norms(&f32(&w), &f32(&a), &f32(&b), 0.7).unwrap()]
        });
    }

    #[test]
    fn a_row_of_zeros_stays_zero() {
        let zero = Tensor::zeros([1, 3], DType::F32).unwrap();
        let (a, b) = (random(&[2, 3], DType::F32, 0), Tensor::zeros([1, 2], DType::F32).unwrap());
        let n = row_norms(&zero, &a, &b, 1.0).unwrap();
        let lora = Lora { scale: 1.0, dropout: None };
        let y = forward(&random(&[1, 3], DType::F32, 1), &zero, None, (&a, &b), (&n, &n), &lora).unwrap().y;
        assert_eq!(y.to_vec::<f32>().unwrap(), [0.0]);
    }
}
