//! RMSNorm: y = x · r · (w + offset), r = 1 / sqrt(mean x² + ε), over the last dimension.
//!
//! x: (…, size) in f32 or f64, w: (size) in any float dtype, r: (rows). `offset` is 1 for Gemma, which
//! stores w - 1. The mean is summed in 16 lanes, so a row's result depends on the row alone.
//! Bound by memory: one read and one write of x.
//!
//! # Source
//! Zhang, Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467.

use crate::device;
use crate::reduce::{column_sums, dot};
use crate::simd::simd_fn;
use crate::{Element, Error, Real, Result, Tensor, dispatch_real, parallel};

const OP: &str = "rms_norm";

/// Checks the weight against the rows.
fn fits(x: &Tensor, weight: &Tensor) -> Result<()> {
    let (_, size) = x.rows(OP)?;
    if weight.dims() != [size] {
        let (lhs, rhs) = (x.dims().to_vec(), weight.dims().to_vec());
        return Err(Error::ShapeMismatch { op: OP, what: "last size of x against weight", lhs, rhs });
    }
    Ok(())
}

/// The weight plus the offset, in the compute dtype of x.
fn gain(x: &Tensor, weight: &Tensor, offset: f64) -> Result<Tensor> {
    fits(x, weight)?;
    let mut gain = weight.to_dtype(x.dtype())?.contiguous()?;
    if offset != 0.0 {
        dispatch_real!(OP, x.dtype(), R => {
            for w in gain.as_slice_mut::<R>()? {
                *w += <R as Element>::from_f64(offset);
            }
        });
    }
    Ok(gain)
}

/// Returns (y, r).
///
/// # Errors
/// Shapes that do not agree; x of a dtype other than f32 and f64; ε that is negative or not finite.
pub fn forward(x: &Tensor, weight: &Tensor, eps: f64, offset: f64) -> Result<(Tensor, Tensor)> {
    if !(eps >= 0.0 && eps.is_finite()) {
        return Err(Error::InvalidValue { op: OP, name: "eps", value: eps, expected: "finite and not negative" });
    }
    let (rows, size) = x.rows(OP)?;
    if let Some(on) = device::of(OP, [x, weight])? {
        fits(x, weight)?;
        return device::ops::norms::rms_forward(&on, x, weight, eps, offset);
    }
    let (gain, x) = (gain(x, weight, offset)?, x.contiguous()?);
    let (mut y, mut r) = (Tensor::scratch(x.shape(), x.dtype())?, Tensor::scratch([rows], x.dtype())?);
    dispatch_real!(OP, x.dtype(), R => {
        parallel::later::<R, 2>([(&mut y, size), (&mut r, 1)], move |first, [y, r]| {
            let (data, gain) = (x.checked::<R>(), gain.checked::<R>());
            for (i, (y, r)) in y.chunks_exact_mut(size).zip(r).enumerate() {
                *r = norm_row(y, &data[(first + i) * size..][..size], gain, eps);
            }
        })?;
    });
    Ok((y, r))
}

/// A row's y; returns its r.
fn norm_row<R: Real>(y: &mut [R], x: &[R], gain: &[R], eps: f64) -> R {
    let mean = dot(x, x) / R::from_f64(x.len() as f64);
    let r = R::ONE / (mean + <R as Element>::from_f64(eps)).sqrt();
    scale_row(y, x, gain, r);
    r
}

/// (x + added, y and r of it) in one pass: what [`add`](super::elementwise::add) and [`forward`] give one after the other,
/// bit for bit.
///
/// # Errors
/// As [`forward`]; an `added` of another shape or dtype.
pub fn forward_added(
    x: &Tensor,
    added: &Tensor,
    weight: &Tensor,
    eps: f64,
    offset: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    super::check::same(OP, "x and what is added to it", x, added)?;
    super::check::eps(OP, eps)?;
    fits(x, weight)?;
    if let Some(on) = device::of(OP, [x, added, weight])? {
        return device::ops::norms::rms_forward_added(&on, x, added, weight, eps, offset);
    }
    let (rows, size) = x.rows(OP)?;
    let (gain, x, added) = (gain(x, weight, offset)?, x.contiguous()?, added.contiguous()?);
    let scratch = || Tensor::scratch(x.shape(), x.dtype());
    let (mut sum, mut y, mut r) = (scratch()?, scratch()?, Tensor::scratch([rows], x.dtype())?);
    dispatch_real!(OP, x.dtype(), R => {
        parallel::later::<R, 3>([(&mut sum, size), (&mut y, size), (&mut r, 1)], move |first, [sum, y, r]| {
            let (data, added, gain) = (x.checked::<R>(), added.checked::<R>(), gain.checked::<R>());
            for (i, ((sum, y), r)) in sum.chunks_exact_mut(size).zip(y.chunks_exact_mut(size)).zip(r).enumerate() {
                let at = (first + i) * size..(first + i + 1) * size;
                add_row(sum, &data[at.clone()], &added[at]);
                *r = norm_row(y, sum, gain, eps);
            }
        })?;
    });
    Ok((sum, y, r))
}

