//! Softmax, log-softmax and log-sum-exp over the last dimension.
//!
//! With m = max x and s = Σ e^(x - m): softmax = e^(x - m) / s, log-softmax = x - m - ln s,
//! log-sum-exp = m + ln s. The sum runs in the order of a row (16 lanes, then a tree). x: (…, width),
//! f32 or f64. A row of nothing but -∞ gives NaN, as in PyTorch. Bound by memory and, in f64, by e^x.

use super::check;
use crate::device::{self, ops::softmax as on_device};
use crate::simd::simd_fn;
use crate::{Real, Result, Tensor, dispatch_real, parallel, reduce};

/// y = softmax(x).
///
/// # Errors
/// A scalar x; a dtype other than f32 and f64.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    by_row("softmax", Row::Softmax, x, None)
}

/// dx = y (dy - Σ dy y).
///
/// # Errors
/// As [`softmax`]; dy not like y.
pub fn softmax_backward(dy: &Tensor, y: &Tensor) -> Result<Tensor> {
    by_row("softmax", Row::SoftmaxBackward, y, Some(dy))
}

/// y = log softmax(x).
///
/// # Errors
/// As [`softmax`].
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    by_row("log_softmax", Row::LogSoftmax, x, None)
}

/// dx = dy - e^y Σ dy.
///
/// # Errors
/// As [`softmax`]; dy not like y.
pub fn log_softmax_backward(dy: &Tensor, y: &Tensor) -> Result<Tensor> {
    by_row("log_softmax", Row::LogSoftmaxBackward, y, Some(dy))
}

/// ln Σ e^x of each row; the last dimension disappears. -∞ for a row of no elements or of nothing but -∞.
///
/// # Errors
/// As [`softmax`].
pub fn logsumexp(x: &Tensor) -> Result<Tensor> {
    const OP: &str = "logsumexp";
    let (_, width) = x.rows(OP)?;
    if let Some(on) = device::of(OP, [x])? {
        return on_device::logsumexp(&on, x);
    }
    let x = x.contiguous()?;
    let mut out = Tensor::zeros(&x.dims()[..x.rank() - 1], x.dtype())?;
    dispatch_real!(OP, x.dtype(), R => {
        let data = x.as_slice::<R>()?;
        parallel::chunks(out.as_slice_mut::<R>()?, 1, |start, out| {
            for (i, o) in out.iter_mut().enumerate() {
                let row = &data[(start + i) * width..][..width];
                let m = reduce::max(row);
                // An infinite maximum is the result: subtracting it would make NaN.
                *o = if m.is_finite() { m + reduce::sum_exp(row, m).ln() } else { unbounded(row, m) };
            }
        });
    });
    Ok(out)
}

/// ln Σ e^x where the largest number is infinite: that, unless there is a NaN.
fn unbounded<R: Real>(row: &[R], max: R) -> R {
    row.iter().copied().find(|x| x.partial_cmp(x).is_none()).unwrap_or(max)
}

/// dx = dy e^(x - lse), dy and lse per row.
///
/// # Errors
/// As [`softmax`]; shapes that do not agree.
pub fn logsumexp_backward(dy: &Tensor, x: &Tensor, lse: &Tensor) -> Result<Tensor> {
    const OP: &str = "logsumexp";
    let (_, width) = x.rows(OP)?;
    check::same(OP, "upstream gradient against the result", dy, lse)?;
    check::shape(OP, "result against x without its last dimension", lse, &x.dims()[..x.rank() - 1])?;
    if let Some(on) = device::of(OP, [dy, x, lse])? {
        return on_device::logsumexp_backward(&on, dy, x, lse);
    }
    let (dy, x, lse) = (dy.contiguous()?, x.contiguous()?, lse.contiguous()?);
    let mut dx = Tensor::zeros(x.shape(), x.dtype())?;
    dispatch_real!(OP, x.dtype(), R => {
        let (dy, x, lse) = (dy.as_slice::<R>()?, x.as_slice::<R>()?, lse.as_slice::<R>()?);
        parallel::chunks(dx.as_slice_mut::<R>()?, width, |start, dx| {
            for (i, dx) in dx.chunks_exact_mut(width).enumerate() {
                let r = start / width + i;
                scaled_exp_row(&x[r * width..], lse[r], dy[r], dx);
            }
        });
    });
    Ok(dx)
}

/// What is done with a row.
#[derive(Clone, Copy)]
enum Row {
    Softmax,
    SoftmaxBackward,
    LogSoftmax,
    LogSoftmaxBackward,
}

