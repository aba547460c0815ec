//! Sums, means and maxima over a tensor or along an axis.
//!
//! Sums run in a fixed order: along the last axis that of a row (16 lanes, then a tree), along any other
//! in blocks of 256 rows, over everything in stretches of 4096 elements; see the crate's `reduce`.
//! f32 or f64. Bound by memory.

use super::check;
use crate::device::{self, ops::reduction as on_device};
use crate::{Element, Error, Real, Result, Tensor, dispatch_real, parallel, reduce};

/// Σ x: a scalar.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn sum(x: &Tensor) -> Result<Tensor> {
    if let Some(on) = device::of("sum", [x])? {
        return on_device::sum(&on, x);
    }
    let x = x.contiguous()?;
    dispatch_real!("sum", x.dtype(), R => Tensor::scalar(reduce::sum_all(x.as_slice::<R>()?)))
}

/// Σ x / n: a scalar; NaN for no element, as in PyTorch.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn mean(x: &Tensor) -> Result<Tensor> {
    if let Some(on) = device::of("mean", [x])? {
        return super::elementwise::scale(&on_device::sum(&on, x)?, 1.0 / x.numel() as f64);
    }
    let x = x.contiguous()?;
    dispatch_real!("mean", x.dtype(), R => {
        Tensor::scalar(reduce::sum_all(x.as_slice::<R>()?) / <R as Element>::from_f64(x.numel() as f64))
    })
}

/// The shape of x without `axis`.
fn without(x: &Tensor, axis: usize) -> Vec<usize> {
    let mut dims = x.dims().to_vec();
    dims.remove(axis);
    dims
}

/// Σ along `axis`, which disappears.
///
/// # Errors
/// An axis that x does not have; a dtype other than f32 and f64.
pub fn sum_axis(x: &Tensor, axis: usize) -> Result<Tensor> {
    check::axis("sum_axis", x, axis)?;
    if let Some(on) = device::of("sum_axis", [x])? {
        return on_device::sum_axis(&on, x, axis, without(x, axis));
    }
    let (outer, n, inner) = check::around(x.dims(), axis);
    let x = x.contiguous()?;
    let mut out = Tensor::zeros(without(&x, axis), x.dtype())?;
    dispatch_real!("sum_axis", x.dtype(), R => {
        let x = x.as_slice::<R>()?;
        let out = out.as_slice_mut::<R>()?;
        if inner == 1 && n > 0 {
            let rows = |start: usize, out: &mut [R]| {
                for (o, row) in out.iter_mut().zip(x[start * n..].chunks_exact(n)) {
                    *o = reduce::sum(row);
                }
            };
            parallel::chunks(out, 1, rows);
        } else if inner > 0 {
            for (i, sums) in out.chunks_exact_mut(inner).enumerate().take(outer) {
                reduce::column_sums(n, sums, |r, sums| {
                    for (s, &x) in sums.iter_mut().zip(&x[(i * n + r) * inner..]) {
                        *s += x;
                    }
                });
            }
        }
    });
    Ok(out)
}

/// What broadcasting stretched summed up again: x in a shape that broadcasts to its own.
///
/// # Errors
/// A shape that does not broadcast to that of x; a dtype other than f32 and f64.
pub fn sum_to(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let lead = match x.rank().checked_sub(shape.len()) {
        Some(lead) if shape.iter().zip(&x.dims()[lead..]).all(|(&to, &from)| to == from || to == 1) => lead,
        _ => {
            let (lhs, rhs) = (x.dims().to_vec(), shape.to_vec());
            return Err(Error::ShapeMismatch { op: "sum_to", what: "shape does not stretch to that of x", lhs, rhs });
        }
    };
    let mut x = x.clone();
    for _ in 0..lead {
        x = sum_axis(&x, 0)?;
    }
    for (axis, &size) in shape.iter().enumerate() {
        if size != x.dims()[axis] {
            x = sum_axis(&x, axis)?.unsqueeze(axis)?;
        }
    }
    Ok(x)
}

/// (largest along `axis`, its index as u32), both without `axis`. Of equals the first; NaN is larger than
/// any number, as in PyTorch.
///
/// # Errors
/// An axis that x does not have, or of size 0; a dtype other than f32 and f64.
pub fn max_axis(x: &Tensor, axis: usize) -> Result<(Tensor, Tensor)> {
    const OP: &str = "max_axis";
    check::axis(OP, x, axis)?;
    let (_, n, inner) = check::around(x.dims(), axis);
    if n == 0 {
        return Err(Error::InvalidValue { op: OP, name: "size of the axis", value: 0.0, expected: "at least 1" });
    }
    if let Some(on) = device::of(OP, [x])? {
        return on_device::max_axis(&on, x, axis, without(x, axis));
    }
    let x = x.contiguous()?;
    let dims = without(&x, axis);
    let (mut best, mut index) = (Tensor::zeros(dims.as_slice(), x.dtype())?, Tensor::zeros(dims, crate::DType::U32)?);
    dispatch_real!(OP, x.dtype(), R => {
        let x = x.as_slice::<R>()?;
        let outputs = (best.as_slice_mut::<R>()?, index.as_slice_mut::<u32>()?);
        parallel::chunks2(outputs.0, 1, outputs.1, 1, |start, best, index| {
            for (i, (best, index)) in best.iter_mut().zip(index).enumerate() {
                let (before, after) = ((start + i) / inner, (start + i) % inner);
                let along = (0..n).map(|j| x[(before * n + j) * inner + after]);
                (*best, *index) = first_max(along);
            }
        });
    });
    Ok((best, index))
}

