//! Layer normalisation over the last dimension.
//!
//! y = x̂ w + b, x̂ = (x - μ) r, r = 1 / sqrt(mean (x - μ)² + ε), with x: (…, size) in f32 or f64, w, b: (size)
//! in any float dtype. The mean first, then the deviations from it: one pass over x² would cancel. Sums in
//! 16 lanes, so a row's result depends on the row alone. Bound by memory.
//!
//! # Source
//! Ba, Kiros, Hinton, "Layer Normalization", arXiv:1607.06450.

use super::check;
use crate::device::{self, ops::norms as on_device};
use crate::reduce::{self, column_sums};
use crate::simd::simd_fn;
use crate::{Element, Real, Result, Tensor, dispatch_real, parallel};

const OP: &str = "layer_norm";

/// Returns (y, stats) with stats: (rows, 2) holding μ and r, which the backward pass needs.
///
/// # Errors
/// Shapes that do not agree; x of a dtype other than f32 and f64; ε that is negative or not finite.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<(Tensor, Tensor)> {
    let (rows, size) = x.rows(OP)?;
    check::eps(OP, eps)?;
    check::shape(OP, "weight against the last size of x", weight, &[size])?;
    if let Some(on) = device::of(OP, [x, weight].into_iter().chain(bias))? {
        bias.map_or(Ok(()), |b| check::shape(OP, "bias against the last size of x", b, &[size]))?;
        return on_device::layer_forward(&on, x, weight, bias, eps);
    }
    let weight = weight.to_dtype(x.dtype())?.contiguous()?;
    let bias = match bias {
        Some(bias) => {
            check::shape(OP, "bias against the last size of x", bias, &[size])?;
            bias.to_dtype(x.dtype())?.contiguous()?
        }
        None => Tensor::zeros(size, x.dtype())?,
    };
    let x = x.contiguous()?;
    let (mut y, mut stats) = (Tensor::zeros(x.shape(), x.dtype())?, Tensor::zeros([rows, 2], x.dtype())?);
    dispatch_real!(OP, x.dtype(), R => {
        let (data, w, b) = (x.as_slice::<R>()?, weight.as_slice::<R>()?, bias.as_slice::<R>()?);
        let (n, eps) = (<R as Element>::from_f64(size as f64), <R as Element>::from_f64(eps));
        parallel::chunks2(y.as_slice_mut::<R>()?, size, stats.as_slice_mut::<R>()?, 2, |first, y, stats| {
            for (i, (y, stats)) in y.chunks_exact_mut(size).zip(stats.chunks_exact_mut(2)).enumerate() {
                let x = &data[(first + i) * size..][..size];
                let mean = reduce::sum(x) / n;
                let r = R::ONE / (reduce::sum_squared_deviations(x, mean) / n + eps).sqrt();
                stats.copy_from_slice(&[mean, r]);
                row(x, w, b, mean, r, y);
            }
        });
    });
    Ok((y, stats))
}

simd_fn! {
    fn row<R: Real>(x: &[R], w: &[R], b: &[R], mean: R, r: R, y: &mut [R]) {
        for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(w).zip(b) {
            *y = ((x - mean) * r).mul_add(w, b);
        }
    }
}

/// dx = r (g - mean g - x̂ mean(g x̂)) with g = dy w.
///
/// # Errors
/// As [`forward`].
pub fn backward_input(dy: &Tensor, x: &Tensor, weight: &Tensor, stats: &Tensor) -> Result<Tensor> {
    let (_, size) = inputs(dy, x, stats)?;
    check::shape(OP, "weight against the last size of x", weight, &[size])?;
    if let Some(on) = device::of(OP, [dy, x, weight, stats])? {
        return on_device::layer_backward_input(&on, dy, x, weight, stats);
    }
    let weight = weight.to_dtype(x.dtype())?.contiguous()?;
    let (dy, x) = (dy.contiguous()?, x.contiguous()?);
    let mut dx = Tensor::zeros(x.shape(), x.dtype())?;
    dispatch_real!(OP, x.dtype(), R => {
        let (dy, x, w, stats) =
            (dy.as_slice::<R>()?, x.as_slice::<R>()?, weight.as_slice::<R>()?, stats.as_slice::<R>()?);
        parallel::chunks(dx.as_slice_mut::<R>()?, size, |start, dx| {
            for (i, dx) in dx.chunks_exact_mut(size).enumerate() {
                let at = start + i * size;
                let s = &stats[at / size * 2..][..2];
                row_gradient(&dy[at..at + size], &x[at..at + size], w, s[0], s[1], dx);
            }
        });
    });
    Ok(dx)
}

simd_fn! {
    fn row_gradient<R: Real>(dy: &[R], x: &[R], w: &[R], mean: R, r: R, dx: &mut [R]) {
        let n = <R as Element>::from_f64(x.len() as f64);
        for ((g, &dy), &w) in dx.iter_mut().zip(dy).zip(w) {
            *g = dy * w;
        }
        let level = reduce::sum(dx) / n;
        let along = reduce::dot_deviations(dx, x, mean) * r / n;
        for (g, &x) in dx.iter_mut().zip(x) {
            *g = (*g - level - (x - mean) * r * along) * r;
        }
    }
}