/// A result like x, row by row. For a backward pass x is the saved y, and dy is given.
fn by_row(op: &'static str, kind: Row, x: &Tensor, dy: Option<&Tensor>) -> Result<Tensor> {
    let (_, width) = x.rows(op)?;
    if let Some(dy) = dy {
        check::same(op, "upstream gradient against the result", dy, x)?;
    }
    if let Some(on) = device::of(op, [x].into_iter().chain(dy))? {
        let kind = match kind {
            Row::Softmax | Row::SoftmaxBackward => on_device::Kind::Softmax,
            Row::LogSoftmax | Row::LogSoftmaxBackward => on_device::Kind::LogSoftmax,
        };
        return match dy {
            None => on_device::forward(&on, op, kind, x),
            Some(dy) => on_device::backward(&on, op, kind, dy, x),
        };
    }
    let (x, dy) = (x.contiguous()?, dy.unwrap_or(x).contiguous()?);
    let mut out = Tensor::zeros(x.shape(), x.dtype())?;
    dispatch_real!(op, x.dtype(), R => {
        let (x, dy) = (x.as_slice::<R>()?, dy.as_slice::<R>()?);
        parallel::chunks(out.as_slice_mut::<R>()?, width, |start, out| {
            for (i, out) in out.chunks_exact_mut(width).enumerate() {
                let at = start + i * width..start + (i + 1) * width;
                row(kind, &x[at.clone()], &dy[at], out);
            }
        });
    });
    Ok(out)
}

simd_fn! {
    fn row<R: Real>(kind: Row, x: &[R], dy: &[R], out: &mut [R]) {
        match kind {
            Row::Softmax => {
                let m = reduce::max(x);
                out.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - m).exp());
                let s = reduce::sum(out);
                out.iter_mut().for_each(|y| *y = *y / s);
            }
            Row::LogSoftmax => {
                let m = reduce::max(x);
                let ln_s = reduce::sum_exp(x, m).ln();
                out.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - m) - ln_s);
            }
            Row::SoftmaxBackward => {
                let s = reduce::dot(dy, x);
                out.iter_mut().zip(x).zip(dy).for_each(|((dx, &y), &dy)| *dx = y * (dy - s));
            }
            Row::LogSoftmaxBackward => {
                let s = reduce::sum(dy);
                out.iter_mut().zip(x).zip(dy).for_each(|((dx, &y), &dy)| *dx = dy - y.exp() * s);
            }
        }
    }
}

simd_fn! {
    fn scaled_exp_row<R: Real>(x: &[R], shift: R, factor: R, out: &mut [R]) {
        out.iter_mut().zip(x).for_each(|(o, &x)| *o = (x - shift).exp() * factor);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, bits, random, same_bits_on_any_threads, values};
    use super::*;
    use crate::DType;

    #[test]
    fn rows_sum_to_one_however_far_out() {
        let x = random(&[7, 53], DType::F32, 0);
        for shift in [0.0, 1e4, -1e4] {
            let x = super::super::elementwise::add_scalar(&x, shift).unwrap();
            let y = softmax(&x).unwrap();
            for row in values(&y).chunks(53) {
                // 53 roundings of 6e-8 of numbers below 1, at most.
                assert!((row.iter().sum::<f64>() - 1.0).abs() <= 3e-6, "shift {shift}");
            }
            let logs: Vec<f64> = values(&log_softmax(&x).unwrap()).iter().map(|l| l.exp()).collect();
            assert_close(&logs, &values(&y), 2e-6);
        }
    }

    #[test]
    fn infinities_are_those_of_the_limit() {
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        let x = Tensor::from_vec(vec![-inf, 0.0, 0.0, -inf, -inf, -inf, inf, 1.0, 2.0, nan, 1.0, 2.0], [4, 3]).unwrap();
        let y = values(&softmax(&x).unwrap());
        assert_eq!(y[..3], [0.0, 0.5, 0.5]);
        assert!(y[3..6].iter().chain(&y[9..]).all(|y| y.is_nan()));
        let lse = values(&logsumexp(&x).unwrap());
        assert_eq!(lse[..3], [2f64.ln(), -inf, inf]);
        assert!(lse[3].is_nan());
        assert_eq!(values(&logsumexp(&Tensor::zeros([2, 0], DType::F64).unwrap()).unwrap()), [-inf; 2]);
    }

    #[test]
    fn bits_depend_neither_on_threads_nor_on_other_rows() {
        let (x, dy) = (random(&[300, 71], DType::F32, 1), random(&[300, 71], DType::F32, 2));
        same_bits_on_any_threads(|| {
            let (y, l, lse) = (softmax(&x).unwrap(), log_softmax(&x).unwrap(), logsumexp(&x).unwrap());
            let dl = logsumexp_backward(&lse, &x, &lse).unwrap();
            vec![softmax_backward(&dy, &y).unwrap(), log_softmax_backward(&dy, &l).unwrap(), dl, y, l, lse]
        });
        let alone = softmax(&x.narrow(0, 200, 1).unwrap()).unwrap();
        assert_eq!(bits(&alone), bits(&softmax(&x).unwrap().narrow(0, 200, 1).unwrap()));
    }

    #[test]
    fn a_scalar_has_no_rows() {
        assert!(softmax(&Tensor::scalar(1.0f32).unwrap()).is_err());
        assert!(logsumexp(&Tensor::scalar(1.0f32).unwrap()).is_err());
        let (a, b) = (random(&[2, 3], DType::F32, 3), random(&[3, 2], DType::F32, 4));
        assert!(softmax_backward(&a, &b).is_err());
    }
}