simd_fn! {
    fn add_row<R: Real>(sum: &mut [R], x: &[R], added: &[R]) {
        for ((s, &x), &a) in sum.iter_mut().zip(x).zip(added) {
            *s = x + a;
        }
    }
}

simd_fn! {
    fn scale_row<R: Real>(y: &mut [R], x: &[R], gain: &[R], r: R) {
        for ((y, &x), &g) in y.iter_mut().zip(x).zip(gain) {
            *y = x * r * g;
        }
    }
}

/// dx, and dw added to `dweight` if given. With n = x·r and g = dy (w + offset):
/// dx = r (g - n mean(g n)) + `past`, what reaches x past the norm, if given; dw += Σ over rows of dy n.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    r: &Tensor,
    past: Option<&Tensor>,
    offset: f64,
    dweight: Option<&mut Tensor>,
) -> Result<Tensor> {
    let (rows, size) = x.rows(OP)?;
    for (what, grad) in [("gradient against x", Some(dy)), ("gradient past the norm against x", past)] {
        if let Some(grad) = grad.filter(|grad| grad.dims() != x.dims()) {
            let (lhs, rhs) = (grad.dims().to_vec(), x.dims().to_vec());
            return Err(Error::ShapeMismatch { op: OP, what, lhs, rhs });
        }
    }
    if let Some(on) = device::of(OP, [dy, x, weight, r].into_iter().chain(past))? {
        fits(x, weight)?;
        return device::ops::norms::rms_backward(&on, [dy, x, weight, r], past, offset, dweight);
    }
    let (gain, x, dy) = (gain(x, weight, offset)?, x.contiguous()?, dy.contiguous()?);
    let past = past.map(Tensor::contiguous).transpose()?;
    let mut dx = Tensor::scratch(x.shape(), x.dtype())?;
    dispatch_real!(OP, x.dtype(), R => {
        let (xd, dyd, rd) = (x.as_slice::<R>()?, dy.as_slice::<R>()?, r.as_slice::<R>()?);
        let gain = gain.as_slice::<R>()?;
        let past = past.as_ref().map(|past| past.as_slice::<R>()).transpose()?;
        parallel::chunks(dx.as_slice_mut::<R>()?, size, |start, dx| {
            for (i, dx) in dx.chunks_exact_mut(size).enumerate() {
                let at = start + i * size;
                row_gradient(dx, &dyd[at..at + size], &xd[at..at + size], gain, rd[at / size]);
                if let Some(past) = past {
                    add_to_row(dx, &past[at..at + size]);
                }
            }
        });
        if let Some(dweight) = dweight {
            column_sums(rows, dweight.as_slice_mut::<R>()?, |row, sums| {
                let span = row * size..(row + 1) * size;
                for ((s, &g), &x) in sums.iter_mut().zip(&dyd[span.clone()]).zip(&xd[span]) {
                    *s += g * (x * rd[row]);
                }
            });
        }
    });
    Ok(dx)
}

simd_fn! {
    fn row_gradient<R: Real>(dx: &mut [R], dy: &[R], x: &[R], gain: &[R], r: R) {
        for ((d, &g), &w) in dx.iter_mut().zip(dy).zip(gain) {
            *d = g * w;
        }
        let mean = dot(dx, x) * r / R::from_f64(x.len() as f64);
        for (d, &x) in dx.iter_mut().zip(x) {
            *d = r * (*d - x * r * mean);
        }
    }
}

