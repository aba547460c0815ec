//! Elementwise arithmetic.
//!
//! Two tensors are stretched to a common shape by NumPy's rule (sizes aligned at the last; 1 stretches).
//! f32 or f64, both of one dtype. Bound by memory.

use super::reduction::sum_to;
use crate::device::{self, ops::elementwise as on_device};
use crate::simd::simd_fn;
use crate::{Element, Error, Real, Result, Tensor, broadcast_shapes, dispatch_real, parallel};

#[derive(Clone, Copy)]
enum Binary {
    Add,
    Sub,
    Mul,
    Div,
}

impl Binary {
    fn on_device(self) -> on_device::Binary {
        match self {
            Binary::Add => on_device::Binary::Add,
            Binary::Sub => on_device::Binary::Sub,
            Binary::Mul => on_device::Binary::Mul,
            Binary::Div => on_device::Binary::Div,
        }
    }
}

/// a += b, in place, for tensors of one shape and compute dtype.
///
/// # Errors
/// Shapes or dtypes that differ.
pub fn add_assign(a: &mut Tensor, b: &Tensor) -> Result<()> {
    if a.dims() != b.dims() {
        let (lhs, rhs) = (a.dims().to_vec(), b.dims().to_vec());
        return Err(Error::ShapeMismatch { op: "add_assign", what: "a and b", lhs, rhs });
    }
    if let Some(on) = device::of("add_assign", [&*a, b])? {
        return on_device::add_assign(&on, a, b);
    }
    let b = b.contiguous()?;
    dispatch_real!("add_assign", a.dtype(), R => {
        let b = b.as_slice::<R>()?;
        parallel::chunks(a.as_slice_mut::<R>()?, 1, |start, a| {
            for (a, &b) in a.iter_mut().zip(&b[start..]) {
                *a += b;
            }
        });
        Ok(())
    })
}

/// Tensors that [`sum_of_halves`] adds at most.
pub const MOST_HALVES: usize = 4;

/// Σ xᵢ of 1 to [`MOST_HALVES`] tensors of one shape and of bf16 or f16, all on one device: in f32, in order, and rounded
/// once.
///
/// # Errors
/// Another number of them; shapes or dtypes that differ.
pub fn sum_of_halves(xs: &[Tensor]) -> Result<Tensor> {
    const OP: &str = "sum_of_halves";
    let Some(first) = xs.first().filter(|_| xs.len() <= MOST_HALVES) else {
        let (name, value) = ("the number of terms", xs.len() as f64);
        return Err(Error::InvalidValue { op: OP, name, value, expected: "from 1 to 4" });
    };
    for x in xs {
        if x.dims() != first.dims() {
            let (lhs, rhs) = (first.dims().to_vec(), x.dims().to_vec());
            return Err(Error::ShapeMismatch { op: OP, what: "the terms", lhs, rhs });
        }
        if x.dtype() != first.dtype() {
            return Err(Error::DTypeMismatch { op: OP, expected: first.dtype(), got: x.dtype() });
        }
    }
    if let Some(on) = device::of(OP, xs)? {
        return on_device::sum_of_halves(&on, xs);
    }
    let mut sum = first.to_dtype(crate::DType::F32)?;
    for x in &xs[1..] {
        add_assign(&mut sum, &x.to_dtype(crate::DType::F32)?)?;
    }
    sum.to_dtype(first.dtype())
}

fn binary(op: &'static str, kind: Binary, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dtype() != b.dtype() {
        return Err(Error::DTypeMismatch { op, expected: a.dtype(), got: b.dtype() });
    }
    let shape = broadcast_shapes(op, a.dims(), b.dims())?;
    if let Some(on) = device::of(op, [a, b])? {
        let (a, b) = (a.broadcast_to(shape.clone())?, b.broadcast_to(shape)?);
        return on_device::binary(&on, op, kind.on_device(), &a, &b);
    }
    let (a, b) = (a.broadcast_to(shape.clone())?.contiguous()?, b.broadcast_to(shape.clone())?.contiguous()?);
    let mut out = Tensor::scratch(shape, a.dtype())?;
    dispatch_real!(op, a.dtype(), R => {
        parallel::later::<R, 1>([(&mut out, 1)], move |start, [out]| {
            run(kind, &a.checked::<R>()[start..], &b.checked::<R>()[start..], out);
        })?;
    });
    Ok(out)
}

simd_fn! {
    fn run<R: Real>(kind: Binary, a: &[R], b: &[R], out: &mut [R]) {
        let all = out.iter_mut().zip(a).zip(b);
        match kind {
            Binary::Add => all.for_each(|((o, &a), &b)| *o = a + b),
            Binary::Sub => all.for_each(|((o, &a), &b)| *o = a - b),
            Binary::Mul => all.for_each(|((o, &a), &b)| *o = a * b),
            Binary::Div => all.for_each(|((o, &a), &b)| *o = a / b),
        }
    }
}