/// dw += Σ over rows of dy x̂.
///
/// # Errors
/// As [`forward`].
pub fn backward_weight_add(dy: &Tensor, x: &Tensor, stats: &Tensor, dweight: &mut Tensor) -> Result<()> {
    let (rows, size) = inputs(dy, x, stats)?;
    check::shape(OP, "gradient of the weight", dweight, &[size])?;
    if let Some(on) = device::of(OP, [dy, x, stats, &*dweight])? {
        return on_device::layer_backward_weight_add(&on, dy, x, stats, dweight);
    }
    let (dy, x) = (dy.contiguous()?, x.contiguous()?);
    dispatch_real!(OP, x.dtype(), R => {
        let (dy, x, stats) = (dy.as_slice::<R>()?, x.as_slice::<R>()?, stats.as_slice::<R>()?);
        column_sums(rows, dweight.as_slice_mut::<R>()?, |r, sums| {
            let at = r * size..(r + 1) * size;
            add_product(&dy[at.clone()], &x[at], stats[2 * r], stats[2 * r + 1], sums);
        });
    });
    Ok(())
}

simd_fn! {
    fn add_product<R: Real>(dy: &[R], x: &[R], mean: R, r: R, sums: &mut [R]) {
        for ((s, &dy), &x) in sums.iter_mut().zip(dy).zip(x) {
            *s = dy.mul_add((x - mean) * r, *s);
        }
    }
}

/// (rows, size), once dy, x and the saved statistics agree.
fn inputs(dy: &Tensor, x: &Tensor, stats: &Tensor) -> Result<(usize, usize)> {
    let (rows, size) = x.rows(OP)?;
    check::same(OP, "upstream gradient against x", dy, x)?;
    check::shape(OP, "saved statistics against rows of x", stats, &[rows, 2])?;
    Ok((rows, size))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, bits, random, same_bits_on_any_threads, values};
    use super::*;
    use crate::DType;

    fn backward(dy: &Tensor, x: &Tensor, w: &Tensor, stats: &Tensor) -> (Tensor, Tensor) {
        let mut dw = Tensor::zeros(x.dims()[1], x.dtype()).unwrap();
        backward_weight_add(dy, x, stats, &mut dw).unwrap();
        (backward_input(dy, x, w, stats).unwrap(), dw)
    }

    #[test]
    fn single_precision_is_close_to_double() {
        let [x, dy] = [0, 1].map(|i| random(&[9, 131], DType::F32, i));
        let [w, b] = [2, 3].map(|i| random(&[131], DType::F32, i));
        // A mean far from 0 is where a one-pass variance would lose everything.
        let x = super::super::elementwise::add_scalar(&x, 100.0).unwrap();
        let all = |dtype| {
            let [x, dy, w, b] = [&x, &dy, &w, &b].map(|t| t.to_dtype(dtype).unwrap());
            let (y, stats) = forward(&x, &w, Some(&b), 1e-5).unwrap();
            let (dx, dw) = backward(&dy, &x, &w, &stats);
            [y, dx, dw].map(|t| values(&t))
        };
        for (single, double) in all(DType::F32).iter().zip(all(DType::F64)) {
            // The mean of numbers of size 100 is off by up to 1e-5, of deviations of size 1; 131 terms of that in dw.
            assert_close(single, &double, 1e-4);
        }
    }

    #[test]
    fn bits_depend_neither_on_threads_nor_on_other_rows() {
        let [x, dy] = [4, 5].map(|i| random(&[301, 67], DType::F32, i));
        let w = random(&[67], DType::BF16, 6);
        same_bits_on_any_threads(|| {
            let (y, stats) = forward(&x, &w, None, 1e-6).unwrap();
            let (dx, dw) = backward(&dy, &x, &w, &stats);
            vec![y, stats, dx, dw]
        });
        let (y, _) = forward(&x, &w, None, 1e-6).unwrap();
        let (alone, _) = forward(&x.narrow(0, 200, 1).unwrap(), &w, None, 1e-6).unwrap();
        assert_eq!(bits(&alone), bits(&y.narrow(0, 200, 1).unwrap()));
    }

    #[test]
    fn wrong_arguments_are_named() {
        let (x, w) = (random(&[2, 3], DType::F32, 8), random(&[3], DType::F32, 9));
        let long = random(&[4], DType::F32, 9);
        for result in [
            forward(&x, &long, None, 1e-6),
            forward(&x, &w, Some(&long), 1e-6),
            forward(&x, &w, None, f64::NAN),
            forward(&Tensor::scalar(1.0f32).unwrap(), &w, None, 1e-6),
        ] {
            assert!(result.unwrap_err().to_string().starts_with("layer_norm: "));
        }
    }
}