simd_fn! {
    fn add_to_row<R: Real>(sum: &mut [R], added: &[R]) {
        for (s, &a) in sum.iter_mut().zip(added) {
            *s += a;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, bits, random, same_bits_on_any_threads, values};
    use super::*;
    use crate::DType;

    #[test]
    fn every_weight_dtype_is_widened() {
        let x = random(&[5, 37], DType::F32, 0);
        for dtype in [DType::BF16, DType::F16, DType::F64] {
            let w = random(&[37], dtype, 1);
            let (y, _) = forward(&x, &w, 1e-6, 1.0).unwrap();
            let (want, _) = forward(&x, &w.to_dtype(DType::F32).unwrap(), 1e-6, 1.0).unwrap();
            assert_eq!(bits(&y), bits(&want));
        }
    }

    #[test]
    fn single_precision_is_close_to_double() {
        let (x, w) = (random(&[9, 131], DType::F32, 2), random(&[131], DType::F32, 3));
        let dy = random(&[9, 131], DType::F32, 4);
        let all = |dtype| {
            let (x, w, dy) = (x.to_dtype(dtype).unwrap(), w.to_dtype(dtype).unwrap(), dy.to_dtype(dtype).unwrap());
            let (y, r) = forward(&x, &w, 1e-5, 0.0).unwrap();
            let mut dw = Tensor::zeros(131, dtype).unwrap();
            let dx = backward(&dy, &x, &w, &r, None, 0.0, Some(&mut dw)).unwrap();
            [y, dx, dw].map(|t| values(&t))
        };
        for (single, double) in all(DType::F32).iter().zip(all(DType::F64)) {
            // A handful of roundings of 6e-8 an element and sums of 131 terms of size about 1.
            assert_close(single, &double, 2e-6);
        }
    }

    #[test]
    fn bits_depend_neither_on_threads_nor_on_other_rows() {
        let (x, w, dy) =
            (random(&[301, 67], DType::F32, 5), random(&[67], DType::BF16, 6), random(&[301, 67], DType::F32, 7));
        same_bits_on_any_threads(|| {
            let (y, r) = forward(&x, &w, 1e-6, 0.0).unwrap();
            let mut dw = Tensor::zeros(67, DType::F32).unwrap();
            let dx = backward(&dy, &x, &w, &r, None, 0.0, Some(&mut dw)).unwrap();
            vec![y, r, dx, dw]
        });
        let (y, _) = forward(&x, &w, 1e-6, 0.0).unwrap();
        let (alone, _) = forward(&x.narrow(0, 200, 1).unwrap(), &w, 1e-6, 0.0).unwrap();
        assert_eq!(bits(&alone), bits(&y.narrow(0, 200, 1).unwrap()));
    }

    #[test]
    fn an_addition_before_the_norm_changes_no_bit() {
        for rows in [301, 1, 0] {
            let draw = |seed| random(&[rows, 67], DType::F32, seed);
            let (x, added, w, dy, past) = (draw(5), draw(6), random(&[67], DType::BF16, 7), draw(8), draw(9));
            let (sum, y, r) = forward_added(&x, &added, &w, 1e-6, 1.0).unwrap();
            let apart = super::super::elementwise::add(&x, &added).unwrap();
            let (want, its_r) = forward(&apart, &w, 1e-6, 1.0).unwrap();
            assert_eq!([bits(&sum), bits(&y), bits(&r)], [bits(&apart), bits(&want), bits(&its_r)]);
            let dx = backward(&dy, &sum, &w, &r, Some(&past), 1.0, None).unwrap();
            let without = backward(&dy, &sum, &w, &r, None, 1.0, None).unwrap();
            assert_eq!(bits(&dx), bits(&super::super::elementwise::add(&past, &without).unwrap()));
        }
        let (x, w) = (random(&[301, 67], DType::F32, 5), random(&[67], DType::F32, 6));
        same_bits_on_any_threads(|| {
            let (sum, y, r) = forward_added(&x, &x, &w, 1e-6, 0.0).unwrap();
            vec![backward(&y, &sum, &w, &r, Some(&x), 0.0, None).unwrap(), sum, y, r]
        });
    }

    #[test]
    fn wrong_arguments_are_named() {
        let (x, w) = (random(&[2, 3], DType::F32, 8), random(&[3], DType::F32, 9));
        let bad = [
            forward(&x, &random(&[4], DType::F32, 9), 1e-6, 0.0),
            forward(&x, &w, f64::NAN, 0.0),
            forward(&x, &w, -1.0, 0.0),
            forward(&x.to_dtype(DType::BF16).unwrap(), &w, 1e-6, 0.0),
            forward(&Tensor::scalar(1.0f32).unwrap(), &w, 1e-6, 0.0),
        ];
        for result in bad {
            assert!(result.unwrap_err().to_string().starts_with("rms_norm: "));
        }
        let (_, r) = forward(&x, &w, 1e-6, 0.0).unwrap();
        let of_other_rows = backward(&x, &x, &w, &r, Some(&random(&[3, 3], DType::F32, 8)), 0.0, None).unwrap_err();
        assert!(of_other_rows.to_string().contains("gradient past the norm"), "{of_other_rows}");
        let added = forward_added(&x, &random(&[3, 3], DType::F32, 8), &w, 1e-6, 0.0).unwrap_err();
        assert!(added.to_string().contains("what is added to it"), "{added}");
    }
}