/// The largest and its place, which must fit into a u32: an axis that long is refused when it is made.
fn first_max<R: Real>(values: impl Iterator<Item = R>) -> (R, u32) {
    let mut best = (R::NEG_INFINITY, 0);
    for (i, x) in values.enumerate() {
        let is_nan = |x: R| x.partial_cmp(&x).is_none();
        if i == 0 || x > best.0 || (is_nan(x) && !is_nan(best.0)) {
            best = (x, i as u32);
        }
    }
    best
}

/// dx of [`max_axis`]'s values: dy at the index, 0 elsewhere.
///
/// # Errors
/// Shapes that do not agree; a dtype other than f32 and f64.
pub fn max_axis_backward(dy: &Tensor, index: &Tensor, dims: &[usize], axis: usize) -> Result<Tensor> {
    const OP: &str = "max_axis";
    check::shape(OP, "upstream gradient against the result", dy, index.dims())?;
    if let Some(on) = device::of(OP, [dy, index])? {
        // The indices are those that the forward pass left on the device.
        return on_device::max_axis_backward(&on, dy, index, dims, axis);
    }
    let mut dx = Tensor::zeros(dims, dy.dtype())?;
    check::axis(OP, &dx, axis)?;
    check::shape(OP, "result against x without the axis", dy, &without(&dx, axis))?;
    let (_, n, inner) = check::around(dims, axis);
    let index = index.as_slice::<u32>()?;
    check::indices(OP, "index", index, n)?;
    let dy = dy.contiguous()?;
    dispatch_real!(OP, dy.dtype(), R => {
        let dx = dx.as_slice_mut::<R>()?;
        for (i, (&dy, &at)) in dy.as_slice::<R>()?.iter().zip(index).enumerate() {
            dx[(i / inner * n + at as usize) * inner + i % inner] = dy;
        }
    });
    Ok(dx)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{bits, random, same_bits_on_any_threads, values};
    use super::*;
    use crate::DType;

    #[test]
    fn sums_along_every_axis_are_right() {
        let x = random(&[3, 5, 4], DType::F64, 0);
        let at = |i: usize, j: usize, k: usize| values(&x)[(i * 5 + j) * 4 + k];
        let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-14, "{a} is not {b}");
        for (i, s) in values(&sum_axis(&x, 0).unwrap()).into_iter().enumerate() {
            close(s, (0..3).map(|a| at(a, i / 4, i % 4)).sum());
        }
        for (i, s) in values(&sum_axis(&x, 1).unwrap()).into_iter().enumerate() {
            close(s, (0..5).map(|a| at(i / 4, a, i % 4)).sum());
        }
        for (i, s) in values(&sum_axis(&x, 2).unwrap()).into_iter().enumerate() {
            close(s, (0..4).map(|a| at(i / 5, i % 5, a)).sum());
        }
        close(sum(&x).unwrap().item().unwrap(), values(&x).iter().sum());
        close(mean(&x).unwrap().item().unwrap(), values(&x).iter().sum::<f64>() / 60.0);
        assert_eq!(sum_to(&x, &[5, 1]).unwrap().dims(), [5, 1]);
        close(
            values(&sum_to(&x, &[5, 1]).unwrap())[2],
            (0..3).flat_map(|i| (0..4).map(move |k| (i, k))).map(|(i, k)| at(i, 2, k)).sum(),
        );
    }

    #[test]
    fn nothing_sums_to_zero() {
        let x = Tensor::zeros([2, 0, 3], DType::F32).unwrap();
        assert_eq!(values(&sum_axis(&x, 1).unwrap()), [0.0; 6]);
        assert_eq!(sum_axis(&x, 0).unwrap().dims(), [0, 3]);
        assert_eq!(sum_axis(&x, 2).unwrap().dims(), [2, 0]);
        assert_eq!(values(&sum(&x).unwrap()), [0.0]);
        assert_eq!(values(&sum_axis(&Tensor::zeros([2, 0], DType::F32).unwrap(), 1).unwrap()), [0.0; 2]);
        assert!(values(&mean(&x).unwrap())[0].is_nan());
        assert!(max_axis(&x, 1).unwrap_err().to_string().contains("at least 1"));
        assert_eq!(max_axis(&x, 0).unwrap().0.dims(), [0, 3]);
    }

    #[test]
    fn the_first_of_equal_maxima_counts_and_nan_wins() {
        let x = Tensor::from_slice(&[1.0f32, 3.0, 3.0, f32::NAN, 5.0, f32::NAN, -1.0, f32::NEG_INFINITY, -2.0], [3, 3]);
        let (best, index) = max_axis(&x.unwrap(), 1).unwrap();
        let best = best.to_vec::<f32>().unwrap();
        assert!(best[0] == 3.0 && best[1].is_nan() && best[2] == -1.0);
        assert_eq!(index.to_vec::<u32>().unwrap(), [1, 0, 0]);
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let x = random(&[700, 41], DType::F32, 1);
        same_bits_on_any_threads(|| {
            vec![sum(&x).unwrap(), mean(&x).unwrap(), sum_axis(&x, 0).unwrap(), sum_axis(&x, 1).unwrap()]
        });
        let row = x.narrow(0, 300, 1).unwrap();
        assert_eq!(bits(&sum_axis(&row, 1).unwrap())[0], bits(&sum_axis(&x, 1).unwrap())[300]);
    }
}