/// a + b.
///
/// # Errors
/// Shapes that do not stretch to each other; dtypes that differ or are neither f32 nor f64.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary("add", Binary::Add, a, b)
}

/// a - b.
///
/// # Errors
/// As [`add`].
pub fn sub(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary("sub", Binary::Sub, a, b)
}

/// a · b.
///
/// # Errors
/// As [`add`].
pub fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary("mul", Binary::Mul, a, b)
}

/// a / b.
///
/// # Errors
/// As [`add`].
pub fn div(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary("div", Binary::Div, a, b)
}

/// d(a b)/da · dy, summed to the shape of a: dy · b.
///
/// # Errors
/// As [`add`].
pub fn mul_backward(dy: &Tensor, b: &Tensor, shape: &[usize]) -> Result<Tensor> {
    sum_to(&mul(dy, b)?, shape)
}

/// (da, db) of a / b, each if wanted, summed to its shape: da = dy / b, db = -(dy / b)(a / b).
///
/// # Errors
/// As [`add`].
pub fn div_backward(dy: &Tensor, a: &Tensor, b: &Tensor, wanted: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let quotient = div(dy, b)?;
    let db = match wanted[1] {
        true => Some(scale(&sum_to(&mul(&quotient, &div(a, b)?)?, b.dims())?, -1.0)?),
        false => None,
    };
    let da = if wanted[0] { Some(sum_to(&quotient, a.dims())?) } else { None };
    Ok([da, db])
}

/// a · factor.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn scale(a: &Tensor, factor: f64) -> Result<Tensor> {
    if let Some(on) = device::of("scale", [a])? {
        return on_device::scale(&on, a, factor);
    }
    let a = a.contiguous()?;
    let mut out = Tensor::scratch(a.shape(), a.dtype())?;
    dispatch_real!("scale", a.dtype(), R => {
        let factor = <R as Element>::from_f64(factor);
        parallel::later::<R, 1>([(&mut out, 1)], move |start, [out]| {
            out.iter_mut().zip(&a.checked::<R>()[start..]).for_each(|(out, &a)| *out = a * factor);
        })?;
    });
    Ok(out)
}

/// a + number.
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn add_scalar(a: &Tensor, number: f64) -> Result<Tensor> {
    if let Some(on) = device::of("add_scalar", [a])? {
        return on_device::add_scalar(&on, a, number);
    }
    let mut out = a.copied()?;
    dispatch_real!("add_scalar", a.dtype(), R => {
        let number = <R as Element>::from_f64(number);
        parallel::chunks(out.as_slice_mut::<R>()?, 1, |_, a| {
            for a in a {
                *a += number;
            }
        });
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    fn tensor(data: &[f64], shape: &[usize]) -> Tensor {
        Tensor::from_slice(data, shape).unwrap()
    }

    #[test]
    fn both_sides_stretch() {
        let (row, column) = (tensor(&[1.0, 2.0, 4.0], &[3]), tensor(&[10.0, 20.0], &[2, 1]));
        let got = |t: Result<Tensor>| t.unwrap().to_vec::<f64>().unwrap();
        assert_eq!(got(add(&row, &column)), [11.0, 12.0, 14.0, 21.0, 22.0, 24.0]);
        assert_eq!(got(sub(&row, &column)), [-9.0, -8.0, -6.0, -19.0, -18.0, -16.0]);
        assert_eq!(got(mul(&row, &column)), [10.0, 20.0, 40.0, 20.0, 40.0, 80.0]);
        assert_eq!(got(div(&column, &row)), [10.0, 5.0, 2.5, 20.0, 10.0, 5.0]);
        assert_eq!(got(add_scalar(&row, 0.5)), [1.5, 2.5, 4.5]);
        assert_eq!(add(&row, &tensor(&[], &[0, 1])).unwrap().dims(), [0, 3]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let a = tensor(&[1.0, 2.0], &[2]);
        let error = mul(&a, &tensor(&[1.0, 2.0, 3.0], &[3])).unwrap_err();
        assert_eq!(error.to_string(), "mul: shapes do not broadcast: [2] does not match [3]");
        let error = add(&a, &a.to_dtype(crate::DType::F32).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "add: expected dtype float64, got float32");
        let ints = a.to_dtype(DType::I32).unwrap();
        assert!(matches!(div(&ints, &ints), Err(Error::UnsupportedDType { op: "div", .. })));
    }
}
